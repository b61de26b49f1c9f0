"""What the benches measure and how large. Sizes are the tiny scale's, so that a run takes minutes
on two cores.

python -m experiments.bench --config=configs/bench.py --config.suite=rollout          # a table
python -m experiments.bench --config=configs/bench.py --config.suite=rollout --json   # one JSON object on stdout
python -m experiments.bench --config=configs/bench.py --config.suite=data --json      # the same for the data: about 4 minutes
python -m experiments.bench --config=configs/bench.py --config.suite=images           # bytes of a step's frames
python -m experiments.bench --config=configs/bench.py --config.suite=gaps             # how far engines are from float32
python -m experiments.bench --config=configs/bench.py --config.suite=learner --json   # the learner's step: about 6 minutes
python -m experiments.bench --config=configs/bench.py --config.suite=survival --json  # the main job, kept waiting and killed: about 10 minutes
"""

from ml_collections import ConfigDict

from configs import base
from configs.servers import tiny_servers


def get_config() -> ConfigDict:
  """The bench's knobs, locked."""
  servers = tiny_servers()
  # `threads` below is for all; nothing is staged
  for name in ('threads', 'memory_fraction', 'in_process'):
    del servers.embedded[name]
  del servers.sglang['threads'], servers.sglang['staging']
  servers.sglang.mem_fraction = 0.1
  return ConfigDict(
    {
      'suite': 'rollout',
      'seed': 0,
      'threads': 2,  # cores that every measured program gets, ours and the others
      'model': {'folder': ''},  # a Hugging Face folder; '' is the random tiny model
      'run': {'folder': 'runs/bench'},  # logs of the servers; scratch space of the publish stages
      # embedded engine against transformers' generate: one batch, in this process; the better of
      # `repeats` turns each. The batch is what a step of RL asks for: groups of rollouts of one
      # prompt with the largest frame budget, and turns of a call's length
      'generate': {
        'batch': 32,
        'group': 8,  # rollouts of a prompt
        'frames': 64,
        'words': 24,
        'new_tokens': 40,
        'temperature': 0.7,
        'repeats': 5,
        'lanes': ((320, 8),) * 4,
        'decode_steps': 8,
      },
      # embedded against SGLang over HTTP: `turns` x concurrency requests at each concurrency,
      # groups that share a prompt
      'serve': {
        'concurrencies': (16, 64),
        'turns': 3,
        'group': 8,
        'frames': 16,
        'words': 32,
        'new_tokens': 96,
        'temperature': 0.7,
      },
      # rollouts of one prompt
      'prefix': {'rollouts': 8, 'frames': 64, 'words': 64, 'new_tokens': 16},
      'images': _images(),
      'publish': {'bytes': 1_000_000_000},
      'gaps': _gaps(),
      'data': _data(),
      'learner': _learner(),
      'survival': _survival(),
      'profile': {'steps': 0},  # SFT steps of the suite `learner` that are traced
      'server': {'ready_timeout_s': 300.0, 'embedded': servers.embedded, 'sglang': servers.sglang},
    }
  ).lock()


def _images() -> dict:
  # a step's requests to one embedded server: the frames inside them, and by content
  return {
    'rollouts': 8,
    'turns': 3,
    'subagents': 5,
    'frames': 64,
    'crop_frames': 16,
    'seconds': 300,
    'side': 224,
    'grain': 6,
  }


def _gaps() -> dict:
  # engines against float32: a model as deep as 2B and 8B are, narrow
  return {
    'engines': ('learner', 'transformers', 'embedded', 'sglang'),
    'layers': 28,
    'width': 64,
    'texts': 4,
    'frames': 8,
    'side': 64,
    'places': 8,
    'temperature': 1.0,
    'concurrency': 8,
  }


