"""PARA-GRPO: GRPO with exploration anchoring (pinned <think>, anchor reward) and frame-budget gating.

python -m experiments.rl --config=configs/para_grpo.py            # the tiny scale, on any machine
python -m experiments.rl --config=configs/para_grpo.py:8b --config.server.url=http://HOST:PORT --config.model.folder=DIR …
"""

from ml_collections import ConfigDict

from configs import base


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`."""
  config = base.rl(scale)
  config.name = 'para_grpo'
  return config.lock()
