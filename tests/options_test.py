"""Options: typed sections that check themselves, made from plain ones and turned back."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated

import pytest
from ml_collections import ConfigDict

from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.options import COUNT, FLAG, NAME, PART, POSITIVE, Members, Options, optional, whole


@dataclasses.dataclass(frozen=True)
class Wheel(Options):
  low: Annotated[int, whole(0, note='0: flat')]
  high: Annotated[int, COUNT]

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_order('low', 'high')


@dataclasses.dataclass(frozen=True)
class Cart(Options):
  steps: Annotated[int, COUNT]
  rate: Annotated[float, POSITIVE]
  name: Annotated[str, NAME]
  on: Annotated[bool, FLAG]
  limit: Annotated[float | None, optional(PART)]
  sizes: Annotated[tuple[int, ...], options.BUDGETS]
  lanes: Annotated[tuple[tuple[int, int], ...], options.LANES]
  weights: Annotated[Mapping[str, float], Members(POSITIVE)]
  wheel: Wheel
  spare: Wheel | None


GIVEN = {
  'steps': 2,
  'rate': 0.5,
  'name': 'a',
  'on': True,
  'limit': None,
  'sizes': (1, 2),
  'lanes': ((1, 2),),
  'weights': {'a': 1.0},
  'wheel': {'low': 1, 'high': 2},
}
CART = Cart(**{**GIVEN, 'wheel': Wheel(1, 2)}, spare=None)


def built(where='some', **changes):
  return options.build(Cart, ConfigDict({**GIVEN, **changes}), where)


def test_a_section_becomes_its_dataclass_field_by_field():
  assert built() == CART
  assert options.build(Cart, GIVEN, 'some') == CART  # of a plain dict too
  assert built(rate=1, limit=1) == CART.replace(rate=1.0, limit=1.0)
  assert type(built(rate=1).rate) is float
  assert built(sizes=[3], lanes=[[1, 2], [3, 4]]) == CART.replace(
    sizes=(3,), lanes=((1, 2), (3, 4))
  )
  found = built(spare={'low': 0, 'high': 1}, weights={'a': 2, 'b': 3.0})
  assert found.spare == Wheel(0, 1) and dict(found.weights) == {'a': 2.0, 'b': 3.0}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'steps': 2.5}, '--config.some.steps=2.5: wanted at least 1'),
    ({'steps': True}, '--config.some.steps=True: wanted at least 1'),
    ({'name': 3}, '--config.some.name=3: wanted a name'),
    ({'name': ' '}, "--config.some.name=' ': wanted a name"),
    ({'on': 1}, '--config.some.on=1: wanted True or False'),
    ({'rate': 'fast'}, "--config.some.rate='fast': wanted above 0"),
    ({'rate': True}, '--config.some.rate=True: wanted above 0'),
    ({'rate': math.nan}, '--config.some.rate=nan: wanted above 0'),
    ({'rate': math.inf}, '--config.some.rate=inf: wanted above 0'),
    ({'rate': None}, '--config.some.rate=None: wanted above 0'),
    ({'limit': 'x'}, "--config.some.limit='x': wanted a share above 0, up to 1, or None"),
    ({'sizes': (1, 'b')}, "--config.some.sizes=(1, 'b'): wanted positive frame budgets"),
    ({'sizes': 4}, '--config.some.sizes=4: wanted positive frame budgets'),
    ({'lanes': ((1, 2, 3),)}, '--config.some.lanes=((1, 2, 3),): wanted (context, slots) pairs'),
    ({'weights': {'a': 1.0, 'b': 0}}, '--config.some.weights.b=0.0: wanted above 0'),
    ({'wheel': {'low': -1, 'high': 2}}, '--config.some.wheel.low=-1: wanted at least 0 (0: flat)'),
    (
      {'wheel': {'low': 3, 'high': 2}},
      '--config.some.wheel.low=3: wanted at most some.wheel.high=2',
    ),
    (
      {'spare': {'low': 3, 'high': 2}},
      '--config.some.spare.low=3: wanted at most some.spare.high=2',
    ),
    ({'stray': 1}, 'config.some.stray: Cart has no such field; it has lanes, limit, name, on, '),
    ({'wheel': None}, '--config.some.wheel=None: wanted a section with high, low'),
    ({'wheel': 3}, '--config.some.wheel=3: wanted a section with high, low'),
    ({'spare': ()}, '--config.some.spare=(): wanted a section with high, low'),
    ({'weights': 3}, "--config.some.weights=3: wanted a section of names of one's own"),
    ({'weights': None}, "--config.some.weights=None: wanted a section of names of one's own"),
    ({'steps': {'a': 1}}, "--config.some.steps={'a': 1}: wanted at least 1"),
    ({'stray': 1, 'also': 2}, 'config.some.also: Cart has no such field'),
    ({'wheel': {'low': 1, 'hig': 2}}, 'config.some.wheel.hig: Wheel has no such field'),
  ],
)
def test_a_knob_of_another_type_value_or_name_is_refused_by_its_place(changes, message):
  with pytest.raises(ConfigError) as caught:
    built(**changes)
  assert str(caught.value).startswith(message) and '\n' not in str(caught.value)


def test_a_missing_knob_is_named_and_a_section_that_may_be_none_may_be_missing():
  section = {name: value for name, value in GIVEN.items() if name != 'name'}
  with pytest.raises(ConfigError, match=r'^config.some: name is missing; add it to the recipe'):
    options.build(Cart, section, 'some')
  with pytest.raises(ConfigError, match=r'^config: wheel is missing; add it to the recipe'):
    options.build(Cart, {name: value for name, value in GIVEN.items() if name != 'wheel'})
  assert built().spare is None and built(spare=None).spare is None


def test_what_is_at_the_top_is_named_without_a_section():
  for changes, message in (
    ({'steps': 0}, '--config.steps=0: wanted at least 1'),
    ({'wheel': {'low': 3, 'high': 2}}, '--config.wheel.low=3: wanted at most wheel.high=2'),
    ({'stray': 1}, 'config.stray: Cart has no such field'),
  ):
    with pytest.raises(ConfigError) as caught:
      built('', **changes)
    assert str(caught.value).startswith(message)


def test_options_check_themselves_however_they_are_made():
  for make in (lambda: Wheel(-1, 2), lambda: Wheel(1, 2).replace(low=-1)):
    with pytest.raises(options.KnobError) as caught:
      make()
    assert str(caught.value) == 'Wheel.low=-1: wanted at least 0 (0: flat)'
  with pytest.raises(ConfigError, match=r'^Wheel.low=3: wanted at most high=2$'):
    Wheel(3, 2)
  with pytest.raises(ConfigError, match=r'^Cart.weights.b=-1.0: wanted above 0$'):
    CART.replace(weights={'a': 1.0, 'b': -1.0})
  for changes, said in (
    ({'wheel': {'low': 1, 'high': 2}}, "Cart.wheel={'low': 1, 'high': 2}: wanted Wheel"),
    ({'wheel': None}, 'Cart.wheel=None: wanted Wheel'),
    ({'spare': 3}, 'Cart.spare=3: wanted Wheel or None'),
    ({'sizes': [1, 2]}, 'Cart.sizes=[1, 2]: wanted tuple'),
  ):
    with pytest.raises(options.KnobError) as caught:
      CART.replace(**changes)
    assert str(caught.value) == said
  with pytest.raises(dataclasses.FrozenInstanceError):
    CART.steps = 3
  with pytest.raises(TypeError):
    CART.replace(stray=1)


def test_a_knob_error_names_its_place_in_a_recipe():
  error = options.KnobError('Wheel', 'low', 3, f'at most {options.SECTION}high=2')
  assert str(error) == 'Wheel.low=3: wanted at most high=2'
  assert str(error.at('a.b')) == '--config.a.b.low=3: wanted at most a.b.high=2'
  assert str(error.at('')) == '--config.low=3: wanted at most high=2'
  assert type(error.at('')) is ConfigError


@dataclasses.dataclass(frozen=True)
class Sledge(Cart):
  rate: Annotated[float, options.from_(0)]  # may stand still


def test_a_subclass_may_give_a_field_another_rule():
  numbers = {field.name: getattr(CART, field.name) for field in dataclasses.fields(CART)}
  assert Sledge(**{**numbers, 'rate': 0.0}).rate == 0.0
  with pytest.raises(ConfigError, match=r'^Sledge.rate=-1.0: wanted at least 0$'):
    Sledge(**{**numbers, 'rate': -1.0})
  with pytest.raises(ConfigError, match=r'^Sledge.steps=0: wanted at least 1$'):
    Sledge(**{**numbers, 'steps': 0})


def test_the_schema_has_the_rule_of_every_knob_by_its_path():
  rules = options.schema(Cart)
  assert list(rules) == [
    'steps',
    'rate',
    'name',
    'on',
    'limit',
    'sizes',
    'lanes',
    'weights.*',
    'wheel.low',
    'wheel.high',
    'spare.low',
    'spare.high',
  ]
  assert rules['wheel.low'].wanted == 'at least 0 (0: flat)'
  assert options.schema(Wheel, 'a.').keys() == {'a.low', 'a.high'}
  assert options.rule_of(rules, 'spare.high') is rules['spare.high']
  assert options.rule_of(rules, 'weights.mine') is rules['weights.*']
  assert options.rule_of(rules, 'weights') is None and options.rule_of(rules, 'stray') is None


def test_leaves_are_the_knobs_and_their_values():
  assert dict(options.leaves(CART)) == {
    'steps': 2,
    'rate': 0.5,
    'name': 'a',
    'on': True,
    'limit': None,
    'sizes': (1, 2),
    'lanes': ((1, 2),),
    'weights.a': 1.0,
    'wheel.low': 1,
    'wheel.high': 2,
  }
  spare = dict(options.leaves(CART.replace(spare=Wheel(0, 1))))
  assert (spare['spare.low'], spare['spare.high']) == (0, 1)


def test_to_dict_is_the_way_back_of_build():
  assert options.to_dict(CART) == GIVEN
  for one in (CART, CART.replace(spare=Wheel(0, 1), limit=0.5, weights={})):
    assert options.build(Cart, options.to_dict(one)) == one
    assert options.build(Cart, ConfigDict(options.to_dict(one))) == one


def test_to_dict_hands_out_copies():
  options.to_dict(CART)['weights']['b'] = 5.0
  assert dict(CART.weights) == {'a': 1.0}


@dataclasses.dataclass(frozen=True)
class Bigger:
  low: int
  high: int
  middle: float


def test_extended_takes_what_is_shared_and_what_is_given():
  assert options.extended(Bigger, Wheel(1, 2), middle=1.5) == Bigger(1, 2, 1.5)
  assert options.extended(Bigger, Wheel(1, 2), middle=1.5, high=9) == Bigger(1, 9, 1.5)
  assert options.extended(Wheel, Bigger(1, 2, 1.5)) == Wheel(1, 2)
  with pytest.raises(TypeError, match='middle'):
    options.extended(Bigger, Wheel(1, 2))


def test_require_says_the_flag_the_value_and_what_is_allowed():
  options.require(1, 'at least 1', True, 'rollout.steps')
  with pytest.raises(ConfigError, match=r'^--config.rollout.steps=0: wanted at least 1$'):
    options.require(0, 'at least 1', False, 'rollout.steps')


NUMBER = (None, 'x', '1', True, (1,), math.nan, math.inf, -math.inf)


@pytest.mark.parametrize(
  ('rule', 'wanted', 'good', 'bad'),
  [
    (whole(2), 'at least 2', (2, 10**12), (1, 2.0, *NUMBER)),
    (whole(0, 5), '0 to 5', (0, 5), (-1, 6)),
    (whole(0, note='0: all'), 'at least 0 (0: all)', (0,), (-1,)),
    (options.above(0, 'x'), 'above 0 (x)', (1, 1e-300), (0, 0.0, -1, *NUMBER)),
    (options.from_(0), 'at least 0', (0, 0.0, 3), (-1e-9, *NUMBER)),
    (options.SHARE, 'a share, 0 to 1', (0, 1, 0.5), (-0.1, 1.1, *NUMBER)),
    (options.PART, 'a share above 0, up to 1', (1, 1e-9), (0, 1.1, *NUMBER)),
    (options.DECAY, 'at least 0 and below 1', (0, 0.999), (1, -0.1, *NUMBER)),
    (options.INSIDE, 'above 0 and below 1', (0.5,), (0, 1, *NUMBER)),
    (options.SEED, '0 to 2147483647', (0, 2**31 - 1), (-1, 2**31)),
    (options.TOP_K, 'at least 1, or -1 for all', (-1, 1), (0, -2, 1.0)),
    (options.QUALITY, '0 (PNG) to 95', (0, 95), (-1, 96)),
    (options.PIXELS, 'at least 1024 (one token)', (1024,), (1023,)),
    (options.multiple_of(4), 'a multiple of 4, at least that', (4, 8), (0, 2, -4, 4.0)),
    (options.one_of('a', 'b'), 'one of a, b', ('a', 'b'), ('c', '', None, ('a',))),
    (options.either('a', 'b'), "'a' or 'b'", ('a',), ('c', None)),
    (options.some_of('a', 'b'), 'some of a, b, or () for all', ((), ('b', 'a')), ('a', ('c',))),
    (options.span(1), '(low, high) with 1 <= low <= high', ((1, 1), [2, 5]), ((0, 1), (2, 1), (1,), 3)),
    (options.span(0), '(low, high) with 0 <= low <= high', ((0, 0),), ((0, 1.0), (True, 2))),
    (optional(whole(1)), 'at least 1, or None', (None, 1), (0,)),
    (options.FLAG, 'True or False', (True, False), (0, 1, 'True', None)),
    (options.NAME, 'a name', ('a', '0'), ('', ' \t', None)),
    (options.PROSE, 'text', ('', 'None'), (None, 1)),
    (options.TEXT, "text (for none: '', nothing behind the =)", ('', 'a'), ('None', 'null', None)),
    (options.URL, 'the address of', ('', 'http://a', 'https://a/v1'), ('a:1', 'ftp://a', None)),
    (options.URLS, 'addresses, as in', ((), ('http://a:1',)), ('http://a:1', ('a:1',))),
    (options.FILES, 'paths or patterns', ((), ('a/*.parquet',)), ('a', ('',), (1,))),
    (options.NAMES, 'names, or () for all', ((), ('a',)), ('a', ('',), (1,))),
    (options.WORDS, 'words, as typed', ((), ('', '--a')), ('a', (1,))),
    (options.BUDGETS, 'positive frame budgets', ((4, 4),), ((), (0,), (1.0,), 4)),
    (options.DIFFERENT_BUDGETS, 'positive frame budgets, each once', ((4, 8),), ((4, 4),)),
    (options.GPUS, 'different numbers of GPUs, or ()', ((), (0, 1)), ((0, 0), (-1,), 0)),
    (options.LANES, '(context, slots) pairs', (((1, 2),),), ((), ((1, 0),), ((1,),), (1, 2))),
    (options.SOURCE, 'a weight, a first step', ((2.0, 0, None), (0, 1, 1)), ((1.0, 5, 2), (1.0, 0), (-1, 0, None), (math.nan, 0, None))),
  ],
)  # fmt: skip
def test_a_rule_lets_in_what_it_says(rule, wanted, good, bad):
  assert rule.wanted.startswith(wanted)
  assert [one for one in good if not rule.holds(one)] == []
  assert [one for one in bad if rule.holds(one)] == []
