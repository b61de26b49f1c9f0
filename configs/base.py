"""What recipes share: the published numbers, and what a scale changes: sizes and placement, never
the algorithm.

A recipe calls `rl(scale)` or `sft(scale)` and sets what its experiment is about. The published
numbers, and what each knob means, stand with the typed options
(paravt_jax/orchestrator/recipes.py); configs/README.md lists them all. Scales:

    tiny       any machine, the default
    2b         one 80 GB GPU; for RL, learner and SGLang share it
    2b_lora    one 24 GB GPU, which learner and SGLang share: an adapter is trained
    8b         8 x 80 GB; rollout servers elsewhere, by URL
    8b_lora    one 80 GB GPU, which learner and SGLang share: an adapter is trained
    8b_tpu     a slice v5p:2x2x2. RL: two chips of each host for the learner, two for an embedded
               server in its process. V6E changes it for v6e:4x4
    8b_split   RL on one machine of 8 x 80 GB: four for the learner, four for SGLang servers that it
               starts. JAX opens only the learner's GPUs (`experiments/launch.py`)
    2b_long, 8b_long, tiny_long   long videos (`configs/long_video.py`)
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import long_video
from configs.servers import tiny_servers
from paravt_jax.options import to_dict
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe

SCALES = ('tiny', '2b', '8b')
LORA_SCALES = ('2b_lora', '8b_lora')
LONG_SCALES = ('2b_long', '8b_long')
SFT_SCALES = (*SCALES, *LORA_SCALES, '8b_tpu', *LONG_SCALES, 'tiny_long')
RL_SCALES = (*SCALES, *LORA_SCALES, '8b_split', '8b_tpu', *LONG_SCALES)
# Overrides of RL at :8b_tpu for sixteen v6e, whose memory of 31 GiB holds shorter rows. All of them
# train: XLA refuses a mesh of the first two chips of each of their hosts.
V6E = {
  'mesh.fsdp': 16,
  'train.rows': 16,
  'train.row_tokens': 16384,
  'train.row_images': 256,
  'batches.row_lengths': (6144,),
  'sampling.context': 16384,
  'server.kind': 'url',
}


def config_of(recipe: Any) -> ConfigDict:
  """A typed recipe as a ConfigDict, whose knobs a recipe file and the command line may set."""
  config = ConfigDict(to_dict(recipe))
  if 'reward' in config and config.reward.grounding_threshold is None:
    config.reward.grounding_threshold = placeholder(float)
  return config


def rl(scale: str) -> ConfigDict:
  """The shared recipe at `scale`, locked: a recipe changes its knobs and cannot invent one.

  Raises:
    ValueError: `scale` is not one of RL_SCALES.
  """
  if scale not in RL_SCALES:
    raise ValueError(
      f'scale {scale!r}: wanted one of {", ".join(RL_SCALES)}, as in '
      '--config=configs/para_grpo.py:tiny'
    )
  config = config_of(RLRecipe.published())
  config.scale = scale
  if scale == 'tiny':
    _tiny(config)
  if scale in ('2b', '2b_long'):
    _one_gpu(config)
  if scale.endswith('_lora'):
    _one_gpu(config)
    _adapter(config, 2e-5)
    _shared_with_adapter(config, scale)
  if scale == '8b_split':
    config.mesh.fsdp = 4
    config.train.update({'rows': 4, 'micro_batches': 64})
    config.server.update({'kind': 'sglang', 'count': 4})
    config.server.sglang.devices = (4, 5, 6, 7)
  if scale == '8b_tpu':
    _tpu(config)
    _split_slice(config)
  if scale in LONG_SCALES:
    long_video.rl(config, scale)
  return config.lock()


def sft(scale: str) -> ConfigDict:
  """The cold start: the published numbers (spec of ParaVT-SFT), or the tiny scale's. Locked.

  Raises:
    ValueError: `scale` is not one of SFT_SCALES.
  """
  if scale not in SFT_SCALES:
    raise ValueError(
      f'scale {scale!r}: wanted one of {", ".join(SFT_SCALES)}, as in --config=configs/sft.py:tiny'
    )
  config = config_of(SFTRecipe.published())
  config.scale = scale
  if scale in ('2b', '2b_long'):
    config.mesh.fsdp = 1
    config.train.rows = 1
    config.train.micro_batches = 32
  if scale.endswith('_lora'):
    config.mesh.fsdp = 1
    config.train.rows = 1
    config.train.micro_batches = 32
    _adapter(config, 2e-4)
  if scale == '8b_tpu':
    _tpu(config)
  if scale in LONG_SCALES:
    long_video.sft(config, scale)
  if scale in ('tiny', 'tiny_long'):
    _tiny_sft(config)
  if scale == 'tiny_long':
    long_video.tiny_sft(config)
  return config.lock()


def _tpu(config: ConfigDict) -> None:
  """A slice of eight chips. TPUs have no other user, so the learner may take all but the runtime's
  own part.
  """
  config.device.update({'memory_fraction': 0.95, 'xla_flags': 'tpu'})


def _split_slice(config: ConfigDict) -> None:
  """Two hosts of four chips. A chip is opened by one process, so each host's server is in its
  learner's: the mesh has the first two chips of each host, and the server has the other two.
  """
  config.mesh.fsdp = 4
  config.train.update({'rows': 4, 'micro_batches': 64})
  config.server.update({'kind': 'embedded', 'count': 1})
  # slots cost nothing where decoding reads pages
  config.server.embedded.update(
    {'in_process': True, 'tensor_parallel': 2, 'lanes': ((32768, 32),), 'pages': 2048}
  )


def _adapter(config: ConfigDict, learning_rate: float) -> None:
  """An adapter of rank 32 on all products, at ten times the rate of full training (Schulman &
  Thinking Machines Lab 2025).
  """
  config.train.adapter.update({'rank': 32, 'alpha': 32.0})
  config.optimizer.update(
    {'learning_rate': learning_rate, 'matrix_learning_rate': learning_rate, 'weight_decay': 0.0}
  )


def _shared_with_adapter(config: ConfigDict, scale: str) -> None:
  """One GPU that a learner of an adapter and an SGLang server share."""
  if scale == '8b_lora':
    # 40 GiB for the learner. The server has 16 GiB of weights and a cache of 64k tokens, 9 GiB
    config.device.memory_fraction = 0.53
    config.server.sglang.update({'mem_fraction': 0.85, 'max_total_tokens': 65536})
    return
  # 24 GB: rows of 16k tokens, and a server with 4 GiB of weights and a cache of 32k tokens, 3.5 GiB
  config.device.memory_fraction = 0.52
  config.train.update({'row_tokens': 16384, 'row_images': 256})
  config.batches.row_lengths = (6144,)
  config.sampling.context = 16384
  config.server.sglang.update({'mem_fraction': 0.9, 'max_total_tokens': 32768})


def _one_gpu(config: ConfigDict) -> None:
  """One 80 GB GPU that the learner and an SGLang server share.

  JAX takes .6 of it first, 47.5 GiB. SGLang's share counts what is free when it starts, about 30
  GiB: .75 of that holds 4 GiB of weights and 14 GiB of keys and values, and the rest is its work
  space.
  """
  config.mesh.fsdp = 1
  config.device.memory_fraction = 0.6
  config.train.rows = 1
  config.server.update({'kind': 'sglang', 'count': 1})
  config.server.embedded.memory_fraction = 0.3
  config.server.sglang.update(
    {'devices': (0,), 'mem_fraction': 0.75, 'max_total_tokens': 131072, 'vision_cache_mb': 512}
  )


def _tiny(config: ConfigDict) -> None:
  """A fresh machine without accelerator: synthetic world, 1.8M parameters in float32, embedded
  server, a mesh of one device.
  """
  config.data.kind = 'world'
  config.cold_start = sft('tiny')
  config.world = (
    config.cold_start.world
  )  # one object: --config.world.… changes the cold start's world too
  config.video.update({'max_pixels': 1024, 'workers': 2, 'deadline_s': 20.0, 'cache_mb': 512})
  config.sampling.context = 512
  config.agent.update({'max_new_tokens': 96})
  config.subagent.update({'max_new_tokens': 32, 'summary_tokens': 32, 'deadline_s': 60.0})
  config.rollout.update({'steps': 120, 'staleness': 0, 'gap_limit': 1e-4})
  config.reward.open_ended = 'exact'
  config.optimizer.update(
    {'name': 'adam', 'learning_rate': 2e-4, 'total_steps': 120, 'weight_decay': 0.0}
  )
  config.train.update(
    {
      'dtype': 'float32',
      'remat': 'none',
      'backend': 'tiled',
      'head_chunk': 1024,
      'row_tokens': 1024,
      'row_images': 160,
      'image_patches': 4,
      'rows': 4,
      'micro_batches': 16,
    }
  )
  # one program, compiled once; its rows are full enough without care
  config.batches.update({'row_lengths': (), 'spread': False, 'shapes': 1})
  config.mesh.fsdp = 1
  config.device.update({'memory_fraction': 0.75, 'xla_flags': 'none'})
  config.server = tiny_servers()
  # in float32 one continuation tells a server's weights; more only cost time
  config.publish.update({'dtype': 'float32', 'canary_continuations': 1})
  config.eval.update({'budgets': (4, 8, 16, 32, 64)})


def _tiny_sft(config: ConfigDict) -> None:
  """A cold start of a few minutes on two cores, stopped well before it saturates: RL must have
  something to do.
  """
  config.data.kind = 'world'
  config.world = world()
  config.frames.image_max_pixels = 1024
  config.batches.update(
    {'refill': False, 'prefetch': 4, 'shapes': 1}
  )  # samples are small beside a row: first fit alone fills rows
  config.video.update({'max_pixels': 1024, 'workers': 2, 'deadline_s': 20.0})
  config.steps = 400
  config.optimizer.update(
    {
      'name': 'muon',
      'learning_rate': 3e-3,
      'matrix_learning_rate': 0.02,
      'total_steps': 400,
      'warmup_steps': 20,
      'final_scale': 0.1,
    }
  )
  config.train.update(
    {
      'dtype': 'float32',
      'remat': 'none',
      'backend': 'tiled',
      'head_chunk': 512,
      'freeze_vision': False,
      'row_tokens': 512,
      'row_images': 128,
      'image_patches': 4,
      'row_large_images': 0,
      'large_image_patches': 0,
      'rows': 4,
      'micro_batches': 1,
    }
  )
  config.mesh.fsdp = 1
  config.device.update({'memory_fraction': 0.75, 'xla_flags': 'none'})
  config.run.checkpoint_every = 100
  # Reading frames comes first and needs short rows; then most of what is left to learn is in the
  # traces.
  config.sources = {
    'trace': (7.0, 0, None),
    'trace_mcq': (0.5, 0, None),
    'subagent': (2.0, 0, None),
    'subagent_tvg': (1.5, 0, None),
    'lookup1': (2.0, 0, 150),
    'lookup2': (1.0, 0, 150),
    'choice1': (0.5, 0, None),
    'letters': (1.0, 0, None),
  }


def world() -> ConfigDict:
  """The synthetic corpus. Harder: more colours' shapes, longer videos, shorter events, tvg and oe3
  in the mix.
  """
  return ConfigDict(
    {
      'seed': 1,
      'workers': 2,
      'scene': {
        'seconds': 128,
        'fps': 4,
        'pixels': 64,
        'events': (6, 9),
        'event_seconds': (3, 4),
        'gap': 5,
        'margin': 2,
        'colours': 8,
        'shapes': False,
        'noise': 10.0,
      },
      'questions': {
        'weights': {'oe1': 0.44, 'oe2': 0.38, 'oe3': 0.03, 'mcq': 0.05, 'tvg': 0.1},
        'nothing': 0.05,
        'clearance': 3,
        'choices': 4,
      },
      'traces': {
        'tolerance': 1,
        'always_call': 0.5,
        'reach': 2,
        'grounding_reach': 5,
        'recovery': 0.03,
        'walk_options': False,
      },
      'corpus': {
        'videos': 300,
        'heldout_videos': 60,
        'rl_tasks': 1600,
        'heldout_tasks': 300,
        'sft_rows': _sft_rows(),
        'budgets': (4, 8, 16, 32, 64),
        'loose': 0.2,
        'stray': 0.02,
        'asked': 5,
        'videos_per_archive': 60,
      },
    }
  )


def _sft_rows() -> dict[str, int]:
  """Rows of the cold start by kind."""
  return {
    'trace': 6000,
    'trace_mcq': 2000,
    'trace_tvg': 1000,
    'subagent': 4000,
    'subagent_tvg': 2000,
    'lookup1': 1500,
    'lookup2': 1000,
    'lookup3': 1000,
    'lookup5': 1500,
    'lookup12': 1000,
    'glance16': 1000,
    'choice1': 2000,
    'letters': 3000,
  }
