"""The knob reference: meaning, allowed values, and value at each scale of every recipe field.

`collect` reads it from the recipe's classes: rules from the types, meanings from the comments on
fields. `list_lines` formats it for the terminal, `markdown` as tables for a guide.
"""

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.recipes import SFTRecipe

WIDTH = 100  # of a line on the terminal
LONGEST = 140  # characters of a value in a table; a longer one is cut
# Short forms of rules, for the table.
SHORT = {options.TEXT.wanted: 'text', options.URL.wanted: "an address, or ''"}


@dataclasses.dataclass(frozen=True)
class Knob:
  """One entry of the reference."""

  path: str  # as after --config.
  values: Mapping[str, Any]  # by scale; a scale without the knob is missing
  wanted: str  # allowed values
  meaning: str  # the comment on its field

  @property
  def section(self) -> str:
    """Returns the section's path: 'server.watch', or '' at the top level."""
    return self.path.removesuffix('.*').rpartition('.')[0]


def collect(recipe: type, scales: Mapping[str, Any]) -> list[Knob]:
  """Returns all knobs of a recipe class, in field order.

  scales: a typed recipe of each scale.
  """
  values: dict[str, dict[str, Any]] = {}
  for scale, typed in scales.items():
    for path, value in options.leaves(typed):
      values.setdefault(path, {})[scale] = value
  found = []
  for path, (rule, meaning) in _describe_fields(recipe).items():
    held = values.get(path, {})
    if path.endswith('.*'):  # the user chooses the names: one entry has all values in use
      members = {one: value for one, value in values.items() if one.startswith(path[:-1])}
      held = {
        '': {one.removeprefix(path[:-1]): next(iter(v.values())) for one, v in members.items()}
      }
    found.append(Knob(path, held, rule, meaning))
  return found


def _describe_fields(kind: type, prefix: str = '') -> dict[str, tuple[str, str]]:
  """Returns (allowed values, meaning) of each knob below a class, by path."""
  found: dict[str, tuple[str, str]] = {}
  rules, meanings = options.schema(kind, prefix), comments(kind)
  hints = typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    path = f'{prefix}{field.name}'
    section = options.section_of(hints[field.name])
    if section is not None:
      if section is not SFTRecipe or kind is SFTRecipe:  # a cold start has the same entries as SFT
        found |= _describe_fields(section, f'{path}.')
      continue
    place = path if path in rules else f'{path}.*'
    found[place] = (rules[place].wanted, meanings.get(field.name, ''))
  return found


def comments(kind: type) -> dict[str, str]:
  """Returns the comments on a dataclass's fields, above a field or on its line.

  A field without a comment in a subclass has the base class's comment.
  """
  found: dict[str, str] = {}
  for one in reversed(kind.__mro__):
    if dataclasses.is_dataclass(one) and '__annotations__' in vars(one):
      found |= {name: text for name, text in _own_comments(one).items() if text}
  return found


def _own_comments(kind: type) -> dict[str, str]:
  lines = textwrap.dedent(inspect.getsource(kind)).splitlines()
  (tree,) = ast.parse('\n'.join(lines)).body
  found: dict[str, str] = {}
  for node in tree.body if isinstance(tree, ast.ClassDef) else ():
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
      continue
    above, first = [], node.lineno - 2
    while lines[first].strip().startswith('#'):
      above.insert(0, lines[first].strip().lstrip('# '))
      first -= 1
    last = lines[(node.end_lineno or node.lineno) - 1]
    behind = last[node.end_col_offset :].partition('#')[2].strip()
    found[node.target.id] = ' '.join([*above, behind]).strip()
  return found


def abouts(kind: type, prefix: str = '') -> dict[str, str]:
  """Returns what each section of a recipe is about, by path: the first lines of its class's
  docstring.
  """
  found: dict[str, str] = {}
  for name, hint in typing.get_type_hints(kind, include_extras=True).items():
    section = options.section_of(hint)
    if section is not None:
      first = (inspect.getdoc(section) or '').partition('\n\n')[0]
      found[f'{prefix}{name}'] = ' '.join(first.split())
      found |= abouts(section, f'{prefix}{name}.')
  return found


def format_value(knob: Knob, write: Callable[[Any], str] = repr) -> str:
  """Formats a knob's value. Values that differ by scale give '512 at :tiny, else 32768'."""
  scales: dict[str, list[str]] = {}  # value -> its scales
  for scale, value in knob.values.items():
    scales.setdefault(write(value), []).append(scale)
  if not scales:
    return '-'
  most = max(scales, key=lambda value: len(scales[value]))  # the first of equals
  parts = [
    f'{value} at {" ".join(f":{scale}" for scale in where)}'
    for value, where in scales.items()
    if value != most
  ]
  return ', '.join([*parts, f'else {most}' if parts else most])


def list_lines(found: Sequence[Knob], about: Mapping[str, str]) -> list[str]:
  """Formats knobs as lines for the terminal, below the title of their section."""
  lines: list[str] = []
  section: str | None = None
  for knob in found:
    if knob.section != section:
      lines += [''] * bool(lines)
      if knob.section:
        lines += textwrap.wrap(f'{knob.section}: {about[knob.section]}', WIDTH)
    section = knob.section
    lines += textwrap.wrap(
      f'--config.{knob.path} = {format_value(knob)}',
      WIDTH,
      initial_indent='  ',
      subsequent_indent=' ' * 8,
    )
    meaning = f'{knob.meaning.removesuffix(".")}. Wanted: {knob.wanted}'
    lines += textwrap.wrap(meaning, WIDTH, initial_indent=' ' * 6, subsequent_indent=' ' * 6)
  return lines


