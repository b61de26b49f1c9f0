"""Long videos: what the scales `:2b_long`, `:8b_long` and `:tiny_long` change of `:2b`, `:8b` and
`:tiny`.

Sizes and placement change, never the algorithm. A frame of 224 x 224 pixels takes 58 tokens.

    tiny_long  SFT alone, on 512 frames of the synthetic world
    2b_long    512 frames on one 80 GB GPU
    8b_long    3,600 frames, an hour at one a second, on 8 x 80 GB. All eight share each row of
               262,144 tokens (mesh.context)
"""

from ml_collections import ConfigDict

HOUR = 3600  # frames, at one a second


def rl(config: ConfigDict, scale: str) -> None:
  """Changes the RL recipe of a scale without `_long`."""
  if scale == '2b_long':
    config.frames.update({'budgets': (32, 64, 128, 256, 512), 'frames': 512})
    # a prompt of 512 frames and its eight rollouts
    config.train.update({'row_tokens': 40960, 'row_images': 640})
    config.batches.row_lengths = (8192, 20480)
    config.sampling.context = 40960
  if scale == '8b_long':
    config.frames.update({'budgets': (64, 256, 1024, HOUR), 'frames': HOUR})
    config.train.update({'row_tokens': 262144, 'row_images': 4096, 'rows': 1, 'head_chunk': 8192})
    config.batches.row_lengths = (24576, 81920)
    config.sampling.context = 262144
    config.mesh.update({'fsdp': 1, 'context': 8})
  _video(config)


def sft(config: ConfigDict, scale: str) -> None:
  """Changes the SFT recipe of a scale without `_long`. A step keeps its tokens."""
  if scale == '2b_long':
    config.frames.max_frames = 512
    config.train.update({'row_tokens': 32768, 'row_images': 512, 'micro_batches': 8})
  if scale == '8b_long':
    config.frames.max_frames = HOUR
    config.train.update({'row_tokens': 262144, 'row_images': 4096, 'head_chunk': 8192})
    config.train.update({'rows': 1, 'micro_batches': 1})
    config.mesh.update({'fsdp': 1, 'context': 8})
  _video(config)


def _video(config: ConfigDict) -> None:
  """An overview of an hour decodes all of the file."""
  config.video.deadline_s = 300.0


def tiny_sft(config: ConfigDict) -> None:
  """`:tiny_long`: the cold start's model reads all 512 frames of a video, in minutes on two cores.

  Short windows come first: they teach to find a time and to read the frame behind it.
  """
  config.frames.max_frames = 512
  config.train.update(
    {'row_tokens': 5120, 'row_images': 576, 'rows': 1, 'micro_batches': 1, 'head_chunk': 5120}
  )
  config.steps = 300
  config.optimizer.total_steps = 300
  config.world.corpus.update({'videos': 60, 'heldout_videos': 0, 'rl_tasks': 0, 'heldout_tasks': 0})
  rows = {'lookup1': 2000, 'lookup5': 2000, 'glance16': 2000, 'glance64': 2000, 'glance512': 1000}
  config.world.corpus.sft_rows = ConfigDict(rows)
  config.sources = {
    'lookup1': (1.0, 0, 60),
    'lookup5': (2.0, 0, 150),
    'glance16': (2.0, 0, None),
    'glance64': (2.0, 0, None),
    'glance512': (2.0, 0, None),
  }
