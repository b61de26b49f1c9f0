"""Checks of a recipe's knobs against each other, before a run starts.

The rule of a single knob is with its field.
"""

import re

from paravt_jax import packing
from paravt_jax.data import batches
from paravt_jax.data.world import corpus
from paravt_jax.errors import ConfigError
from paravt_jax.options import require
from paravt_jax.orchestrator import servers, sft_data, weight_delivery
from paravt_jax.orchestrator.options import MeshOptions, TrainOptions, WorldOptions
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.train.optimizer import OptimizerOptions

WORLD = 'world'  # the synthetic corpus, as a benchmark


def check_rl(recipe: RLRecipe, *, installed: bool = True) -> None:
  """Raises ConfigError for an RL recipe whose knobs do not fit each other.

  installed: whether what its servers need must be on this machine.
  """
  sampling = recipe.sampling
  require(
    (sampling.top_p, sampling.top_k),
    'top_p=1 and top_k=-1: the learner scores the whole distribution',
    sampling.top_p == 1 and sampling.top_k == -1,
    'sampling.top_p, sampling.top_k',
  )
  _require_rows(recipe.train, recipe.mesh)
  _require_slots(recipe)
  _require_lengths(recipe)
  _require_schedule(recipe.optimizer, recipe.rollout.steps, 'rollout.steps')
  _require_world(recipe)
  if recipe.data.kind == WORLD and recipe.world is not None:
    tasks = recipe.world.corpus.rl_tasks
    require(tasks, 'at least 1', tasks >= 1, 'world.corpus.rl_tasks')
  if recipe.cold_start is not None and not recipe.model.folder:
    try:
      check_sft(recipe.cold_start)
    except ConfigError as error:
      raise ConfigError(re.sub('--config[.]', '--config.cold_start.', str(error))) from error
  servers.check(AgentSetup.of(recipe), installed=installed)
  weight_delivery.check(recipe.publish, recipe.server)


def check_sft(recipe: SFTRecipe) -> None:
  """Raises ConfigError for an SFT recipe whose knobs do not fit each other."""
  data = recipe.data
  both = bool(data.manifest and data.train)
  require(data.manifest, 'empty where data.train names files', not both, 'data.manifest')
  _require_rows(recipe.train, recipe.mesh)
  _require_schedule(recipe.optimizer, recipe.steps, 'steps')
  _require_world(recipe)
  batches.check(sft_data.batch_options(recipe), sft_data.frame_options(recipe), (0, 1))


def check_heldout(world: WorldOptions) -> None:
  """Raises ConfigError for a world that cannot be made, or that has no held-out rows."""
  corpus.check(world.made)
  tasks = world.corpus.heldout_tasks
  wanted = 'at least 1, for the benchmark world is these tasks'
  require(tasks, wanted, tasks >= 1, 'world.corpus.heldout_tasks')


def check_eval_servers(recipe: EvalRecipe) -> None:
  """Raises ConfigError for servers that an evaluation cannot start or reach."""
  servers.check(AgentSetup.of(recipe))
  server = recipe.server
  wanted = "a server's address, or server.router, or server.kind=embedded or sglang"
  given = bool(server.urls or server.router) or server.kind != 'url'
  require(server.urls, wanted, given, 'server.urls')


def _require_rows(train: TrainOptions, mesh: MeshOptions) -> None:
  """Checks that the mesh divides the rows of a micro-batch and the tokens of a row."""
  shards = mesh.data * mesh.fsdp
  wanted = f'a multiple of {shards} (mesh.data x mesh.fsdp), at least that'
  require(train.rows, wanted, train.rows % shards == 0, 'train.rows')
  wanted = f'a multiple of {mesh.context} (mesh.context)'
  divides = train.row_tokens % mesh.context == 0
  require(train.row_tokens, wanted, divides, 'train.row_tokens')


def _require_slots(recipe: RLRecipe) -> None:
  """Checks that an image slot of the learner fits the largest frame."""
  patches, pixels = recipe.train.image_patches, recipe.video.max_pixels
  most = patches * packing.PATCH**2
  wanted = f'at most {most}, what train.image_patches={patches} hold'
  require(pixels, wanted, pixels <= most, 'video.max_pixels')


def _require_lengths(recipe: RLRecipe) -> None:
  """Checks that rows of other lengths are shorter than the full ones."""
  lengths, full = recipe.batches.row_lengths, recipe.train.row_tokens
  wanted = f'lengths below train.row_tokens={full}, or () for none'
  require(lengths, wanted, all(length < full for length in lengths), 'batches.row_lengths')
  slices = recipe.mesh.context
  wanted = f'multiples of {slices} (mesh.context)'
  require(lengths, wanted, not any(one % slices for one in lengths), 'batches.row_lengths')


def _require_schedule(optimizer: OptimizerOptions, steps: int, knob: str) -> None:
  """Refuses steps after a cosine schedule that ends at a rate of 0, because they change nothing."""
  wanted = (
    f'at most optimizer.total_steps={optimizer.total_steps}, where the cosine ends at a learning '
    'rate of 0: raise that too, or give optimizer.final_scale (a run that has begun is bound to '
    'both: begin another one with --config.model.folder=RUN/hf)'
  )
  ends_at_zero = optimizer.schedule == 'cosine' and optimizer.final_scale == 0
  require(steps, wanted, not (ends_at_zero and steps > optimizer.total_steps), knob)


def _require_world(recipe: RLRecipe | SFTRecipe) -> None:
  """Checks that a requested synthetic world is configured and can be made."""
  if recipe.data.kind == WORLD:
    require(WORLD, "'files': this scale has no world", recipe.world is not None, 'data.kind')
    if recipe.world is not None:
      corpus.check(recipe.world.made)
