"""Cold-start SFT: the format, before RL. Loss on assistant turns only, packed, cosine schedule.

python -m experiments.sft --config=configs/sft.py                 # the tiny scale, on the synthetic world

With the published corpora, three commands: the archives into one root, the rows' media paths into
that root, the training.

python -m paravt_jax.data.unpack --archives ParaVT-Source --root DATA/media
python -m paravt_jax.data.materialize --root DATA/media --parquet-dir ParaVT-Parquet --output-dir DATA/rows
python -m experiments.sft --config=configs/sft.py:8b --config.model.folder=Qwen3-VL-8B-Instruct --config.data.media_root=DATA/media \\
  --config.data.train="('DATA/rows/paravt_sft_*.parquet',)" --config.data.skip_bad_rows=True --config.video.cache_folder=DATA/frames

Each file is a source, drawn in proportion to its rows. For weights of your own
--config.data.manifest=DATA/rows/mix.json instead: {"sources": {"selftrace": {"files":
["paravt_sft_selftrace*.parquet"], "weight": 2}, "videor1": {"files": ["*videor1*"], "weight": 5}}}
"""

from ml_collections import ConfigDict

from configs import base


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The recipe at `scale`."""
  return base.sft(scale)
