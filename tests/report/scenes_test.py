"""What of an episode is shown: the right ones are picked, times become places, tags become
colours.
"""

import base64
import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import MediaError
from paravt_jax.report import scenes
from paravt_jax.report.episodes import Entry
from paravt_jax.types import Overview, ResultStatus, Scored, Window
from tests.report import made_run


def _entry(number: int, budget: int, skill: float, seed: int = 1, **parts) -> Entry:
  scored = made_run.episode(made_run.task(number), budget, skill, 0, np.random.default_rng(seed))
  return Entry(
    0, Scored(scored.episode, parts.pop('reward', scored.reward), {**scored.parts, **parts})
  )


def test_tags_cut_a_text_into_kinds():
  text = '<think>\nwhere?</think>\n<tool_call>{}</tool_call><answer>B</answer>.'
  assert [(span.kind, span.tag, span.text) for span in scenes.spans(text)] == [
    ('think', True, '<think>'),
    ('think', False, '\nwhere?'),
    ('think', True, '</think>'),
    ('plain', False, '\n'),
    ('tool', True, '<tool_call>'),
    ('tool', False, '{}'),
    ('tool', True, '</tool_call>'),
    ('answer', True, '<answer>'),
    ('answer', False, 'B'),
    ('answer', True, '</answer>'),
    ('plain', False, '.'),
  ]


def test_an_unclosed_thought_colours_up_to_the_next_tag_and_no_text_is_lost():
  text = '<think>lost <answer>B'
  assert [(span.kind, span.text) for span in scenes.spans(text)] == [
    ('think', '<think>'),
    ('think', 'lost '),
    ('answer', '<answer>'),
    ('answer', 'B'),
  ]
  assert ''.join(span.text for span in scenes.spans(text)) == text


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (0, '0 s'),
    (41.5, '41.5 s'),
    (119, '119 s'),
    (124.04, '124 s'),
    (999.5, '999.5 s'),
    (4000.4, '4000 s'),
  ],
)
def test_times_have_one_form_however_long_the_video_is(seconds, text):
  assert scenes.clock(seconds) == text


def test_the_timeline_is_in_percent_of_the_duration():
  entry = _entry(2, 4, 1.0)  # two windows: 18..23 and 42..47 s or so, of 64
  line = scenes.timeline(entry.scored.episode)
  assert line['overview'] == [12.5, 37.5, 62.5, 87.5]
  window = entry.scored.episode.results[0].window
  assert (line['crops'][0]['left'], line['crops'][0]['ok']) == (
    pytest.approx(100 * window.start / 64, abs=0.01),
    True,
  )
  assert line['crops'][0]['width'] == pytest.approx(
    100 * (window.end - window.start) / 64, abs=0.01
  )
  assert [mark['text'] for mark in line['axis']] == ['0 s', '16 s', '32 s', '48 s', '64 s']
  assert [event['text'] for event in line['events']] == [
    e['label'] for e in entry.scored.episode.task.facts['events']
  ]


def test_crops_that_overlap_get_lanes_of_their_own_and_calls_without_a_window_none():
  episode = _entry(2, 4, 1.0).scored.episode
  result = dataclasses.replace(
    episode.results[0], window=Window(10, 20), status=ResultStatus.EXECUTED
  )
  others = (
    dataclasses.replace(result, window=Window(15, 25)),
    dataclasses.replace(result, window=Window(40, 50)),
    dataclasses.replace(result, window=None, status=ResultStatus.PARSE_FAILURE),
  )
  turn = dataclasses.replace(episode.turns[0], results=(result, *others))
  line = scenes.timeline(dataclasses.replace(episode, turns=(turn,)))
  assert [(crop['number'], crop['lane']) for crop in line['crops']] == [(1, 0), (2, 1), (3, 0)]
  assert line['lanes'] == 2


