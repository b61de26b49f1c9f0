"""Cold-start SFT: the format, before RL. Loss on assistant turns only, packed, cosine schedule.

python -m experiments.sft --config=configs/sft.py                 # the tiny scale, on the synthetic world
python -m experiments.sft --config=configs/sft.py:8b --config.model.folder=DIR --config.data.media_root=DIR \\
  --config.data.train="('a.parquet',)"
"""

from ml_collections import ConfigDict

from configs import base


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`."""
  return base.sft(scale)
