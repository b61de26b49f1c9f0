"""Options: typed sections of a recipe that check themselves, and the rules of single values.

    @dataclasses.dataclass(frozen=True)
    class AgentOptions(Options):
      max_turns: Annotated[int, whole(0)]  # rounds of tools before the answer is asked for

A field is a knob. Its annotation holds its type and rule, and the comment after it explains its
meaning. Construction refuses a value that breaks its rule. `build` makes options from plain
sections (a ConfigDict, a dict), and `to_dict` is its inverse. `schema` lists the knobs of a recipe.
"""

import dataclasses
import functools
import math
import types as python_types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self, TypeVar

from paravt_jax.errors import ConfigError

T = TypeVar('T')
# The upper limit of every knob except a QUANTITY: counts are int32, and the system limits timeouts.
LARGEST = 2**31 - 1
SECTION = '<section>'  # placeholder in KnobError.wanted for the path of the knob's section
OWN_NAMES = "a section of names of one's own, which may be {}"


@dataclasses.dataclass(frozen=True)
class Rule:
  """The allowed values of a knob."""

  wanted: str  # description for error messages
  holds: Callable[[Any], bool]  # whether a value is allowed; it must accept any type


@dataclasses.dataclass(frozen=True)
class Members:
  """The rule for each value of a mapping whose keys the user chooses."""

  rule: Rule


class KnobError(ConfigError):
  """A knob that breaks its rule."""

  def __init__(self, kind: str, knob: str, value: Any, wanted: str):
    self.knob, self.value, self.wanted = knob, value, wanted
    super().__init__(f'{kind}.{knob}={value!r}: wanted {wanted.replace(SECTION, "")}')

  def at(self, where: str) -> ConfigError:
    """Returns a ConfigError that names the knob by its path in a recipe ('' is the top level)."""
    section = f'{where}.' if where else ''
    wanted = self.wanted.replace(SECTION, section)
    return ConfigError(f'--config.{section}{self.knob}={self.value!r}: wanted {wanted}')


@dataclasses.dataclass(frozen=True)
class Options:
  """The base class of all options: a frozen dataclass that checks its annotated fields.

  Raises:
    KnobError: at construction, for the first field that breaks its rule.
  """

  def __post_init__(self) -> None:
    for name, rule in _own_rules(type(self)).items():
      value = getattr(self, name)
      members = isinstance(rule, Members)
      if members and not isinstance(value, Mapping):
        self.refuse(name, OWN_NAMES)
      for key, one in value.items() if members else [('', value)]:
        found = rule.rule if members else rule
        path = f'{name}.{key}' if key else name
        if not found.holds(one):
          raise KnobError(type(self).__name__, path, one, found.wanted)
        if found is not QUANTITY and _is_too_large(one):
          raise KnobError(type(self).__name__, path, one, f'at most {LARGEST}')
    for name, kinds in _field_types(type(self)).items():
      if not isinstance(getattr(self, name), kinds):
        self.refuse(name, ' or '.join(kind.__name__ for kind in kinds).replace('NoneType', 'None'))

  def replace(self, **changes: Any) -> Self:
    """Returns a copy with changed values, which are checked again."""
    return dataclasses.replace(self, **changes)

  def refuse(self, knob: str, wanted: str) -> typing.NoReturn:
    """Raises the KnobError of a field. `wanted` may use SECTION to name neighbouring knobs."""
    raise KnobError(type(self).__name__, knob, getattr(self, knob), wanted)

  def require_order(self, low: str, high: str) -> None:
    """Raises KnobError unless the first field is at most the second."""
    if getattr(self, low) > getattr(self, high):
      self.refuse(low, f'at most {SECTION}{high}={getattr(self, high)!r}')


def _is_too_large(value: Any) -> bool:
  """Returns whether a number, or a member of a tuple, exceeds LARGEST."""
  if isinstance(value, tuple | list):
    return any(map(_is_too_large, value))
  return type(value) in (int, float) and value > LARGEST


def _own_rules(kind: type) -> dict[str, Rule | Members]:
  """Returns the rules of a class's fields by name, without those of nested sections."""
  found: dict[str, Rule | Members] = {}
  for name, hint in typing.get_type_hints(kind, include_extras=True).items():
    for extra in getattr(hint, '__metadata__', ()):
      if isinstance(extra, Rule | Members):
        found[name] = extra
  return found


