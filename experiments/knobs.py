"""What each knob means: `python -m experiments.knobs [SECTION ...] [--recipe=rl]`.

Prints the knobs of some sections (`reward`, `server.watch`), or all of a recipe's: its name, its
value at each scale, what it may be, and its meaning, as the typed options say it. --markdown prints
the reference of configs/README.md.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from configs import ablations, ask, bench, longvideo_reason, para_grpo, sft
from configs import eval as evaluation
from experiments.ablate import AblateRecipe
from experiments.bench.recipe import BenchRecipe
from experiments.launch import typed
from paravt_jax import options
from paravt_jax.errors import ConfigError
from paravt_jax.longvideo_reason.recipe import LongVideoRecipe
from paravt_jax.orchestrator.recipes import AskRecipe, EvalRecipe, RLRecipe, SFTRecipe

SCALES = ('tiny', '2b', '8b')


@dataclasses.dataclass(frozen=True)
class Kind:
  """One entry point's recipes."""

  recipe: type  # the typed tree
  configs: Mapping[str, Callable[[], ConfigDict]]  # by scale; '' where there are none


def _scaled(make: Callable[[str], ConfigDict]) -> dict[str, Callable[[], ConfigDict]]:
  return {scale: lambda scale=scale: make(scale) for scale in SCALES}


KINDS = {
  'rl': Kind(RLRecipe, _scaled(para_grpo.get_config)),
  'sft': Kind(SFTRecipe, _scaled(sft.get_config)),
  'eval': Kind(EvalRecipe, _scaled(evaluation.get_config)),
  'ask': Kind(AskRecipe, _scaled(ask.get_config)),
  'ablate': Kind(AblateRecipe, {'': ablations.get_config}),
  'longvideo_reason': Kind(LongVideoRecipe, {'': longvideo_reason.get_config}),
  'bench': Kind(BenchRecipe, {'': bench.get_config}),
}
_RECIPE = flags.DEFINE_enum('recipe', 'rl', list(KINDS), 'Which recipes.')
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print the reference of configs/README.md.')


@dataclasses.dataclass(frozen=True)
class Knob:
  """One line of the reference."""

  path: str  # as behind --config.
  values: Mapping[str, Any]  # by scale; a scale that lacks the knob has none
  wanted: str  # what it may be
  meaning: str  # the comment on its field


def main(argv: list[str]) -> None:
  """Prints the reference, or the part of it that is asked for."""
  if _MARKDOWN.value:
    print(markdown())
    return
  try:
    found = chosen(knobs(KINDS[_RECIPE.value]), argv[1:])
  except ConfigError as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  for knob in found:
    print(f'--config.{knob.path} = {shown(knob)}')
    about = f'{knob.meaning.removesuffix(".")}. Wanted: {knob.wanted}'
    print(textwrap.indent(textwrap.fill(about, 96), '    '))


def chosen(found: Sequence[Knob], sections: Sequence[str]) -> list[Knob]:
  """The knobs of some sections, all without any. Raises ConfigError for one that there is not."""
  kept: list[Knob] = [] if sections else list(found)
  for section in sections:
    name = section.removeprefix('--config.').removeprefix('config.')
    inside = [one for one in found if one.path == name or one.path.startswith(f'{name}.')]
    if not inside:
      tops = dict.fromkeys(one.path.partition('.')[0] for one in found)
      note = '; a cold start has the knobs of --recipe=sft' * name.startswith('cold_start')
      wanted = ', '.join(tops)
      raise ConfigError(f'{section}: no such section or knob; wanted one of {wanted}{note}')
    kept += inside
  return kept


def knobs(kind: Kind) -> list[Knob]:
  """All knobs of a recipe, in its order."""
  values: dict[str, dict[str, Any]] = {}
  for scale, make in kind.configs.items():
    for path, value in options.leaves(typed(kind.recipe, make())):
      values.setdefault(path, {})[scale] = value
  found = []
  for path, (rule, meaning) in _described(kind.recipe).items():
    held = values.get(path, {})
    if path.endswith('.*'):  # names of one's own: the values in use, as one
      members = {one: value for one, value in values.items() if one.startswith(path[:-1])}
      held = {
        '': {one.removeprefix(path[:-1]): next(iter(v.values())) for one, v in members.items()}
      }
    found.append(Knob(path, held, rule, meaning))
  return found


def _described(kind: type, prefix: str = '') -> dict[str, tuple[str, str]]:
  """(what it may be, its meaning) of each knob below a class, by path."""
  found: dict[str, tuple[str, str]] = {}
  rules, meanings = options.schema(kind, prefix), comments(kind)
  hints = typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    path = f'{prefix}{field.name}'
    section = options.section_of(hints[field.name])
    if section is not None:
      if section is not SFTRecipe or kind is SFTRecipe:  # a cold start is described as SFT
        found |= _described(section, f'{path}.')
      continue
    place = path if path in rules else f'{path}.*'
    found[place] = (rules[place].wanted, meanings.get(field.name, ''))
  return found


def comments(kind: type) -> dict[str, str]:
  """The comments on the fields of a dataclass: above a field, or behind it; a subclass may leave
  its base's as they are.
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


def shown(knob: Knob) -> str:
  """A knob's value, at each scale where they differ."""
  written = {scale: repr(value) for scale, value in knob.values.items()}
  if not written:
    return '-'
  if len(set(written.values())) == 1:
    return next(iter(written.values()))
  return ', '.join(f'{value} (:{scale})' for scale, value in written.items())


def markdown() -> str:
  """The reference as the tables of configs/README.md. What SFT, evaluation and ask share with RL
  stands there once.
  """
  lines: list[str] = []
  known: dict[str, Knob] = {}
  for name in ('rl', 'sft', 'eval', 'ask', 'ablate', 'longvideo_reason'):
    found = knobs(KINDS[name])
    if name in ('sft', 'eval', 'ask'):
      found = [one for one in found if not _same_knob(one, known.get(one.path))]
    known |= {one.path: one for one in found}
    lines += ['', f'### `{KINDS[name].recipe.EXAMPLE}`', '']
    lines += ['| knob | value | may be | meaning |', '|---|---|---|---|']
    lines += [_row(one) for one in found]
  return '\n'.join(lines).strip()


def _same_knob(one: Knob, other: Knob | None) -> bool:
  return other is not None and other.meaning == one.meaning and other.values == one.values


def _row(knob: Knob) -> str:
  value = shown(knob)
  if len(value) > 60:
    value = f'{value[:57]}...'
  cells = (f'`{knob.path}`', f'`{value}`', knob.wanted, knob.meaning)
  return '| ' + ' | '.join(cell.replace('|', '\\|').replace('\n', '\\n') for cell in cells) + ' |'


if __name__ == '__main__':
  app.run(main)
