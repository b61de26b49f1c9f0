"""The door of every entry point: a command line becomes one typed recipe, or one line."""

import pytest
from absl import flags
from ml_collections import ConfigDict

from configs import ablations, ask, bench, longvideo_reason, para_grpo, sft
from configs import eval as evaluation
from experiments import launch
from experiments.ablate import AblateRecipe
from experiments.bench.recipe import BenchRecipe
from paravt_jax.errors import ConfigError
from paravt_jax.longvideo_reason.recipe import LongVideoRecipe
from paravt_jax.orchestrator.options import MeshOptions
from paravt_jax.orchestrator.recipes import AskRecipe, EvalRecipe, RLRecipe, SFTRecipe

KINDS = {
  'configs/para_grpo.py': (RLRecipe, para_grpo),
  'configs/sft.py': (SFTRecipe, sft),
  'configs/eval.py': (EvalRecipe, evaluation),
  'configs/ask.py': (AskRecipe, ask),
  'configs/ablations.py': (AblateRecipe, ablations),
  'configs/longvideo_reason.py': (LongVideoRecipe, longvideo_reason),
  'configs/bench.py': (BenchRecipe, bench),
}


@pytest.mark.parametrize('file', KINDS)
def test_a_recipe_becomes_the_tree_of_its_entry_point_and_of_no_other(file):
  kind, recipe = KINDS[file]
  assert type(launch.typed(kind, recipe.get_config())) is kind
  for other, (_, foreign) in KINDS.items():
    if other == file:
      continue
    with pytest.raises(ConfigError) as caught:
      launch.typed(kind, foreign.get_config())
    assert str(caught.value) == (
      f'--config: this recipe has no {kind.SECTION!r}, so it is one of another entry point; '
      f'wanted one such as {file}'
    )


def test_a_knob_that_is_missing_unknown_or_wrong_is_named_by_its_place():
  for change, message in (
    (lambda config: config.agent.update({'max_turns': -1}), '--config.agent.max_turns=-1: wanted'),
    (
      lambda config: config.agent.update({'mine': 1}),
      'config.agent.mine: AgentOptions has no such',
    ),
    (lambda config: config.update({'mine': 1}), 'config.mine: RLRecipe has no such field'),
    (lambda config: config.agent.__delattr__('max_turns'), 'config.agent: max_turns is missing'),
    (lambda config: config.__delattr__('judge'), 'config: judge is missing; add it to the recipe'),
    (
      lambda config: config.cold_start.frames.update({'min_frames': 65}),
      '--config.cold_start.frames.min_frames=65: wanted at most cold_start.frames.max_frames=64',
    ),
  ):
    config = para_grpo.get_config()
    with config.unlocked():
      change(config)
    with pytest.raises(ConfigError) as caught:
      launch.typed(RLRecipe, config)
    assert str(caught.value).startswith(message)


def test_a_kind_of_ones_own_needs_neither_section_nor_example():
  config = ConfigDict({'data': 1, 'fsdp': 2, 'context': 1, 'tensor': 1})
  assert launch.typed(MeshOptions, config) == MeshOptions(1, 2, 1, 1)


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
  assert launch.expand_short_names(given, {'model': 'model.folder'}) == [
    '--config=a.py',
    '--config.model.folder=D=E',
    '-config.model.folder',
    'F',
    '--config.model.url=u',
    '--config.models=x',
    '--',
    'config.model=y',
  ]
  assert launch.expand_short_names(given, {}) == given


def test_a_recipe_file_that_there_is_not_is_said_with_the_usage():
  values = flags.FlagValues()
  launch.define(values)
  with pytest.raises(
    ConfigError, match=r'--config=none[.]py: there is no such recipe; usage: python'
  ):
    launch.read_config(('x', '--config=none.py'), values, {}, {})
