"""Questions about a scene. Each names the seconds to look at (the cues).

The answer follows from the frames at the cues.

oe   'What appears at 41?' -> 'red'          'What appears at 41 and at 73?' -> 'red, blue'
mcq  'What appears at 41?\\nA. red\\nB. blue\\nC. green\\nD. white' -> 'A'
tvg  'When does the thing that is shown at 41 start and end?' -> '40,43'
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from paravt_jax import seeds
from paravt_jax.data.world import scene as scenes
from paravt_jax.errors import ConfigError
from paravt_jax.options import DECAY, Members, Options, from_, whole
from paravt_jax.types import Task

KINDS = ('oe1', 'oe2', 'oe3', 'mcq', 'tvg')
LETTERS = 'ABCDEFGHIJ'


@dataclasses.dataclass(frozen=True)
class QuestionOptions(Options):
  """What is asked."""

  weights: Annotated[Mapping[str, float], Members(from_(0))]  # relative frequency by kind
  nothing: Annotated[float, DECAY]  # share of cues at a time when nothing is shown
  clearance: Annotated[int, whole(0)]  # seconds between such a cue and the nearest event
  choices: Annotated[int, whole(2)]  # options of an mcq question


def check(options: QuestionOptions, colours: int) -> None:
  """Checks weights, shares and the number of choices. Raises ConfigError for invalid ones."""
  unknown = sorted(set(options.weights) - set(KINDS))
  if unknown or not sum(options.weights.values()) > 0 or min(options.weights.values()) < 0:
    raise ConfigError(
      f'world.questions.weights: got {dict(options.weights)}, wanted shares >= 0 of '
      f'{", ".join(KINDS)}, not all 0'
    )
  if not 0 <= options.nothing < 1:
    raise ConfigError(f'world.questions.nothing: got {options.nothing}, wanted 0 <= share < 1')
  most = min(len(LETTERS), colours)
  if not 2 <= options.choices <= most:
    raise ConfigError(
      f'world.questions.choices: got {options.choices}, wanted 2..{most} (letters and '
      'colours there are)'
    )


def open_question(cues: Sequence[int]) -> str:
  """Returns a question such as 'What appears at 41, at 12 and at 73?'"""
  places = [f'at {cue}' for cue in cues]
  listed = places[0] if len(places) == 1 else ', '.join(places[:-1]) + ' and ' + places[-1]
  return f'What appears {listed}?'


def choice_question(cue: int, options: Sequence[str]) -> str:
  """Returns the open question followed by its options, each with a letter, one per line."""
  lines = [f'{letter}. {option}' for letter, option in zip(LETTERS, options)]
  return '\n'.join([open_question([cue]), *lines])


def grounding_question(cue: int) -> str:
  """Returns the question for the time span of what is shown at the cue."""
  return f'When does the thing that is shown at {cue} start and end?'


def draw_cue(
  scene: scenes.Scene,
  rng: np.random.Generator,
  options: QuestionOptions,
  taken: Sequence[int],
  *,
  empty: bool,
) -> int:
  """Returns a second to ask about: inside an event or, with `empty`, far from all events.

  It is more than 5 s from the cues in `taken`, if such a second exists.
  """
  # the candidate seconds, and the distance of each to the nearest event
  seconds = np.arange(2, scene.seconds - 3)
  starts, ends = np.array([(event.start, event.end - 1) for event in scene.events]).T
  distance = np.maximum(np.maximum(starts - seconds[:, None], seconds[:, None] - ends), 0).min(
    axis=1
  )
  fits = distance >= options.clearance if empty else distance == 0
  # at least 6 s from the cues already chosen, if possible
  far = (np.abs(seconds[:, None] - np.array(taken, int)) > 5).all(axis=1)
  pool = seconds[fits & far]
  return int(rng.choice(pool if len(pool) else seconds[fits]))


def draw(
  scene: scenes.Scene,
  number: int,
  options: QuestionOptions,
  *,
  shapes: bool,
  colours: int,
  video: str,
  source: str,
  seed: int,
) -> Task:
  """Returns question `number` of a scene. It depends only on the arguments.

  Task.facts has 'kind', 'windows' (number of windows needed), 'cues' (seconds) and 'labels' (what
  is shown at each cue).
  """
  rng = seeds.rng(seed, 'question', scene.name, number)
  weights = np.array([options.weights.get(kind, 0.0) for kind in KINDS])
  kind = KINDS[rng.choice(len(KINDS), p=weights / weights.sum())]
  windows = min(int(kind[2:]) if kind.startswith('oe') else 1, len(scene.events))
  cues: list[int] = []
  for _ in range(windows):
    empty = kind != 'tvg' and bool(rng.random() < options.nothing)
    cues.append(draw_cue(scene, rng, options, cues, empty=empty))
  labels = [scenes.label(scene.at(cue), shapes) for cue in cues]
  text, answer, choices = _wording(scene, kind, cues, labels, options, rng, shapes, colours)
  question_type = kind if kind in ('mcq', 'tvg') else 'oe'
  facts = {'kind': kind, 'windows': windows, 'cues': cues, 'labels': labels}
  return Task(
    f'{scene.name}-{number}', (video,), text, question_type, answer, choices, source, facts
  )


def _wording(
  scene, kind, cues, labels, options, rng, shapes, colours
) -> tuple[str, str, tuple[str, ...]]:
  """Returns (question, answer, options) for one kind."""
  if kind == 'tvg':
    event = scene.at(cues[0])
    return grounding_question(cues[0]), f'{event.start},{event.end}', ()
  if kind == 'mcq':
    choices = _choices(labels[0], options, rng, shapes, colours)
    return choice_question(cues[0], choices), LETTERS[choices.index(labels[0])], tuple(choices)
  return open_question(cues), ', '.join(labels), ()


def _choices(
  gold: str, options: QuestionOptions, rng: np.random.Generator, shapes: bool, colours: int
) -> list[str]:
  """Returns the correct label and other labels, in random order.

  'nothing' is among the others with the probability `options.nothing`.
  """
  names = list(scenes.COLOURS)[:colours]
  others = [f'{c} {s}' for c in names for s in scenes.SHAPES] if shapes else list(names)
  others = [
    str(o) for o in rng.permutation([o for o in others if o != gold])[: options.choices - 1]
  ]
  if gold != scenes.NOTHING and rng.random() < options.nothing:
    others[-1] = scenes.NOTHING
  return [str(o) for o in rng.permutation([gold, *others])]