def select_knobs(found: Sequence[Knob], sections: Sequence[str]) -> list[Knob]:
  """Returns the knobs of the given sections, or all knobs if none is given.

  Raises ConfigError for an unknown section.
  """
  kept: list[Knob] = [] if sections else list(found)
  for section in sections:
    name = section.removeprefix('--config.').removeprefix('config.')
    inside = [one for one in found if one.path == name or one.path.startswith(f'{name}.')]
    if not inside:
      tops = dict.fromkeys(one.path.partition('.')[0] for one in found)
      note = '; a cold start has the knobs of --recipe=sft' * name.startswith('cold_start')
      near = difflib.get_close_matches(name, [*tops, *(one.path for one in found)], 1)
      hint = f'did you mean {near[0]}? ' if near else ''
      wanted = ', '.join(tops)
      raise ConfigError(f'{section}: no such section or knob; {hint}wanted one of {wanted}{note}')
    kept += inside
  return kept


def markdown(recipes: Sequence[tuple[type, Mapping[str, Any]]]) -> str:
  """Formats the reference as Markdown, with one table per section.

  Sections that a later recipe shares with the first one are named there and not repeated.

  Args:
    recipes: each recipe class with a typed recipe of each scale.
  """
  lines: list[str] = []
  known: dict[str, Knob] = {}  # knobs of the first recipe
  for recipe, scales in recipes:
    found = [
      one for one in collect(recipe, scales) if one.path != 'scale'
    ]  # fields that no command line sets
    other = [one for one in found if not _same_knob(one, known.get(one.path))]
    lines += [f'### `{recipe.EXAMPLE}`', '', inspect.cleandoc(recipe.__doc__ or ''), '']
    lines += _as_above(found, other, list(known), recipes[0][0])
    lines += _tables(recipe, len(scales), other)
    known = known or {one.path: one for one in found}
  return '\n'.join(lines).strip()


def _same_knob(one: Knob, other: Knob | None) -> bool:
  if other is None or other.meaning != one.meaning:
    return False
  common = {scale: value for scale, value in other.values.items() if scale in one.values}
  return format_value(dataclasses.replace(other, values=common or other.values)) == format_value(
    one
  )


def _as_above(
  found: Sequence[Knob], other: Sequence[Knob], first: Sequence[str], recipe: Any
) -> list[str]:
  """Lists what a recipe shares with the first one, and what it lacks of it.

  `recipe` is the first recipe, and `first` are its knobs.
  """
  paths, differing = {one.path for one in found}, {one.path for one in other}
  sections = dict.fromkeys(path.partition('.')[0] for path in paths - differing)
  if not sections:
    return []
  names = dict.fromkeys(path.partition('.')[0] for path in first)
  shared = ', '.join(f'`{name}`' for name in names if name in sections)
  lacking = [path for path in first if path.partition('.')[0] in sections and path not in paths]
  text = f'As in `{recipe.EXAMPLE}`, except for knobs that are listed here: {shared}.'
  if lacking:
    text += f' Not in this recipe: {", ".join(f"`{path}`" for path in lacking)}.'
  return [*textwrap.wrap(text, WIDTH), '']


def _tables(recipe: type, scale_count: int, found: Sequence[Knob]) -> list[str]:
  """Formats a heading and a table per section."""
  about, lines = abouts(recipe), []
  sections = dict.fromkeys(one.section for one in found)
  seen: dict[str, str] = {}  # rows of a table -> its section
  for section in sorted(sections, key=bool):  # the top level comes first
    mine = [one for one in found if one.section == section]
    rows = [_row(one) for one in mine]
    alike = '\n'.join(rows).replace(f'`{section}.', '`')
    scales = dict.fromkeys(scale for one in mine for scale in one.values if scale)
    if section:
      some = 0 < len(scales) < scale_count
      at = f' Only at {", ".join(f"`:{scale}`" for scale in scales)}.' if some else ''
      lines += [f'#### `{section}`', '', *textwrap.wrap(_escape(about[section]) + at, WIDTH), '']
    if alike in seen:
      lines += [f'The knobs of `{seen[alike]}`.', '']
      continue
    seen[alike] = section
    lines += ['| knob | default | may be | meaning |', '|---|---|---|---|', *rows, '']
  return lines


def _row(knob: Knob) -> str:
  wanted = SHORT.get(knob.wanted, knob.wanted)
  cells = (f'`{knob.path}`', format_value(knob, _code), _escape(wanted), _escape(knob.meaning))
  return '| ' + ' | '.join(cells) + ' |'


def _code(value: Any) -> str:
  """Formats a value for a table cell. A long section of names shows only its names."""
  if isinstance(value, Mapping):
    whole = ', '.join(f'`{name}={one!r}`' for name, one in value.items())
    return whole if len(whole) < 3 * LONGEST else ', '.join(f'`{name}`' for name in value)
  text = repr(value)
  text = text if len(text) <= LONGEST else f'{text[: LONGEST // 2]}...'
  return f'`{text}`'.replace('|', '\\|')


def _escape(text: str) -> str:
  """Escapes text for a table cell. Text between backticks stays code."""
  parts = text.split('`')
  parts[::2] = [re.sub(r'([<>*_\[\]])', r'\\\1', part).replace("''", "`''`") for part in parts[::2]]
  return '`'.join(parts).replace('|', '\\|')
