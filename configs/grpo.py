"""Vanilla GRPO, the baseline: no pinned opening, no answer suffix, no anchor, no gating; the tool
reward stays on.

python -m experiments.rl --config=configs/grpo.py
"""

from ml_collections import ConfigDict

from configs import base


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`."""
  config = base.rl(scale)
  config.name = 'grpo'
  config.agent.think_prefix = ''
  config.reward.answer_suffix = False
  config.reward.anchor_weight = 0.0
  config.frames.gating = False
  return config
