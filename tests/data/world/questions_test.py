"""Questions: their wording, their answers, their share by kind, all from the seed."""

import collections
import dataclasses

import pytest

from paravt_jax.data.world import questions, scene
from paravt_jax.errors import ConfigError
from tests.data.world.small import QUESTIONS, SCENE

DRAWN = scene.draw(SCENE, 'v0', 0)


def draw(number, *, shapes=False, **changes):
  return questions.draw(
    DRAWN,
    number,
    dataclasses.replace(QUESTIONS, **changes),
    shapes=shapes,
    colours=8,
    video='v.mp4',
    source='world',
    seed=0,
  )


def test_wordings():
  assert questions.open_question([41]) == 'What appears at 41?'
  assert questions.open_question([41, 73]) == 'What appears at 41 and at 73?'
  assert questions.open_question([41, 12, 73]) == 'What appears at 41, at 12 and at 73?'
  assert questions.choice_question(41, ['red', 'blue']) == 'What appears at 41?\nA. red\nB. blue'
  assert (
    questions.grounding_question(41) == 'When does the thing that is shown at 41 start and end?'
  )


def test_a_question_is_a_function_of_scene_number_and_seed():
  assert draw(5) == draw(5)
  assert draw(5).id == 'v0-5'
  assert len({draw(i).question for i in range(20)}) > 15


@pytest.mark.parametrize('shapes', [False, True])
def test_every_answer_follows_from_the_scene(shapes):
  drawn = scene.draw(dataclasses.replace(SCENE, shapes=shapes), 'v0', 0)
  for i in range(300):
    task = questions.draw(
      drawn, i, QUESTIONS, shapes=shapes, colours=8, video='v.mp4', source='world', seed=0
    )
    labels = [scene.label(drawn.at(cue), shapes) for cue in task.facts['cues']]
    if task.question_type == 'oe':
      assert task.answer == ', '.join(labels)
    elif task.question_type == 'mcq':
      assert len(set(task.options)) == 4
      assert task.options['ABCD'.index(task.answer)] == labels[0]
    else:
      start, end = map(int, task.answer.split(','))
      assert start <= task.facts['cues'][0] < end
      assert (
        drawn.at(start) is not drawn.at(start - 1)
        and drawn.at(end - 1) is drawn.at(start)
        and drawn.at(end) is None
      )
    assert all(str(cue) in task.question for cue in task.facts['cues'])


def test_kinds_come_by_their_weights_and_windows_by_their_kind():
  tasks = [draw(i) for i in range(2000)]
  kinds = collections.Counter(task.facts['kind'] for task in tasks)
  assert abs(kinds['oe1'] / 2000 - 4 / 11) < 0.04 and abs(kinds['tvg'] / 2000 - 2 / 11) < 0.04
  windows = {task.facts['kind']: (task.facts['windows'], len(task.facts['cues'])) for task in tasks}
  assert windows == {'oe1': (1, 1), 'oe2': (2, 2), 'oe3': (3, 3), 'mcq': (1, 1), 'tvg': (1, 1)}
  assert {task.question_type for task in [draw(i, weights={'mcq': 1}) for i in range(20)]} == {
    'mcq'
  }


def test_the_share_of_cues_with_nothing_there_is_a_knob():
  shares = []
  for nothing in (0.0, 0.5):
    cues = [
      label
      for i in range(500)
      for label in draw(i, nothing=nothing, weights={'oe2': 1}).facts['labels']
    ]
    shares.append(cues.count('nothing') / len(cues))
  assert shares[0] == 0 and abs(shares[1] - 0.5) < 0.05


def test_nothing_is_asked_about_only_well_away_from_events_and_cues_are_apart():
  for i in range(300):
    task = draw(i, nothing=0.5, weights={'oe3': 1})
    cues = task.facts['cues']
    assert all(abs(a - b) > 5 for a in cues for b in cues if a != b) and len(set(cues)) == 3
    for cue, label in zip(cues, task.facts['labels']):
      if label == 'nothing':
        assert {DRAWN.at(t) for t in (cue - 1, cue, cue + 1)} == {None}


def test_the_letters_of_right_choices_are_balanced():
  letters = collections.Counter(draw(i, weights={'mcq': 1}).answer for i in range(800))
  assert all(abs(letters[letter] / 800 - 0.25) < 0.06 for letter in 'ABCD')


@pytest.mark.parametrize(
  ('change', 'knob'),
  [
    ({'weights': {'poem': 1}}, 'weights'),
    ({'weights': {'oe1': 0}}, 'weights'),
    ({'nothing': 1.0}, 'nothing'),
    ({'choices': 9}, 'choices'),
    ({'choices': 1}, 'choices'),
  ],
)
def test_impossible_knobs_are_refused_by_name(change, knob):
  with pytest.raises(ConfigError, match=knob):
    questions.check(dataclasses.replace(QUESTIONS, **change), 8)