def _survival() -> dict:
  """The suite `survival`: the main job over a small world and a short cold start."""
  world = {
    'videos': 24,
    'heldout_videos': 2,
    'rl_tasks': 96,
    'heldout_tasks': 6,
    'videos_per_archive': 4,
  }
  return {
    'job': (
      *(f'world.corpus.{name}={count}' for name, count in world.items()),
      'cold_start.steps=60',
      'eval.questions=0',
    ),
    'limit_s': 1800.0,
    'crops': {
      'crops': 5,
      'repeats': 3,
      'height': 360,
      'width': 640,
      'latency_s': 1.0,
      'deadline_s': 60.0,
    },
    # a step about as long as its rollouts, where running beside each other gains most
    'pace': {'step_seconds': 1.5, 'staleness': 2, 'steps': 16, 'skip': 4},
    'memory': {'requests': 2000},
    'kill': {'moments': 5, 'steps': 6},
  }


def _data() -> dict:
  """The suite `data`. What is generated (a clip, archives, rows) stays in run.folder/data for the
  next time: about 1 GB.
  """
  return {
    # the stated mix: frames of a video, tokens of text, and the share of rows that hold an image
    # instead, of so many tokens
    'mix': {
      'frames': (1, 64),
      'text': (50, 1500),
      'image_share': 0.3,
      'image_tokens': (64, 1024),
      'images': 64,
    },
    'packing': {'rows': 5000, 'batches': 50},
    # grain: of the noise over the image, in grey levels; it sets the bit rate
    'clip': {'seconds': 150, 'height': 360, 'width': 640, 'fps': 30, 'gop': 250, 'grain': 30},
    # overviews of the whole clip and windows in it, asked by `threads` workers; the best of
    # `repeats` turns
    'decode': {
      'overviews': 2,
      'overview_frames': 64,
      'windows': 8,
      'window_seconds': 10.0,
      'window_frames': 16,
      'repeats': 2,
    },
    # bytes of one archive (and of each kind in several), `archives` in all
    'unpack': {'bytes': 128_000_000, 'archives': 4, 'repeats': 3},
    'materialize': {'rows': 50_000, 'frames': (1, 64), 'text': (50, 1500), 'image_share': 0.3},
    # one device of the 8B recipe and the time it takes for a step: 6 * parameters * tokens / (peak
    # * share), here an H100's
    'step': {'parameters': 8.2e9, 'peak_flops': 989e12, 'share': 0.4},
    'input': {'rows': 400, 'steps': 5, 'stage_rows': 24},
    'sft': _one_device(),
  }


def _learner() -> dict:
  """The suite `learner`: a model whose products take most of its step, on batches of about 2,048
  tokens.
  """
  return {
    'model': {
      'vocab': 4096,
      'width': 512,
      'layers': 6,
      'heads': 8,
      'kv_heads': 4,
      'head_dim': 64,
      'mlp': 1536,
    },
    'dtype': 'float32',
    'remat': 'none',
    'head_chunk': 1024,
    'rows': 4,
    'freeze_vision': True,
    'learning_rate': 2e-6,
    'temperature': 0.7,
    'repeats': 5,
    'text': {'documents': 4, 'tokens': 512, 'row_tokens': 512},
    # two episodes of three calls each: a long overview, short windows
    'packed': {
      'overviews': 2,
      'overview_frames': (32, 48),
      'windows': 6,
      'window_frames': (4, 12),
      'frame_side': 32,
      'words': (20, 300),
      'row_tokens': 768,
      'row_images': 96,
    },
    'group': {
      'rollouts': 8,
      'frames': 48,
      'frame_side': 32,
      'words': 64,
      'new_tokens': 48,
      'row_multiple': 128,
    },
    # the packed step of rl:8b: prompts of 4,200 tokens with eight replies of 900
    'attention': {
      'pair_row_tokens': 32768,
      'prompt': 4200,
      'reply': 900,
      'replies': 8,
      'row_tokens': 2048,
      'repeats': 5,
    },
  }


def _one_device() -> ConfigDict:
  """The 8B cold start, one device's share of it, with the workers that this bench has cores for."""
  recipe = base.sft('8b')
  recipe.train.update({'rows': 1})
  recipe.mesh.fsdp = 1
  recipe.video.workers = 2
  return recipe