@pytest.mark.parametrize(
  ('facts', 'found'),
  [
    ({'cues': [41, 12], 'labels': ['red', 'blue']}, [(12.0, 'blue', True), (41.0, 'red', True)]),
    ({'cues': [41]}, [(41.0, '', True)]),
    (
      {'events': [{'start': 3, 'end': 5, 'colour': 'red', 'shape': 'disc'}]},
      [(3.0, 'red disc', False)],
    ),
    ({'events': ['odd', {'start': 1}], 'windows': 2}, []),
    ({}, []),
  ],
)
def test_known_events_are_read_from_the_facts_there_are(facts, found):
  task = dataclasses.replace(made_run.task(1), facts=facts)
  assert [(e['start'], e['text'], e['point']) for e in scenes.known_events(task)] == found


def test_the_gold_span_of_a_grounding_question_is_on_the_timeline():
  task = dataclasses.replace(made_run.task(3), facts={}, answer='35,38')
  assert scenes.known_events(task) == [{'start': 35.0, 'end': 38.0, 'text': 'gold', 'point': False}]


def test_events_whose_labels_would_touch_get_lanes_of_their_own():
  episode = _entry(2, 4, 1.0).scored.episode
  task = dataclasses.replace(
    episode.task, facts={'cues': [10, 14, 40], 'labels': ['red', 'blue', 'green']}
  )
  line = scenes.timeline(dataclasses.replace(episode, task=task))
  assert [(event['text'], event['lane']) for event in line['events']] == [
    ('red', 0),
    ('blue', 1),
    ('green', 0),
  ]
  assert line['event_lanes'] == 2


def test_tokens_keep_the_mask_and_the_text():
  trajectory = _entry(2, 4, 1.0).scored.episode.trajectory
  runs = scenes.tokens(trajectory, made_run.decode)
  assert sum(1 for run in runs if run['sampled']) == sum(
    len(s.ids) for s in trajectory.segments if s.sampled
  )
  assert ''.join(run['text'] for run in runs) == made_run.decode(trajectory.ids.tolist())
  assert all(0 <= run['level'] <= 9 for run in runs if run['sampled'])


def test_without_a_decoder_ids_are_shown():
  runs = scenes.tokens(_entry(2, 4, 1.0).scored.episode.trajectory, None)
  assert all(run['text'].replace(' ', '').isdigit() for run in runs)


def test_thumbnails_are_small_jpegs_with_their_times():
  uri = scenes.data_uri(np.full((300, 600, 3), 200, np.uint8))
  image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix('data:image/jpeg;base64,'))))
  assert image.size == (144, 72)
  shown = scenes.scene(scenes.Pick('x', (('after', _entry(2, 4, 1.0)),)), made_run.frames, None)
  assert [thumb['text'] for thumb in shown['thumbs']] == ['8 s', '24 s', '40 s', '56 s']
  assert all(
    thumb['src'].startswith('data:image/jpeg') and thumb['pixelated'] for thumb in shown['thumbs']
  )


def test_frames_that_cannot_be_loaded_become_a_note():
  def missing(video, seconds):
    raise MediaError(f'{video}: no such file', 'missing')

  shown = scenes.scene(scenes.Pick('x', (('after', _entry(2, 4, 1.0)),)), missing, None)
  assert shown['note'] == 'no frames: videos/002.mp4: no such file'
  assert [thumb['src'] for thumb in shown['thumbs']] == [None] * 4


def test_the_loader_is_asked_once_for_the_same_frames():
  asked = []
  load = scenes.caching(
    lambda video, seconds: asked.append((video, seconds)) or made_run.frames(video, seconds)
  )
  load('videos/001.mp4', (1.0,))
  load('videos/001.mp4', (1.0,))
  load('videos/001.mp4', (2.0,))
  assert len(asked) == 2 and scenes.caching(None) is None


def test_the_pick_shows_what_training_changed_side_by_side():
  before = [_entry(2, 4, 0.0, accuracy=0.0), _entry(1, 64, 0.0, accuracy=1.0)]
  after = [_entry(2, 4, 1.0, accuracy=1.0), _entry(1, 64, 0.0, accuracy=0.0, reward=-1.0)]
  picks = scenes.choose({'before': before, 'after': after, 'train': []})
  assert picks[0].label == 'solved by cropping'
  assert [caption for caption, _ in picks[0].sides] == ['before training', 'after training']
  assert [entry.scored.parts['accuracy'] for _, entry in picks[0].sides] == [0.0, 1.0]
  assert {pick.sides[-1][1].scored.episode.budget for pick in picks} == {4, 64}
  assert len({pick.sides[-1][1].key for pick in picks}) == len(picks)


