"""What knobs must be to each other, before anything is made. What one may be:
configs/allowed.py.
"""

from ml_collections import ConfigDict

from experiments import sft_data, wiring
from experiments.launch import require
from paravt_jax import packing
from paravt_jax.data import batches
from paravt_jax.data.world import corpus


def require_rows(config: ConfigDict) -> None:
  """Raises ConfigError unless the rows of a micro-batch divide over the mesh's data axes."""
  shards = config.mesh.data * config.mesh.fsdp
  wanted = f'a multiple of {shards} (mesh.data x mesh.fsdp), at least that'
  require(config.train.rows, wanted, config.train.rows % shards == 0, 'train.rows')


def require_world(config: ConfigDict) -> None:
  """Raises ConfigError for a synthetic world that is asked for and cannot be made."""
  if config.data.kind == 'world':
    require('world', "'files': this scale has no world", 'world' in config, 'data.kind')
    corpus.check(wiring.world_options(config))


def require_heldout(config: ConfigDict) -> None:
  """Raises ConfigError for a world that cannot be made, or that has nothing to evaluate on."""
  corpus.check(wiring.world_options(config))
  tasks = config.world.corpus.heldout_tasks
  require(
    tasks,
    'at least 1, for the benchmark world is these tasks',
    tasks >= 1,
    'world.corpus.heldout_tasks',
  )


def require_slots(config: ConfigDict) -> None:
  """Raises ConfigError when the learner's slots of an image are smaller than a frame may be."""
  most = config.train.image_patches * packing.PATCH**2
  wanted = f'at most {most}, what train.image_patches={config.train.image_patches} hold'
  require(config.video.max_pixels, wanted, config.video.max_pixels <= most, 'video.max_pixels')


def require_batches(config: ConfigDict) -> None:
  """Raises ConfigError when the rows of SFT cannot hold what frames and images may be."""
  batches.check(sft_data.batch_options(config), sft_data.frame_options(config), (0, 1))


def require_schedule(config: ConfigDict, steps: int, knob: str) -> None:
  """Raises ConfigError for steps behind a cosine that ends at a rate of 0: they change nothing."""
  section = config.optimizer
  wanted = (
    f'at most optimizer.total_steps={section.total_steps}, where the cosine ends at a learning '
    'rate of 0: raise that too, or give optimizer.final_scale (a run that has begun is bound to '
    'both: begin another one with --config.model.folder=RUN/hf)'
  )
  ended = section.schedule == 'cosine' and section.final_scale == 0 and steps > section.total_steps
  require(steps, wanted, not ended, knob)
