"""Knobs on the command line: `--config.some.knob=value`, read by the type that the knob has.

--config.frames.gating      --noconfig.frames.gating: true and false; also =True, =False, =1, =0
--config.rollout.steps=40   whole numbers; also =1e3, =8.0, =0x10
--config.frames.budgets=4,8 tuples; also ="(4, 8)", ="[4, 8]", = (empty); given twice, they add up
--config.reward.grounding_threshold=None      nothing, where the knob's rule allows it
--config.agent.think_prefix='<think>\\n'       text: \\n is a newline, \\t a tab, \\\\ a backslash
--config.sources="{'mine': (2.0, 0, None)}"   several knobs of a section at once
"""

import ast
import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from paravt_jax.errors import ConfigError
from paravt_jax.options import Rule, rule_of

FLAG = re.compile(r'--?(?P<no>no)?config\.(?P<knob>[^=]+)(?:=(?P<text>.*))?', re.DOTALL)
NUMBER = re.compile(r'-\.?\d')
NOTHING = ('None', 'none', 'null')
BOOLEANS = {'true': True, 't': True, '1': True, 'false': False, 'f': False, '0': False}
ESCAPES = {'n': '\n', 't': '\t', '\\': '\\'}


@dataclasses.dataclass(frozen=True)
class Override:
  """One flag. text: the part after `=`, None without a value. negated: --noconfig.knob."""

  knob: str
  text: str | None
  negated: bool

  def __str__(self) -> str:
    return f'--{"no" * self.negated}config.{self.knob}' + (
      '' if self.text is None else f'={self.text}'
    )


def split(arguments: Sequence[str]) -> tuple[list[str], list[Override]]:
  """Returns (arguments that are not knobs, knobs), both in their order.

  A knob's value follows its `=` or is the next argument.
  """
  rest: list[str] = []
  found: list[Override] = []
  words = list(arguments)
  while words:
    word = words.pop(0)
    match = FLAG.fullmatch(word)
    if word == '--':
      return [*rest, word, *words], found
    if match is None:
      rest.append(word)
      # the next argument is the recipe, even if it looks like a flag
      if word in ('--config', '-config') and words:
        rest.append(words.pop(0))
      continue
    text = match['text']
    if text is None and not match['no'] and words:
      # the value is the next argument, unless that is another flag
      text = words.pop(0) if not words[0].startswith('-') or NUMBER.match(words[0]) else None
    found.append(Override(match['knob'], text, bool(match['no'])))
  return rest, found


def assign(config: ConfigDict, given: Sequence[Override], rules: Mapping[str, Rule]) -> list[str]:
  """Sets the knobs of a locked recipe, in order.

  Returns:
    A line for each knob that was given more than once: the last one counts.

  Raises:
    ConfigError: a value cannot be read as its knob's type.
    AttributeError, KeyError: an unknown knob, in ConfigDict's words.
  """
  notes, seen = [], set()
  for one in given:
    *path, name = one.knob.split('.')
    if name == 'scale':
      raise ConfigError(
        f'{one}: a scale stands behind the name of its recipe, '
        'as in --config=configs/para_grpo.py:8b'
      )
    holder: Any = config
    for part in path:
      holder = holder[part]
      if not isinstance(holder, ConfigDict):
        raise KeyError(f'{part} is a value and no section')
    value = _read(rules, one, holder[name], holder.get_type(name))
    if one.knob in seen and isinstance(value, tuple):
      before: Any = holder[name]
      value = (*before, *value)
    elif one.knob in seen:
      notes.append(f'--config.{one.knob} is given more than once: {one} counts')
    seen.add(one.knob)
    _set(rules, one, holder, name, value)
  return notes


def _set(
  rules: Mapping[str, Rule], one: Override, holder: ConfigDict, name: str, value: Any
) -> None:
  if not isinstance(value, dict):
    holder[name] = value
  elif f'{one.knob}.*' in rules:  # the user chooses its keys
    with holder.unlocked():
      holder[name] = ConfigDict(value)
  else:
    for key, inner in value.items():
      section: Any = holder[name]
      _set_inner(rules, f'{one.knob}.{key}', section, key, inner)