def test_without_an_evaluation_after_training_its_last_steps_stand_in():
  picks = scenes.choose(
    {'before': [], 'after': [], 'train': [dataclasses.replace(_entry(2, 4, 1.0), step=7)]}
  )
  assert [caption for caption, _ in picks[0].sides] == ['while training, step 7']


def test_with_an_evaluation_before_training_only_it_is_shown():
  picks = scenes.choose({'before': [_entry(2, 4, 1.0)], 'after': [], 'train': []})
  assert [caption for caption, _ in picks[0].sides] == ['before training']


def test_no_episodes_no_picks():
  assert scenes.choose({'before': [], 'after': [], 'train': []}) == []


def _of_two():
  """A made entry whose task has a second video of 16 s, at which its first crop looked."""
  entry = _entry(2, 4, 1.0)
  episode = entry.scored.episode
  first = dataclasses.replace(episode.results[0], video=1, window=Window(4, 8), seconds=(4.0, 6.0))
  turn = dataclasses.replace(episode.turns[0], results=(first, *episode.results[1:]))
  task = dataclasses.replace(episode.task, videos=('videos/002.mp4', 'videos/003.mp4'))
  episode = dataclasses.replace(
    episode, task=task, turns=(turn, *episode.turns[1:]), others=(Overview((4.0, 12.0), 16.0),)
  )
  return dataclasses.replace(entry, scored=dataclasses.replace(entry.scored, episode=episode))


def test_several_videos_stand_end_to_end_on_the_timeline():
  line = scenes.timeline(_of_two().scored.episode)
  assert line['overview'] == [10.0, 30.0, 50.0, 70.0, 85.0, 95.0]
  assert [(mark['left'], mark['text']) for mark in line['axis']] == [
    (0.0, 'Video 1'),
    (80.0, 'Video 2'),
  ]
  assert (line['crops'][0]['left'], line['crops'][0]['width'], line['crops'][0]['frames']) == (
    85.0,
    5.0,
    [85.0, 87.5],
  )
  assert line['crops'][0]['title'] == 'crop 1: Video 2, 4 s – 8 s, executed'


def test_frames_are_taken_from_the_video_that_they_show():
  asked = []
  load = lambda video, seconds: asked.append((video, *seconds)) or made_run.frames(video, seconds)
  shown = scenes.scene(scenes.Pick('x', (('after', _of_two()),)), load, None)
  assert asked[:3] == [
    ('videos/002.mp4', 8.0, 24.0, 40.0, 56.0),
    ('videos/003.mp4', 4.0, 12.0),
    ('videos/003.mp4', 4.0, 6.0),
  ]
  assert [thumb['text'] for thumb in shown['thumbs']] == [
    'Video 1, 8 s',
    'Video 1, 24 s',
    'Video 1, 40 s',
    'Video 1, 56 s',
    'Video 2, 4 s',
    'Video 2, 12 s',
  ]
  assert shown['duration'] == '64 s + 16 s'
  assert shown['sides'][0]['turns'][0]['results'][0]['window'] == 'Video 2, 4 s – 8 s'


def test_a_text_only_episode_is_shown_without_frames():
  entry = _entry(2, 4, 1.0)
  episode = dataclasses.replace(
    entry.scored.episode,
    task=dataclasses.replace(entry.scored.episode.task, videos=()),
    seconds=(),
    duration=0.0,
    turns=entry.scored.episode.turns[-1:],
  )
  entry = dataclasses.replace(entry, scored=dataclasses.replace(entry.scored, episode=episode))
  shown = scenes.scene(scenes.Pick('x', (('after', entry),)), made_run.frames, None)
  assert (shown['thumbs'], shown['duration'], shown['sides'][0]['timeline']['axis']) == (
    [],
    '0 s',
    [],
  )