@functools.cache
def _field_types(kind: type) -> Mapping[str, tuple[type, ...]]:
  """Returns the types of a class's sections and tuples by field; rules check the other values."""
  found: dict[str, tuple[type, ...]] = {}
  for name, hint in typing.get_type_hints(kind).items():
    section, none = section_of(hint), (type(None),) if _is_union(hint) else ()
    if section is not None:
      found[name] = (section, *none)
    elif typing.get_origin(hint) is tuple:
      found[name] = (tuple,)
  return found


def section_of(hint: Any) -> type | None:
  """Returns the options class in a field's type, which may be `Class | None`. None for plain
  values.
  """
  if typing.get_origin(hint) is typing.Annotated:
    return None
  members = typing.get_args(hint) if _is_union(hint) else (hint,)
  kinds = [one for one in members if isinstance(one, type) and dataclasses.is_dataclass(one)]
  return kinds[0] if kinds else None


def _is_union(hint: Any) -> bool:
  return typing.get_origin(hint) in (typing.Union, python_types.UnionType)


def schema(kind: type, prefix: str = '') -> dict[str, Rule]:
  """Returns the rules of a recipe's knobs by path: 'agent.max_turns', or 'sources.*' if users
  choose keys.
  """
  rules, found = _own_rules(kind), {}
  for name, hint in typing.get_type_hints(kind, include_extras=True).items():
    section = section_of(hint)
    rule = rules.get(name)
    if section is not None:
      found |= schema(section, f'{prefix}{name}.')
    elif isinstance(rule, Members):
      found[f'{prefix}{name}.*'] = rule.rule
    elif rule is not None:
      found[f'{prefix}{name}'] = rule
  return found


def rule_of(rules: Mapping[str, Rule], knob: str) -> Rule | None:
  """Returns the rule of a knob by its path or that of its open section, else None."""
  return rules.get(knob) or rules.get(f'{knob.rpartition(".")[0]}.*')