def _set_inner(
  rules: Mapping[str, Rule], knob: str, holder: ConfigDict, key: str, value: Any
) -> None:
  """Sets one knob of a section that was given as a dict, from the text of its value."""
  before = holder[key]
  if isinstance(before, ConfigDict) and isinstance(value, dict):
    for name, inner in value.items():
      _set_inner(rules, f'{knob}.{name}', before, name, inner)
    return
  both_text = isinstance(before, str) and isinstance(value, str)
  holder[key] = (
    value
    if both_text
    else _read(rules, Override(knob, str(value), False), before, holder.get_type(key))
  )


def _read(rules: Mapping[str, Rule], one: Override, before: Any, kind: type) -> Any:
  """Returns the value that a flag gives to a knob of that type, whose value was `before`."""
  if isinstance(before, ConfigDict):
    return _section(one)
  if one.negated and (kind is not bool or one.text is not None):
    raise ConfigError(
      f'{one}: wanted --config.{one.knob}=value; --no is for knobs that are true or false'
    )
  if one.text is None:
    if kind is not bool:
      raise ConfigError(f'{one}: wanted a value, as in --config.{one.knob}={before}')
    return not one.negated
  if kind is str:
    return unescape(one.text)
  if kind is tuple:
    return _tuple(one, one.text, before)
  if one.text.strip() in NOTHING and kind is not bool:
    rule = rule_of(rules, one.knob)
    if rule is None or not rule.holds(None):
      wanted = 'another value' if rule is None else rule.wanted
      raise ConfigError(f'--config.{one.knob}=None: wanted {wanted}')
    return None
  if kind is bool:
    return _boolean(one, one.text)
  if kind in (int, float):
    return _number(one, one.text, kind)
  return _literal(one, one.text)


def unescape(text: str) -> str:
  r"""Returns text with \n, \t and \\ as newline, tab and backslash. Other backslashes stay."""
  return re.sub(r'\\([nt\\])', lambda match: ESCAPES[match[1]], text)


def _boolean(one: Override, text: str) -> bool:
  value = BOOLEANS.get(text.strip().lower())
  if value is None:
    raise ConfigError(f'{one}: wanted True or False')
  return value


def _number(one: Override, text: str, kind: type) -> int | float:
  text = text.strip()
  try:
    return (
      float(text)
      if kind is float
      else int(text, 0 if text.lower().lstrip('+-').startswith('0x') else 10)
    )
  except ValueError:
    pass
  try:
    value = float(text)
  except ValueError:
    value = float('nan')
  if kind is int and value.is_integer():  # 8.0, 1e3
    return int(value)
  raise ConfigError(f'{one}: wanted a {"whole " if kind is int else ""}number') from None


def _tuple(one: Override, text: str, before: Any) -> tuple[Any, ...]:
  text = text.strip()
  if not text or text in NOTHING:
    return ()
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError):
    if text[0] in '([' or re.search(r"""['"]""", text):
      value = _literal(one, text)
    else:  # words without quotes
      value = (
        [text]
        if re.search(r'[(\[]', text)
        else [word.strip() for word in text.split(',') if word.strip()]
      )
      if before and all(type(member) in (int, float) for member in before):
        value = _numbers(one, value, before)
  return tuple(value) if isinstance(value, list | tuple) else (value,)


def _numbers(one: Override, words: Sequence[str], before: Sequence[Any]) -> list[int | float]:
  """Returns words as numbers of a knob. `before` is the knob's old value."""
  kind = int if all(type(member) is int for member in before) else float
  found = []
  for place, word in enumerate(words, 1):
    try:
      found.append(_number(one, word, kind))
    except ConfigError:
      example = ','.join(map(str, before))
      raise ConfigError(
        f'{one}: member {place} is {word!r}, wanted a {"whole " if kind is int else ""}number, '
        f'as in --config.{one.knob}={example}'
      ) from None
  return found


def _section(one: Override) -> dict[str, Any]:
  value = _literal(one, one.text or '')
  if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
    raise ConfigError(
      f'{one}: {one.knob} is a section, wanted one of its knobs, '
      f'as in --config.{one.knob}.knob=value'
    )
  return value


def _literal(one: Override, text: str) -> Any:
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
    said = str(error).splitlines()[0]
    reason = 'a word without quotes' if said.startswith('malformed node') else said
    raise ConfigError(
      f'{one}: cannot be read ({reason}); wanted Python values, with quotes around text'
    ) from error
