"""Episodes on disk come back as they were, and a broken line says what is wrong with it."""

import copy
import dataclasses
import json

import numpy as np
import pytest

from paravt_jax.errors import DataError, ParavtError
from paravt_jax.report.episodes import EpisodeLog, from_json, read, to_json
from paravt_jax.types import (
  Overview,
  ParseFailure,
  ResultStatus,
  StopReason,
  TokenClass,
  ToolCall,
  ToolResult,
)
from tests.report import made_run


def _scored(seed: int = 1, number: int = 2, skill: float = 1.0):
  return made_run.episode(made_run.task(number), 4, skill, 3, np.random.default_rng(seed))


def _line() -> dict:
  return json.loads(json.dumps(to_json(5, _scored())))


def test_an_episode_comes_back_as_it_was_but_for_its_pixels():
  scored = _scored()
  entry = from_json(_line(), 'here')
  back, episode = entry.scored.episode, scored.episode
  assert (entry.step, entry.key) == (5, ('w2', 4, 3))
  assert (back.task, back.seconds, back.duration, back.stop) == (
    episode.task,
    episode.seconds,
    64.0,
    StopReason.ANSWER,
  )
  assert [turn.text for turn in back.turns] == [turn.text for turn in episode.turns]
  assert entry.scored.reward == pytest.approx(
    scored.reward
  ) and entry.scored.parts == pytest.approx(scored.parts)
  assert [r.status for r in back.results] == [ResultStatus.EXECUTED, ResultStatus.EXECUTED]
  assert [r.window for r in back.results] == [r.window for r in episode.results]
  assert [r.call for r in back.results] == [r.call for r in episode.results] and isinstance(
    back.results[0].call, ToolCall
  )
  assert np.array_equal(back.trajectory.ids, episode.trajectory.ids)
  for own, other in zip(episode.trajectory.segments, back.trajectory.segments, strict=True):
    assert (own.sampled, own.token_class) == (other.sampled, other.token_class)
    assert np.array_equal(own.versions, other.versions) and other.ids.dtype == np.int32
    assert np.allclose(own.logprobs, other.logprobs, atol=5e-7)
  assert back.trajectory.images == () and len(episode.trajectory.images) == 4


def test_a_line_keeps_the_sizes_of_images_and_no_pixels():
  segment = to_json(0, _scored())['trajectory']['segments'][0]
  assert segment['images'] == [[32, 32]] * 4


def test_a_call_keeps_its_form_and_a_line_from_before_there_were_forms_is_read():
  line = _line()
  call = line['turns'][0]['results'][0]['call']
  call['well_formed'] = False
  assert from_json(line, 'here').scored.episode.results[0].call.well_formed is False
  del call['well_formed']
  assert from_json(line, 'here').scored.episode.results[0].call.well_formed is True


def test_a_parse_failure_comes_back_as_one():
  line = _line()
  line['turns'][0]['results'][0] |= {
    'call': {'reason': 'not_json', 'text': '<tool_call>{'},
    'status': 'parse_failure',
    'window': None,
    'seconds': [],
    'subagent': None,
  }
  result = from_json(line, 'here').scored.episode.results[0]
  assert (result.call, result.status) == (
    ParseFailure('not_json', '<tool_call>{'),
    ResultStatus.PARSE_FAILURE,
  )
  assert result.window is None and result.subagent is None


@pytest.mark.parametrize(
  ('path', 'value', 'message'),
  [
    (('reward',), 'high', r"here, reward: got 'high' \(str\)"),
    (('budget',), True, r'here, budget: got True \(bool\)'),
    (('stop',), 'tired', r"here, stop: got 'tired', wanted one of \['answer'"),
    (('task', 'colour'), 'red', r'here, task: got .*colour.*wanted an object with exactly'),
    (('turns', 0, 'results', 0, 'status'), 'fine', r"turns\[0\], results\[0\], status: got 'fine'"),
    (
      ('turns', 0, 'results', 0, 'window'),
      [1, 2],
      r'window: got \[1, 2\], wanted \[start, end, num_frames\]',
    ),
    (('trajectory', 'segments', 1, 'logprobs'), [], r'segments\[1\]: got 0 logprobs'),
    (
      ('trajectory', 'segments', 0, 'versions'),
      [1],
      r'segments\[0\]: got 0 logprobs and 1 versions, wanted 0 each',
    ),
    (('trajectory', 'segments', 0, 'token_class'), 9, r'token_class: got 9'),
  ],
)
def test_a_line_that_breaks_the_schema_is_refused_with_its_place(path, value, message):
  line = _line()
  place = line
  for key in path[:-1]:
    place = place[key]
  place[path[-1]] = value
  with pytest.raises(DataError, match=message):
    from_json(line, 'here')


@pytest.mark.parametrize('key', ['step', 'parts', 'turns', 'trajectory'])
def test_a_missing_key_is_refused(key):
  line = copy.deepcopy(_line())
  del line[key]
  with pytest.raises(DataError, match=f'here: got .*wanted an object with exactly .*{key}'):
    from_json(line, 'here')


