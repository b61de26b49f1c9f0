"""The scales for long videos: what they change of those that they come from, and that one trains."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import para_grpo, sft
from paravt_jax.orchestrator import cold_start
from tests.configs_test import leaves
from tests.recipes import typed


@pytest.mark.parametrize('get_config', [para_grpo.get_config, sft.get_config])
@pytest.mark.parametrize('scale', ['2b', '8b'])
def test_long_video_changes_frames_rows_and_placement_only(get_config, scale):
  long, short = leaves(get_config(f'{scale}_long')), leaves(get_config(scale))
  changed = {knob for knob, value in long.items() if value != short[knob]}
  assert changed <= {
    'scale',
    'frames.budgets',
    'frames.frames',
    'frames.max_frames',
    'sampling.context',
    'train.row_tokens',
    'train.row_images',
    'train.rows',
    'train.micro_batches',
    'train.head_chunk',
    'batches.row_lengths',
    'mesh.fsdp',
    'mesh.context',
    'video.deadline_s',
  }


@pytest.mark.parametrize(('scale', 'frames', 'sliced'), [('2b_long', 512, 1), ('8b_long', 3600, 8)])
def test_a_row_of_a_long_scale_holds_its_frames_and_a_step_of_sft_its_tokens(scale, frames, sliced):
  rl, cold = para_grpo.get_config(scale), sft.get_config(scale)
  assert max(rl.frames.budgets) == rl.frames.frames == cold.frames.max_frames == frames
  assert rl.mesh.context == cold.mesh.context == sliced
  for config in (rl, cold):
    # a frame of 7 x 7 tokens, its time and delimiters
    assert config.train.row_tokens >= 58 * frames and config.train.row_images >= frames
    assert config.train.row_tokens % (2 * config.mesh.context) == 0
  published = sft.get_config('8b').train
  tokens = lambda train: train.rows * train.micro_batches * train.row_tokens
  assert tokens(cold.train) == tokens(published)


@pytest.mark.nightly
def test_the_tiny_model_trains_on_all_512_frames_of_a_video(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # the world and the model's first weights lie below runs/
  config = sft.get_config('tiny_long')
  config.steps = config.optimizer.total_steps = 30
  config.run.folder = str(tmp_path / 'run')
  config.world.corpus.videos = 4
  config.world.corpus.sft_rows = ConfigDict({'glance512': 60})
  config.sources = ConfigDict({'glance512': (1.0, 0, None)})
  cold_start.cold_start(typed(config))
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  steps = [one for one in map(json.loads, lines) if 'sft/loss' in one]
  assert len(steps) == 30
  # one overview in a row of 5,120 tokens: a frame and its time take 7 or 8
  assert all(one['sft/documents'] == 1 and one['pack/fill'] > 0.75 for one in steps)
  losses = [one['sft/loss'] for one in steps]
  assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:2])
