"""One question on one video: told as it happens, with the agent that is trained; wrong input is one
line and starts nothing.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from configs import ask as recipe
from configs import para_grpo
from experiments import ask, launch
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError, DataError, RolloutError
from paravt_jax.orchestrator import parts
from paravt_jax.orchestrator.recipes import AskRecipe
from paravt_jax.rollout.agent import CallDone, CallStarted, Opened, Opening, TurnDone
from paravt_jax.testing import clips, tiny
from paravt_jax.testing.scripted import Refuse, Reply, ScriptedServer
from paravt_jax.types import (
  Overview,
  ParseFailure,
  ResultStatus,
  Segment,
  ToolCall,
  ToolResult,
  Window,
)
from tests import patience, recipes
from tests.experiments import small_job

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALL = (
  '<tool_call>{{"name": "crop_video", "arguments": {{"start_time": {}, "end_time": '
  '{}}}}}</tool_call>'
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder with a tiny model (model/) and a video of 16 s (a.mp4)."""
  folder = tmp_path_factory.mktemp('ask')
  tiny.build_model_folder(folder / 'model', 0)
  clips.make_clip(folder / 'a.mp4', 16, 4, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 8)
  (folder / 'notes.mp4').write_text('no video')
  return folder


def recipe_of(place, scale='tiny', **knobs):
  config = recipe.get_config(scale)
  given = {
    'video': str(place / 'a.mp4'),
    'question': 'What appears at 8?',
    'model__folder': str(place / 'model'),
    'frames': 4,
    'folder': str(place / 'logs'),
    'client__ready_timeout_s': 5.0,
    'client__retries': 0,
    'client__backoff_s': 0.01,
    **knobs,
  }
  return recipes.typed(config, **given)


def script(place, *turns, subagent='8 red'):
  """The main agent writes `turns`, every sub-agent `subagent`."""
  tok = ChatTokenizer.load(place / 'model')

  def answer(request):
    prompt = tok.decode(request.input_ids)
    text = (
      subagent
      if '<|im_start|>system' not in prompt
      else turns[prompt.count('<|im_start|>assistant') - 1]
    )
    return (
      text
      if not isinstance(text, str)
      else Reply(ids=[*tok.encode(text, trusted=True).tolist(), tok.im_end])
    )

  return answer


def asked(place, capsys, *turns, subagent='8 red', **knobs):
  """What the command says, line by line, without its clock."""
  with ScriptedServer(script(place, *turns, subagent=subagent)) as server:
    ask.main(recipe_of(place, server__kind='url', server__urls=(server.url,), **knobs))
  return [re.sub(r'^\[ *[\d.]+ s\] ', '', line) for line in capsys.readouterr().out.splitlines()]


# The command


def test_overview_turns_crops_and_the_answer_are_told_in_their_order(place, capsys):
  calls = 'I look at both.</think>\n' + CALL.format(6, 9) + CALL.format(12, 14)
  lines = asked(place, capsys, calls, 'Seen: 8 red.</think>\n<answer>red</answer>')
  assert lines[1] == 'overview: 4 frames, from 2 s to 14 s; the video lasts 16 s'
  assert lines[2:6] == [
    'turn 1:',
    '           <think>',
    '           I look at both.</think>',
    '           ' + calls.split('\n')[1],
  ]
  assert lines[6:8] == ['  crop 1 → 6 s – 9 s', '  crop 2 → 12 s – 14 s']
  assert sorted(lines[8:10]) == [
    '  crop 1 ← 8 red   (4 frames, 6 s – 9 s)',
    '  crop 2 ← 8 red   (3 frames, 12 s – 14 s)',
  ]
  assert lines[10] == 'turn 2:' and lines[-1] == 'answer: red'


