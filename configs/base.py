"""What the RL recipes share: the published numbers, and what a scale changes: sizes and placement,
never the algorithm.

A recipe calls `rl(scale)` and sets what its experiment is about. Sections are the library's options
dataclasses, field by field. Scales: tiny (any machine, the default), 2b (one 80 GB GPU), 8b (8 x 80
GB; rollout servers elsewhere, by URL), and for RL 8b_split (one machine of 8 x 80 GB: four for the
learner, four for SGLang servers that it starts; run it with CUDA_VISIBLE_DEVICES=0,1,2,3, or JAX
takes memory on all eight).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.servers import servers, tiny_servers

SCALES = ('tiny', '2b', '8b')
RL_SCALES = (*SCALES, '8b_split')


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
  config = _published()
  config.scale = scale
  if scale == 'tiny':
    _tiny(config)
  if scale == '2b':
    config.mesh.fsdp = 1
    config.train.rows = 1
  if scale == '8b_split':
    config.mesh.fsdp = 4
    config.train.update({'rows': 4, 'micro_batches': 64})
    config.server.update({'kind': 'sglang', 'count': 4})
    config.server.sglang.devices = (4, 5, 6, 7)
  return config.lock()


def _published() -> ConfigDict:
  """The numbers of the paper and its release, 8B on 8 devices."""
  return ConfigDict(
    {
      'name': '',
      'scale': '',
      'seed': 0,
      # folder '' means runs/<name>_<scale>; a checkpoint every so many steps, 0: only after the
      # last
      'run': _run(5),
      # folder: a Hugging Face checkpoint; '' means the cold start below, made if it does not exist
      'model': {'folder': ''},
      # kind: files (parquet and media that you have) or world (the synthetic corpus).
      # skip_bad_rows: leave broken rows out and list them, up to max_bad_share of the rows. Of the
      # training rows only these types and sources, () for all; then a seeded sub-sample of
      # max_rows, 0 for all.
      'data': {
        'kind': 'files',
        'train': (),
        'eval': (),
        'media_root': '',
        'skip_bad_rows': False,
        'max_bad_share': 0.05,
        'question_types': (),
        'sources': (),
        'max_rows': 0,
      },
      'video': {
        'min_pixels': 1024,
        'max_pixels': 50176,
        'backend': 'pyav',
        'workers': 8,
        'deadline_s': 30.0,
        'cache_mb': 8192,
        'cache_folder': '',
      },
      'frames': {'gating': True, 'budgets': (4, 8, 16, 32, 64), 'frames': 64},
      'sampling': {'temperature': 0.7, 'top_p': 1.0, 'top_k': -1, 'context': 32768},
      'agent': {
        'think_prefix': '<think>\n',
        'max_turns': 3,
        'max_parallel': 5,
        'max_new_tokens': 2048,
      },
      'subagent': {
        'rate': 1.0,
        'min_frames': 2,
        'max_frames': 16,
        'see_question': True,
        'max_new_tokens': 512,
        'summary_tokens': 512,
        'deadline_s': 120.0,
      },
      'reward': {
        'format_weight': 1.0,
        'anchor_weight': 0.5,
        'unclosed_penalty': 0.3,  # of R_anchor, for a think that is never closed
        'answer_suffix': True,
        'tool': True,
        'tool_threshold': 0.0,
        'tool_bonus': 'call',
        'open_ended': 'f1',
        'grounding_threshold': placeholder(float),  # None: tvg earns its IoU
      },
      'judge': {
        'url': '',
        'model': '',
        'api_key': '',
        # further fields of each request, a JSON object as text; null takes one of ours out
        'more': '',
        'max_tokens': 256,
        'timeout_s': 60.0,
        'retries': 3,
        'backoff_s': 1.0,
        'concurrency': 16,
      },
      'rollout': {
        'steps': 54,
        'prompts': 8,
        'group_size': 8,
        'staleness': 2,
        'max_concurrent': 64,
        'subagent_credit': 'episode',
        'gap_limit': 0.05,
      },
      'rl': {
        'clip': 0.2,
        'weight_cap': 5.0,
        'beta': 0.01,
        'kl_limit': 10.0,
        'batch_norm': 'std',
        'updates_per_batch': 1,
      },
      'optimizer': _adamw(2e-6, 'constant', 54),
      'train': {
        'dtype': 'bfloat16',
        'remat': True,
        'backend': 'chunked',
        'head_chunk': 1024,
        'freeze_vision': True,
        'row_tokens': 32768,
        'row_images': 512,
        'image_patches': 196,
        'rows': 8,
        'micro_batches': 32,
      },
      'mesh': {'data': 1, 'fsdp': 8, 'tensor': 1},
      'server': servers(),
      # dtype of published weights; keep: versions on disk; canary_tokens: foretold by the learner
      # with every version
      'publish': {'dtype': 'bfloat16', 'keep': 2, 'canary_tokens': 8},
      'client': {
        'connections': 256,
        'timeout_s': 600.0,
        'ready_timeout_s': 600.0,
        'retries': 5,
        'backoff_s': 0.5,
        'image_cache': 4096,
      },
      'eval': {
        'questions': 300,
        'budgets': (64,),
        'concurrent': 64,
        'grounding_threshold': 0.5,
        'bootstrap': 2000,
      },
    }
  )


def _run(checkpoint_every: int) -> dict:
  """Folder '' means runs/<name>_<scale>; W&B is off without a project."""
  return {
    'folder': '',
    'checkpoint_every': checkpoint_every,
    'keep': 2,
    'tensorboard': True,
    'wandb_project': '',
    'wandb_entity': '',
    'wandb_mode': 'online',
  }


def _adamw(learning_rate: float, schedule: str, steps: int) -> dict:
  return {
    'name': 'adamw',
    'learning_rate': learning_rate,
    'matrix_learning_rate': learning_rate,
    'schedule': schedule,
    'warmup_steps': 0,
    'total_steps': steps,
    'final_scale': 0.0,
    'weight_decay': 0.01,
    'beta1': 0.9,
    'beta2': 0.999,
    'epsilon': 1e-8,
    'momentum': 0.95,
    'clip_norm': 1.0,
  }


def sft(scale: str) -> ConfigDict:
  """The cold start: the published numbers (spec of ParaVT-SFT), or the tiny scale's. Locked."""
  if scale not in SCALES:
    raise ValueError(
      f'scale {scale!r}: wanted one of {", ".join(SCALES)}, as in --config=configs/sft.py:tiny'
    )
  config = ConfigDict(
    {
      'name': 'sft',
      'scale': scale,
      'seed': 0,
      'run': _run(100),
      'model': {'folder': ''},
      # manifest: a file that names the sources (paravt_jax/data/manifest.py), in place of `train`.
      # cache_folder: rows and lengths, for the next run ('' for none). max_bad_share: of the draws;
      # above it broken rows (schema, media) end the run
      'data': {
        'kind': 'files',
        'train': (),
        'manifest': '',
        'media_root': '',
        'cache_folder': 'runs/data_cache',
        'skip_bad_rows': False,
        'max_bad_share': 0.05,
      },
      # image_max_pixels: of a still image, 1024 tokens
      'frames': {
        'rate': 1.0,
        'min_frames': 2,
        'max_frames': 64,
        'image_max_pixels': 1048576,
        'think_prefix': '<think>\n',
      },
      # (weight, first step, last step or None) by source: its name in the manifest, or that of its
      # file (paravt_sft_<name>.parquet). Without any weight here or in the manifest sources are
      # drawn in proportion to their rows; else those without have weight 1.
      'sources': {},
      'video': {
        'min_pixels': 1024,
        'max_pixels': 50176,
        'backend': 'pyav',
        'workers': 8,
        'deadline_s': 30.0,
        # decoded frames: this much in memory; in cache_folder ('' for none) for the next epoch, at
        # most cache_gb (0: no bound)
        'cache_mb': 1024,
        'cache_folder': 'runs/frames',
        'cache_gb': 500,
      },
      'steps': 500,
      'optimizer': {**_adamw(2e-5, 'cosine', 1500), 'warmup_steps': 75},
      'train': {
        'dtype': 'bfloat16',
        'remat': True,
        'backend': 'chunked',
        'head_chunk': 1024,
        'freeze_vision': True,
        'row_tokens': 8192,
        'row_images': 128,
        'image_patches': 196,
        'row_stills': 8,
        'still_patches': 4096,
        'rows': 8,
        'micro_batches': 4,
      },
      'batches': {'lookahead': 64, 'refill': True, 'prefetch': 2},
      'mesh': {'data': 1, 'fsdp': 1 if scale == '2b' else 8, 'tensor': 1},
    }
  )
  if scale == '2b':
    config.train.rows = 1
    config.train.micro_batches = 32
  if scale == 'tiny':
    _tiny_sft(config)
  return config.lock()


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
      'remat': False,
      'backend': 'chunked',
      'head_chunk': 1024,
      'row_tokens': 1024,
      'row_images': 160,
      'image_patches': 4,
      'rows': 4,
      'micro_batches': 16,
    }
  )
  config.mesh.fsdp = 1
  config.server = tiny_servers()
  config.publish.dtype = 'float32'
  config.eval.update({'budgets': (4, 8, 16, 32, 64)})


def _tiny_sft(config: ConfigDict) -> None:
  """A cold start of a few minutes on two cores, stopped well before it saturates: RL must have
  something to do.
  """
  config.data.kind = 'world'
  config.world = world()
  config.frames.image_max_pixels = 1024
  config.batches.update(
    {'refill': False, 'prefetch': 4}
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
      'remat': False,
      'backend': 'chunked',
      'head_chunk': 512,
      'freeze_vision': False,
      'row_tokens': 512,
      'row_images': 128,
      'image_patches': 4,
      'row_stills': 0,
      'still_patches': 0,
      'rows': 4,
      'micro_batches': 1,
    }
  )
  config.mesh.fsdp = 1
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
        'sft_rows': {
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
        },
        'budgets': (4, 8, 16, 32, 64),
        'loose': 0.2,
        'stray': 0.02,
        'asked': 5,
        'videos_per_archive': 60,
      },
    }
  )