def leaves(options: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Yields each knob's path and value, as ('agent.max_turns', 3). Absent sections are skipped."""
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if dataclasses.is_dataclass(value):
      yield from leaves(value, f'{prefix}{field.name}.')
    elif isinstance(value, Mapping):
      yield from ((f'{prefix}{field.name}.{key}', one) for key, one in value.items())
    elif value is not None or section_of(typing.get_type_hints(type(options))[field.name]) is None:
      yield f'{prefix}{field.name}', value


def to_dict(options: Any) -> dict[str, Any]:
  """Returns options as nested dicts, the inverse of `build`. Sections that are None are omitted."""
  found: dict[str, Any] = {}
  hints = typing.get_type_hints(type(options), include_extras=True)
  for field in dataclasses.fields(options):
    value = getattr(options, field.name)
    if dataclasses.is_dataclass(value):
      found[field.name] = to_dict(value)
    elif isinstance(value, Mapping):
      found[field.name] = dict(value)
    elif value is not None or section_of(hints[field.name]) is None:
      found[field.name] = value
  return found


def build(kind: type[T], section: Mapping[str, Any], where: str = '') -> T:
  """Builds a tree of options from plain sections. Every field must be present and have its type.

  Args:
    kind: the options class of the section.
    section: its knobs. A nested section may be missing if its type allows None.
    where: the section's path in the recipe, for messages; '' is the whole recipe.

  Raises:
    ConfigError: a knob is missing, unknown, of another type, or breaks its rule.
  """
  hints = typing.get_type_hints(kind)
  fields = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
  place = f'config.{where}' if where else 'config'
  if not hasattr(section, 'items'):
    raise ConfigError(f'--{place}={section!r}: wanted a section with {", ".join(sorted(fields))}')
  for name in sorted(set(section) - fields):
    raise ConfigError(
      f'{place}.{name}: {kind.__name__} has no such field; it has {", ".join(sorted(fields))}'
    )
  values: dict[str, Any] = {}
  for name in (one for one in hints if one in fields):
    path = f'{where}.{name}' if where else name
    inner = section_of(hints[name])
    may_lack = inner is not None and _is_union(hints[name])
    if name in section and inner is not None and not (may_lack and section[name] is None):
      values[name] = build(inner, section[name], path)
    elif name in section:
      values[name] = _convert(section[name], hints[name], f'config.{path}')
    elif may_lack:
      values[name] = None
    else:
      raise ConfigError(f'{place}: {name} is missing; add it to the recipe')
  try:
    return kind(**values)
  except KnobError as error:
    raise error.at(where) from None


def build_used(kind: type[T], section: Mapping[str, Any]) -> T:
  """Builds options from a section that may have unknown fields.

  The saved recipe of another version may have some. Fields that the class and its sections do not
  declare are ignored.

  Raises:
    ConfigError: a declared knob is missing, of another type, or breaks its rule.
  """
  return build(kind, _drop_unknown(kind, section))


def _drop_unknown(kind: type, section: Any) -> Any:
  """Returns a section without the fields that a class does not declare, recursively."""
  if not hasattr(section, 'items'):
    return section
  hints = typing.get_type_hints(kind)
  found = {name: value for name, value in section.items() if name in hints}
  for name, value in found.items():
    inner = section_of(hints[name])
    found[name] = value if inner is None else _drop_unknown(inner, value)
  return found


def _convert(value: Any, hint: Any, where: str) -> Any:
  """Converts `value` to its type hint (int to float, list to tuple). The field's rule checks the
  rest.

  A ConfigDict is not a Mapping, so the test for mappings is the attribute `items`.
  """
  if _is_union(hint):
    if value is None:
      return None
    hint = next(one for one in typing.get_args(hint) if one is not type(None))
  origin = typing.get_origin(hint)
  if hasattr(value, 'items'):
    members = typing.get_args(hint)
    inner = members[1] if len(members) == 2 else Any
    return {key: _convert(one, inner, f'{where}.{key}') for key, one in value.items()}
  if origin is tuple and isinstance(value, list | tuple):
    return _convert_tuple(tuple(value), typing.get_args(hint), where)
  if hint is float and type(value) is int:
    return float(value)
  return value


def _convert_tuple(value: tuple, hints: tuple[Any, ...], where: str) -> tuple:
  """Converts each member to its hint. An ellipsis at the end of `hints` allows any number of
  members.
  """
  repeated = len(hints) == 2 and hints[1] is Ellipsis
  if not repeated and len(value) != len(hints):
    return value  # the rule refuses it
  kinds = [hints[0]] * len(value) if repeated else hints
  return tuple(_convert(one, kind, where) for one, kind in zip(value, kinds))


def require(value: Any, wanted: str, ok: bool, knob: str) -> None:
  """Raises a ConfigError that states the allowed values of a knob, unless `ok`."""
  if not ok:
    raise ConfigError(f'--config.{knob}={value!r}: wanted {wanted}')


def extended(kind: type[T], base: Any, **more: Any) -> T:
  """Builds `kind` from the fields that it shares with `base` and the other fields in `more`."""
  names = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
  shared = {field.name for field in dataclasses.fields(base)} & names - more.keys()
  return kind(**{name: getattr(base, name) for name in shared}, **more)


# Rules


def whole(least: int, most: int | None = None, note: str = '') -> Rule:
  """An integer of at least `least` and at most `most`. note: the meaning of a special value."""
  wanted = f'at least {least}' if most is None else f'{least} to {most}'
  return Rule(
    f'{wanted} ({note})' if note else wanted,
    lambda value: type(value) is int and least <= value and (most is None or value <= most),
  )


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def above(least: float, note: str = '') -> Rule:
  """A finite number greater than `least`."""
  return Rule(
    f'above {least:g}' + (f' ({note})' if note else ''),
    lambda value: _is_number(value) and value > least,
  )


def from_(least: float, note: str = '') -> Rule:
  """A finite number, `least` or more."""
  return Rule(
    f'at least {least:g}' + (f' ({note})' if note else ''),
    lambda value: _is_number(value) and value >= least,
  )


def some_of(*names: str) -> Rule:
  """A tuple of some of these names. It may be empty."""
  return Rule(
    f'some of {", ".join(names)}, or () for all',
    lambda value: isinstance(value, tuple | list) and all(one in names for one in value),
  )


def one_of(*names: str) -> Rule:
  """One of these words."""
  return Rule(f'one of {", ".join(names)}', lambda value: _is_text(value) and value in names)


def multiple_of(number: int) -> Rule:
  """A positive multiple of an integer."""
  return Rule(
    f'a multiple of {number}, at least that',
    lambda value: type(value) is int and value >= number and value % number == 0,
  )


def either(*names: str) -> Rule:
  """One of two words."""
  return Rule(' or '.join(map(repr, names)), lambda value: _is_text(value) and value in names)


def optional(rule: Rule) -> Rule:
  """The rule, or None."""
  return Rule(f'{rule.wanted}, or None', lambda value: value is None or rule.holds(value))


def each(
  wanted: str, holds: Callable[[Any], bool], least: int = 0, *, differ: bool = False
) -> Rule:
  """A tuple of at least `least` members that all satisfy `holds`. differ: members must be
  distinct.
  """

  def valid(value: Any) -> bool:
    members = isinstance(value, tuple | list) and len(value) >= least and all(map(holds, value))
    return members and not (differ and len(set(value)) < len(value))

  return Rule(wanted, valid)


def span(least: int) -> Rule:
  """(low, high), both included."""

  def holds(value: Any) -> bool:
    if not isinstance(value, tuple | list) or len(value) != 2:
      return False
    return all(type(one) is int for one in value) and least <= value[0] <= value[1]

  return Rule(f'(low, high) with {least} <= low <= high', holds)


def _is_source(value: Any) -> bool:
  if not isinstance(value, tuple | list) or len(value) != 3:
    return False
  weight, first, last = value
  steps = whole(0).holds(first) and (last is None or (whole(0).holds(last) and first <= last))
  return from_(0).holds(weight) and steps


def _is_lanes(value: Any) -> bool:
  def is_pair(one: Any) -> bool:
    pair = isinstance(one, tuple | list) and len(one) == 2
    return pair and all(type(part) is int and part >= 1 for part in one)

  return isinstance(value, tuple | list) and bool(value) and all(map(is_pair, value))


def _is_address(value: Any) -> bool:
  return _is_text(value) and value.startswith(('http://', 'https://'))


def _is_count(value: Any) -> bool:
  return type(value) is int and value >= 1


FLAG = Rule('True or False', lambda value: type(value) is bool)
PROSE = Rule('text', _is_text)
NAME = Rule('a name', lambda value: _is_text(value) and bool(value.strip()))
# A path, a name or a word. 'None' is refused: its writer means no value, not a folder of that name.
TEXT = Rule(
  "text (for none: '', nothing behind the =)",
  lambda value: _is_text(value) and value not in ('None', 'none', 'null'),
)
URL = Rule(
  "the address of an OpenAI-compatible server, such as http://127.0.0.1:30000/v1, or ''",
  lambda value: value == '' or _is_address(value),
)
URLS = each("addresses, as in ('http://127.0.0.1:30000',)", _is_address)
FILES = each(
  "paths or patterns, as in ('rows/*.parquet',)", lambda one: _is_text(one) and bool(one)
)
NAMES = each('names, or () for all', lambda one: _is_text(one) and bool(one))
WORDS = each('words, as typed on a command line', _is_text)
SHARE = Rule('a share, 0 to 1', lambda value: _is_number(value) and 0 <= value <= 1)
PART = Rule('a share above 0, up to 1', lambda value: _is_number(value) and 0 < value <= 1)
DECAY = Rule('at least 0 and below 1', lambda value: _is_number(value) and 0 <= value < 1)
INSIDE = Rule('above 0 and below 1', lambda value: _is_number(value) and 0 < value < 1)
SEED = whole(0, 2**31 - 1)
COUNT = whole(1)
PROCESSES = Rule('at least 1, at most 1024', whole(1, 1024).holds)
RETRIES = Rule('at least 0, at most 100', whole(0, 100).holds)  # the wait doubles every time
# The limits of both kinds of servers, embedded and SGLang.
TEMPERATURE = Rule(
  'at least 0, at most 100 (0: greedy)', lambda value: _is_number(value) and 0 <= value <= 100
)
EXPLORING = Rule(
  'above 0 (RL must explore), at most 100', lambda value: value != 0 and TEMPERATURE.holds(value)
)
TOP_P = Rule(
  'a share above 0, up to 1 (at least 1e-06)',
  lambda value: _is_number(value) and 1e-6 <= value <= 1,
)
QUANTITY = above(0)  # of bytes, operations or parameters: of any size
POSITIVE = above(0)
BUDGETS = each('positive frame budgets', _is_count, 1)
DIFFERENT_BUDGETS = each('positive frame budgets, each once', _is_count, 1, differ=True)
PIXELS = whole(1024, note='one token')
GPUS = each(
  'different numbers of GPUs, or ()', lambda one: type(one) is int and one >= 0, differ=True
)
TOP_K = Rule('at least 1, or -1 for all', lambda value: _is_count(value) or value == -1)
QUALITY = Rule('0 (PNG) to 95', whole(0, 95).holds)
DTYPE = one_of('bfloat16', 'float32')
KIND = either('world', 'files')
SOURCE = Rule('a weight, a first step and a last one or None, as in (2.0, 0, None)', _is_source)
LANES = Rule('(context, slots) pairs of positive integers', _is_lanes)