def test_a_turn_is_written_as_it_comes_and_reads_as_if_it_had_come_at_once(
  place, capsys, monkeypatch
):
  turns = 'I look.</think>\n\n  ' + CALL.format(6, 9), 'Seen: 8 red.</think>\n<answer>red</answer>'
  pieces = []
  with monkeypatch.context() as patch:
    patch.setattr(ask.Narrator, 'on_text', lambda narrator, turn, text: None)
    at_once = asked(place, capsys, *turns)
  with monkeypatch.context() as patch:
    patch.setattr(
      'builtins.print', lambda *words, end='\n', flush: pieces.append(' '.join(words) + end)
    )
    asked(place, capsys, *turns)
  streamed = ''.join(pieces)
  assert [re.sub(r'^\[ *[\d.]+ s\] ', '', line) for line in streamed.splitlines()][1:] == at_once[
    1:
  ]  # 0: the server's address
  assert ' l' in pieces  # most tokens of this tokenizer are letters
  assert '' not in pieces
  assert len(pieces) > len(at_once) + 10  # one at a time: the text of a turn comes in many
  assert all(
    character.isprintable() or character == '\n' for character in streamed
  )  # no control codes


def test_the_page_has_the_episode_with_its_frames(place, capsys, tmp_path):
  page = tmp_path / 'new' / 'a.html'
  lines = asked(
    place,
    capsys,
    'I look.</think>\n' + CALL.format(6, 9),
    'Seen.</think>\n<answer>red</answer>',
    html=str(page),
  )
  assert lines[-1] == f'page: {page}'
  text = page.read_text()
  assert (
    text.count('role="img"') == 8
    and 'title="crop 1: 6 s – 9 s, executed"' in text
    and 'What appears at 8?' in text
  )


def test_an_episode_without_an_answer_says_how_it_ended(place, capsys):
  assert asked(place, capsys, 'I do not know.')[-1] == 'answer: none (ended by stop)'


def test_a_call_that_fails_is_told_with_its_reason_and_the_agent_goes_on(place, capsys):
  lines = asked(
    place,
    capsys,
    'I look.</think>\n' + CALL.format(9, 6) + '<tool_call>hm</tool_call>',
    'So.</think>\n<answer>no</answer>',
  )
  assert '  crop 1 → 9 s – 6 s' in lines and '  crop 2 → <tool_call>hm</tool_call>' in lines
  said = [line for line in lines if '←' in line]
  assert any(line.startswith('  crop 1 ← bad arguments: Error') for line in said)
  assert (
    any(line.startswith('  crop 2 ← parse failure: Error') for line in said)
    and lines[-1] == 'answer: no'
  )


def test_a_server_that_fails_is_one_line(place, capsys):
  with pytest.raises(RolloutError, match=r'the server failed: .*; its log is in') as caught:
    asked(place, capsys, Refuse(400, 'no'))
  assert '\n' not in str(caught.value)


def test_above_temperature_0_the_seed_draws(place, capsys):
  with ScriptedServer(script(place, 'So.</think>\n<answer>red</answer>')) as server:
    for seed, temperature in ((1, 0.0), (1, 0.9), (2, 0.9)):
      ask.main(
        recipe_of(
          place,
          server__kind='url',
          server__urls=(server.url,),
          seed=seed,
          sampling__temperature=temperature,
        )
      )
  asked_for = [
    (request.sampling['temperature'], request.sampling.get('sampling_seed'))
    for request in server.requests
  ]
  assert [temperature for temperature, _ in asked_for] == [0.0, 0.9, 0.9] and asked_for[
    1
  ] != asked_for[2]


