"""What each knob means: `python -m experiments.knobs [SECTION ...] [--recipe=rl]`.

Prints the knobs of some sections (`reward`, `server.watch`), or all of a recipe's: its name, its
value at each scale, its meaning, and what it may be, as the typed options say it. --markdown prints
the reference of configs/README.md, and --write puts it there.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from configs import ablations, ask, base, bench, longvideo_reason, para_grpo, serve, sft
from configs import eval as evaluation
from experiments import launch
from experiments.ablate import AblateRecipe
from experiments.bench.recipe import BenchRecipe
from paravt_jax.errors import ConfigError
from paravt_jax.longvideo_reason.recipe import LongVideoRecipe
from paravt_jax.orchestrator import knob_reference
from paravt_jax.orchestrator.recipes import AskRecipe, EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.orchestrator.serving import ServeRecipe

GUIDE = pathlib.Path(__file__).resolve().parent.parent / 'configs' / 'README.md'
BEGIN = '<!-- From here on written by: python -m experiments.knobs --write -->\n'
# The reference describes these; --recipe=bench prints the rest.
REFERENCE = ('rl', 'sft', 'eval', 'ask', 'serve', 'ablate', 'longvideo_reason')


@dataclasses.dataclass(frozen=True)
class Kind:
  """The recipes of one entry point."""

  recipe: type  # the typed tree
  configs: Mapping[str, Callable[[], ConfigDict]]  # by scale; '' for a recipe without scales

  def scales(self) -> dict[str, Any]:
    """Returns a typed recipe of each scale."""
    return {scale: launch.typed(self.recipe, make()) for scale, make in self.configs.items()}

  def knobs(self) -> list[knob_reference.Knob]:
    """Returns all knobs of the recipe, in its order."""
    return knob_reference.collect(self.recipe, self.scales())


def _with_scales(
  make: Callable[[str], ConfigDict], scales: Sequence[str] = base.SCALES
) -> dict[str, Callable[[], ConfigDict]]:
  return {scale: lambda scale=scale: make(scale) for scale in scales}


KINDS = {
  'rl': Kind(RLRecipe, _with_scales(para_grpo.get_config, base.RL_SCALES)),
  'sft': Kind(SFTRecipe, _with_scales(sft.get_config, base.SFT_SCALES)),
  'eval': Kind(EvalRecipe, _with_scales(evaluation.get_config)),
  'ask': Kind(AskRecipe, _with_scales(ask.get_config)),
  'serve': Kind(ServeRecipe, _with_scales(serve.get_config)),
  'ablate': Kind(AblateRecipe, {'': ablations.get_config}),
  'longvideo_reason': Kind(LongVideoRecipe, {'': longvideo_reason.get_config}),
  'bench': Kind(BenchRecipe, {'': bench.get_config}),
}
_RECIPE = flags.DEFINE_enum('recipe', 'rl', list(KINDS), 'Which recipes.')
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print the reference of configs/README.md.')
_WRITE = flags.DEFINE_bool('write', False, 'Renew the reference in configs/README.md.')


def main(argv: list[str]) -> None:
  """Prints the reference, or the requested part."""
  if argv[1:] and (_MARKDOWN.value or _WRITE.value):
    raise ConfigError(f'{argv[1]}: --markdown and --write take the whole reference, no section')
  if _MARKDOWN.value:
    print(markdown())
    return
  if _WRITE.value:
    GUIDE.write_text(renew_guide(GUIDE.read_text()))
    print(GUIDE)
    return
  kind = KINDS[_RECIPE.value]
  found = knob_reference.select_knobs(kind.knobs(), argv[1:])
  print('\n'.join(knob_reference.list_lines(found, knob_reference.abouts(kind.recipe))))


def markdown() -> str:
  """Returns the reference of configs/README.md."""
  kinds = [KINDS[name] for name in REFERENCE]
  return knob_reference.markdown([(kind.recipe, kind.scales()) for kind in kinds])


def renew_guide(text: str) -> str:
  """Returns the text of configs/README.md with the current reference.

  Raises ConfigError if the line that begins the reference is missing.
  """
  above, begin, _ = text.partition(BEGIN)
  if not begin:
    raise ConfigError(f'{GUIDE.name}: the line that begins the reference is missing: {BEGIN}')
  return f'{above}{BEGIN}\n{markdown()}\n'


if __name__ == '__main__':
  launch.run_script(main)
