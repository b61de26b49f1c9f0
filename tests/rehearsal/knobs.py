"""What the rehearsal gives the recipes of the 8B scale: where its files are, and smaller counts.

No other knob differs (tests/rehearsal/knobs_test.py), so the run takes the 8B scale's own path.
"""

import pathlib
from typing import Any

STEPS = 4
# An eighth of the published tokens and images, and fewer rollouts.
COUNTS: dict[str, Any] = {
  'agent.max_new_tokens': 96,
  'batches.row_lengths': (768, 2560),
  'batches.shapes': 4,
  'eval.budgets': (8,),
  'eval.questions': 4,
  'frames.budgets': (4, 8),
  'frames.frames': 8,
  'rollout.group_size': 4,
  'rollout.prompts': 2,
  'rollout.steps': STEPS,
  'run.checkpoint_every': 2,
  'sampling.context': 4096,
  'subagent.max_frames': 4,
  'subagent.max_new_tokens': 32,
  'subagent.summary_tokens': 32,
  'train.head_chunk': 128,
  'train.image_patches': 16,
  'train.micro_batches': 4,
  'train.row_images': 64,
  'train.row_tokens': 4096,
  'video.max_pixels': 4096,
  'video.workers': 2,
}


def rl(place: pathlib.Path, urls: tuple[str, ...]) -> dict[str, Any]:
  """The knobs of `experiments.rl`, in a place with the files of `material.write`."""
  return {
    'data.eval': (str(place / 'rows' / 'paravt_rl_heldout.parquet'),),
    'data.media_root': str(place / 'media'),
    'data.train': (str(place / 'rows' / 'paravt_rl_world.parquet'),),
    'model.folder': str(place / 'model'),
    'run.folder': str(place / 'run'),
    'server.sglang.staging': str(place / 'staging'),
    'server.urls': urls,
    **COUNTS,
  }


EVALUATED: dict[str, Any] = {
  **{
    name: COUNTS[name]
    for name in (
      'agent.max_new_tokens',
      'sampling.context',
      'subagent.max_frames',
      'subagent.max_new_tokens',
      'subagent.summary_tokens',
      'video.max_pixels',
      'video.workers',
    )
  },
  'eval.budgets': (8,),
}


def evaluation(
  place: pathlib.Path, urls: tuple[str, ...], snapshot: pathlib.Path
) -> dict[str, Any]:
  """The knobs of `experiments.eval`, for the export of the run in `place`."""
  return {
    'benchmarks': 'videomme',
    'data.cache': str(place / 'benchmark' / 'cache'),
    'model.folder': str(place / 'run' / 'hf'),
    'paths.videomme': str(snapshot),
    'run.folder': str(place / 'results'),
    'server.urls': urls,
    **EVALUATED,
  }
