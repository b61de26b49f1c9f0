"""ConfigDict at the door, frozen dataclass inside."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from experiments import launch
from paravt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Options:
  steps: int
  rate: float
  name: str
  on: bool
  limit: float | None
  sizes: tuple[int, ...]
  lanes: tuple[tuple[int, int], ...]
  weights: dict[str, float]


GIVEN = {
  'steps': 2,
  'rate': 0.5,
  'name': 'a',
  'on': True,
  'limit': None,
  'sizes': (1, 2),
  'lanes': ((1, 2),),
  'weights': {'a': 1.0},
}


def built(**changes):
  return launch.build(Options, ConfigDict({**GIVEN, **changes}), 'some')


def test_a_section_becomes_its_dataclass_field_by_field():
  assert built() == Options(**GIVEN)
  assert built(rate=1, limit=3) == Options(**{**GIVEN, 'rate': 1.0, 'limit': 3.0})
  assert built(sizes=[3], lanes=[[1, 2], [3, 4]]) == Options(
    **{**GIVEN, 'sizes': (3,), 'lanes': ((1, 2), (3, 4))}
  )
  assert type(built(rate=1).rate) is float


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'steps': 2.5}, r'config.some.steps: got 2.5 \(float\), wanted int'),
    ({'steps': True}, r'config.some.steps: got True \(bool\), wanted int'),
    ({'name': 3}, r'config.some.name: got 3 \(int\), wanted str'),
    ({'on': 1}, r'config.some.on: got 1 \(int\), wanted bool'),
    ({'rate': 'fast'}, r"config.some.rate: got 'fast' \(str\), wanted float"),
    ({'limit': 'x'}, r"config.some.limit: got 'x' \(str\), wanted float"),
    ({'sizes': (1, 'b')}, r"config.some.sizes: got 'b' \(str\), wanted int"),
    ({'sizes': 4}, r'config.some.sizes: got 4, wanted a tuple'),
    ({'lanes': ((1, 2, 3),)}, r'config.some.lanes: got \(1, 2, 3\), wanted a tuple of 2'),
    ({'stray': 1}, r'config.some.stray: Options has no such field; it has steps, rate'),
  ],
)
def test_a_knob_of_another_type_or_name_is_refused_by_its_place(changes, message):
  with pytest.raises(ConfigError, match=message):
    built(**changes)


def test_a_missing_knob_is_named_and_fields_may_be_handed_in():
  section = ConfigDict({name: value for name, value in GIVEN.items() if name != 'name'})
  with pytest.raises(ConfigError, match=r'config.some: name is missing; add it to the recipe'):
    launch.build(Options, section, 'some')
  assert launch.build(Options, section, 'some', name='b').name == 'b'


def test_a_short_name_of_a_knob_becomes_the_long_one_and_nothing_else_does():
  given = [
    '--config=a.py',
    '--config.model=D=E',
    '-config.model',
    'F',
    '--config.model.url=u',
    '--config.models=x',
    '--',
    'config.model=y',
  ]
  assert launch.lengthened(given, {'model': 'model.folder'}) == [
    '--config=a.py',
    '--config.model.folder=D=E',
    '-config.model.folder',
    'F',
    '--config.model.url=u',
    '--config.models=x',
    '--',
    'config.model=y',
  ]
  assert launch.lengthened(given, {}) == given


def test_require_says_the_flag_the_value_and_what_is_allowed():
  launch.require(1, 'at least 1', True, 'rollout.steps')
  with pytest.raises(ConfigError, match=r'--config.rollout.steps=0: wanted at least 1'):
    launch.require(0, 'at least 1', False, 'rollout.steps')