@pytest.mark.slow
def test_it_starts_the_embedded_server_itself_and_leaves_nothing_running(place, tmp_path):
  command = [
    sys.executable,
    '-m',
    'experiments.ask',
    f'--config={ROOT}/configs/ask.py',
    f'--config.video={place / "a.mp4"}',
    f'--config.model.folder={place / "model"}',
    '--config.question=What appears at 8?',
    '--config.html=a.html',
    '--config.server.embedded.threads=1',
    '--config.agent.max_new_tokens=16',
  ]
  done = subprocess.run(
    command,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
    timeout=patience.seconds(600),
    env=small_job.environment(),
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert 'overview: 16 frames, from 0.5 s to 15.5 s; the video lasts 16 s' in done.stdout
  assert '\nanswer: ' in done.stdout  # of a random model: any, or none
  assert (
    done.stdout.endswith('page: a.html\n')
    and (tmp_path / 'a.html').is_file()
    and small_job.nobody_is_left(tmp_path)
  )


def test_the_newest_run_s_model_is_taken_when_none_is_named(place, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    ConfigError, match=r'--config.model.folder is empty and there is no runs/\*/hf'
  ):
    parts.named_or_newest_model('')
  for age, name in enumerate(('new', 'old', 'older')):
    (tmp_path / 'runs' / name / 'hf').mkdir(parents=True)
    (tmp_path / 'runs' / name / 'hf' / 'config.json').write_text('{}')
    os.utime(tmp_path / 'runs' / name / 'hf' / 'config.json', (1000 - age, 1000 - age))
  (tmp_path / 'runs' / 'newest_without').mkdir()
  assert parts.named_or_newest_model('') == pathlib.Path('runs/new/hf')


# Wrong input


@pytest.mark.parametrize(
  ('knobs', 'message'),
  [
    ({'question': ' '}, '--config.question is empty: wanted a question'),
    ({'video': ''}, '--config.video is empty: wanted a video file'),
    ({'video': 'nowhere.mp4'}, '--config.video=nowhere.mp4: there is no such file'),
    ({'video': '.'}, '--config.video=.: there is no such file'),
    ({'question_type': 'quiz'}, "--config.question_type='quiz': wanted one of mcq, tvg, oe"),
    ({'frames': 0}, '--config.frames=0: wanted at least 1'),
    ({'agent__max_turns': -1}, '--config.agent.max_turns=-1: wanted at least 0'),
    ({'agent__max_parallel': 0}, '--config.agent.max_parallel=0: wanted at least 1'),
    ({'html': '.'}, "--config.html='.': wanted a file to write"),
    ({'server__kind': 'cloud'}, "--config.server.kind='cloud': wanted one of"),
    ({'scale': '8b'}, 'tokens are not of scale :8b; wanted --config=configs/ask.py'),
  ],
)
def test_wrong_input_is_refused_before_anything_is_started(place, capsys, knobs, message):
  with pytest.raises(ConfigError) as caught:
    ask.main(recipe_of(place, **knobs))
  assert (
    message in str(caught.value) and capsys.readouterr().out == '' and not (place / 'runs').exists()
  )


def test_a_recipe_of_another_command_is_refused():
  with pytest.raises(ConfigError, match=r"no 'question', .* such as configs/ask.py"):
    launch.typed(AskRecipe, para_grpo.get_config())


def test_a_large_model_is_not_shown_thumbnails(place, tmp_path):
  hf = json.loads((place / 'model' / 'config.json').read_text())
  hf['text_config']['hidden_size'] = hf['vision_config']['out_hidden_size'] = 4096
  (tmp_path / 'config.json').write_text(json.dumps(hf))
  with pytest.raises(
    ConfigError,
    match=r'its width of 4096 and its \d+ tokens are not of scale :tiny; wanted --config=configs/ask.py:8b \(or :2b\)',
  ):
    ask.main(recipe_of(place, model__folder=str(tmp_path)))


@pytest.mark.parametrize('text', [None, '{', ''])
def test_a_folder_that_holds_no_model_is_refused(place, tmp_path, text):
  if text is not None:
    (tmp_path / 'config.json').write_text(text)
  with pytest.raises(
    DataError,
    match=r'config.json cannot be read; wanted a Hugging Face folder of the Qwen3-VL family',
  ):
    ask.main(recipe_of(place, model__folder=str(tmp_path)))


def test_a_file_that_is_no_video_is_one_line_with_status_2_and_no_server_is_started(
  place, tmp_path
):
  command = [
    sys.executable,
    '-m',
    'experiments.ask',
    f'--config={ROOT}/configs/ask.py',
    f'--config.video={place / "notes.mp4"}',
    f'--config.model.folder={place / "model"}',
    '--config.question=What?',
  ]
  done = subprocess.run(
    command,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
    timeout=patience.seconds(300),
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == (
    f'error: --config.video={place / "notes.mp4"}: cannot be read as a video (not_video); '
    'wanted a whole mp4, mkv, webm, …\n'
  )
  assert list(tmp_path.iterdir()) == []


# The recipe


def test_the_agent_is_the_one_that_is_trained_at_every_scale():
  for scale in recipe.SCALES:
    ours, trained = recipe.get_config(scale), para_grpo.get_config(scale)
    assert (
      ours.agent.to_dict() == trained.agent.to_dict()
      and ours.subagent.to_dict() == trained.subagent.to_dict()
    )
    assert (ours.decode.max_pixels, ours.sampling.context) == (
      trained.video.max_pixels,
      trained.sampling.context,
    )
    assert ours.sampling.temperature == 0.0 and ours.server.kind == 'embedded' and ours.is_locked
  with pytest.raises(ValueError, match="scale '3b': wanted one of tiny, 2b, 8b"):
    recipe.get_config('3b')


# What is told


def test_crops_are_numbered_through_all_turns_and_one_over_the_limit_too():
  said, clock = [], iter(range(100))
  narrator = ask.Narrator(said.append, lambda: float(next(clock)))
  call = ToolCall('crop_video', {'start_time': 1})
  over = ToolResult(ParseFailure('not_json', 'x'), ResultStatus.OVER_LIMIT, 'Error: too\nmany.')
  done = ToolResult(call, ResultStatus.EXECUTED, ' red \n ball ', Window(1.0, 2.0), (1.0, 2.0))
  for event in (
    CallStarted(0, 0, call),
    CallDone(0, 0, done),
    CallDone(0, 1, over),
    TurnDone(1, '<think>\na\nb '),
    CallStarted(1, 0, call),
  ):
    narrator(event)
  assert said == [
    '[   1.0 s]   crop 1 → 1 s – ?',
    '[   2.0 s]   crop 1 ← red ball   (2 frames, 1 s – 2 s)',
    '[   3.0 s]   crop 2 ← over limit: Error: too many.',
    '[   4.0 s] turn 2:',
    '           <think>',
    '           a',
    '           b',
    '[   5.0 s]   crop 3 → 1 s – ?',
  ]


def test_the_clock_begins_when_the_episode_opens():
  said, clock = [], iter([0.0, 30.0, 31.5])
  narrator = ask.Narrator(said.append, lambda: next(clock))
  narrator(Opened(Opening(Segment([], False), 2, (Overview((3.0, 9.0), 12.0),))))
  assert said == ['[   1.5 s] overview: 2 frames, from 3 s to 9 s; the video lasts 12 s']


def growing(*events):
  """What a narrator prints of texts (as they grow) and of whole turns, and in how many pieces."""
  pieces = []
  narrator = ask.Narrator(lambda line: pieces.append(line + '\n'), lambda: 0.0, pieces.append)
  for event in events:
    if isinstance(event, str):
      narrator.on_text(0, event)
    else:
      narrator(event)
  narrator.close()
  return ''.join(pieces)


@pytest.mark.parametrize(
  'text',
  [
    'a',
    ' \n<think>\nI look.\n\n  Then.</think>\n<answer>red</answer>\n',
    'a\r\nb\x0bc\u2028d  ',
    '',
    ' \n',
    'é\U0001f600 ü',
  ],
)
def test_a_turn_in_pieces_reads_as_the_whole_turn(text):
  whole = growing(TurnDone(0, text))
  for size in (1, 2, 5):
    assert (
      growing(*(text[:end] for end in range(size, len(text), size)), TurnDone(0, text)) == whole
    )
    assert (
      growing('', *(text[:end] for end in range(0, len(text) + 1, size)), TurnDone(0, text))
      == whole
    )


def test_a_turn_that_began_anew_is_told_again_and_one_that_was_cut_ends_its_line():
  assert growing('I lo', 'You', TurnDone(0, 'You see.')) == (
    '[   0.0 s] turn 1:\n           I lo\n[   0.0 s] turn 1, written again:\n           You see.\n'
  )
  assert growing('I lo') == '[   0.0 s] turn 1:\n           I lo\n'


def test_a_call_that_is_not_well_formed_is_marked_and_one_that_is_is_not():
  times = {'start_time': 6, 'end_time': 9}
  assert ask.describe_call(ToolCall('crop_video', times)) == '6 s – 9 s'
  assert (
    ask.describe_call(ToolCall('crop_video', times, False))
    == '6 s – 9 s   (not well-formed: training would not credit it)'
  )