def test_token_classes_and_stop_reasons_survive():
  line = _line()
  line['trajectory']['segments'][1]['token_class'] = 2
  line['trajectory']['stop'] = 'context'
  trajectory = from_json(line, 'here').scored.episode.trajectory
  assert (trajectory.segments[1].token_class, trajectory.stop) == (
    TokenClass.AFTER_TOOL,
    StopReason.CONTEXT,
  )


def test_a_resumed_training_log_has_no_step_twice(tmp_path):
  path = tmp_path / 'episodes' / 'train.jsonl'
  with EpisodeLog(path, start_step=0) as log:
    for step in (0, 0, 1, 1, 2):
      log.append(step, _scored(step))
  with EpisodeLog(path, start_step=1) as log:
    log.append(1, _scored(9))
  assert [entry.step for entry in read(path)] == [0, 0, 1]


def test_a_resumed_evaluation_keeps_what_it_has_and_knows_it(tmp_path):
  path = tmp_path / 'before.jsonl'
  with EpisodeLog(path, start_step=None) as log:
    log.append(0, _scored(number=2))
    log.append(0, _scored(number=6))
  with path.open('a') as file:
    file.write('{"step": 0, "rew')  # killed while writing
  with EpisodeLog(path, start_step=None) as log:
    assert log.keys == {('w2', 4, 3), ('w6', 4, 3)}
    log.append(0, _scored(number=10))
  assert [entry.key[0] for entry in read(path)] == ['w2', 'w6', 'w10']


def test_a_broken_line_names_file_and_line(tmp_path):
  path = tmp_path / 'after.jsonl'
  path.write_text(json.dumps(_line()) + '\nnonsense\n')
  with pytest.raises(DataError, match=r'after.jsonl line 2: got .*nonsense'):
    list(read(path))


def test_a_full_disk_is_one_clear_error(tmp_path):
  (tmp_path / 'train.jsonl').symlink_to('/dev/full')
  with EpisodeLog(tmp_path / 'train.jsonl', start_step=0) as log:
    with pytest.raises(ParavtError, match='write an episode of step 3: No space'):
      log.append(3, _scored())
    assert log.keys == set()


def test_nan_that_a_policy_wrote_into_a_call_is_kept_as_text():
  scored = _scored()
  call = ToolCall('crop_video', {'start_time': float('nan'), 'end_time': [float('inf'), 3.5]})
  turn = dataclasses.replace(
    scored.episode.turns[0], results=(ToolResult(call, ResultStatus.BAD_ARGUMENTS, 'Error'),)
  )
  scored = dataclasses.replace(scored, episode=dataclasses.replace(scored.episode, turns=(turn,)))
  line = json.loads(json.dumps(to_json(0, scored), allow_nan=False))
  assert line['turns'][0]['results'][0]['call']['arguments'] == {
    'start_time': 'nan',
    'end_time': ['inf', 3.5],
  }


def test_several_videos_their_overviews_and_the_one_that_a_crop_saw_come_back():
  scored = _scored()
  task = dataclasses.replace(scored.episode.task, videos=('a.mp4', 'b.mp4'), slots=(0, 4))
  turn = dataclasses.replace(
    scored.episode.turns[0], results=(dataclasses.replace(scored.episode.results[0], video=1),)
  )
  episode = dataclasses.replace(
    scored.episode, task=task, turns=(turn,), others=(Overview((1.5, 4.5), 6.0),)
  )
  back = from_json(
    json.loads(json.dumps(to_json(0, dataclasses.replace(scored, episode=episode)))), 'here'
  ).scored.episode
  assert (back.task, back.others, back.results[0].video) == (task, (Overview((1.5, 4.5), 6.0),), 1)
  assert back.overviews == (Overview(episode.seconds, 64.0), Overview((1.5, 4.5), 6.0))


def test_a_broken_overview_is_refused_with_its_place():
  with pytest.raises(
    DataError, match=r"here, others\[0\]: got \['seconds'\], wanted an object with exactly"
  ):
    from_json(_line() | {'others': [{'seconds': []}]}, 'here')


def test_repeats_come_back_and_lines_without_any_do_not_speak_of_them():
  scored = _scored()
  assert 'repeated' not in json.dumps(to_json(0, scored))
  turn = dataclasses.replace(
    scored.episode.turns[0], results=(dataclasses.replace(scored.episode.results[0], repeated=4),)
  )
  task = dataclasses.replace(scored.episode.task, videos=('a.mp4', 'b.mp4'), slots=(0, 0))
  episode = dataclasses.replace(
    scored.episode, task=task, turns=(turn,), repeated=3, others=(Overview((1.5,), 6.0, 2),)
  )
  back = from_json(
    json.loads(json.dumps(to_json(0, dataclasses.replace(scored, episode=episode)))), 'here'
  ).scored.episode
  assert ([view.repeated for view in back.overviews], back.results[0].repeated) == ([3, 2], 4)
