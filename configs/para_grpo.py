"""PARA-GRPO: GRPO with exploration anchoring (pinned <think>, anchor reward) and frame-budget
gating.

python -m experiments.rl --config=configs/para_grpo.py            # the tiny scale, on any machine
python -m experiments.rl --config=configs/para_grpo.py:8b --config.model.folder=DIR --config.data.media_root=DIR \\
  --config.data.train="('a.parquet',)" --config.server.urls="('http://HOST:PORT',)"
"""

from ml_collections import ConfigDict

from configs import base


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`."""
  config = base.rl(scale)
  config.name = 'para_grpo'
  return config
