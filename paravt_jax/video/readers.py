"""The readers of video files, by name. Each holds one open file behind the same interface.

`read(seconds)` yields (index into seconds, the frame's own time, uint8[H, W, 3] upright RGB) for
every time asked for, twice where it is asked twice, in time order. The frame at time t is the one
being shown: the last whose presentation time is <= t. Seconds count from the stream's start. `info`
is a VideoInfo, `interval` the nominal distance of two frames in seconds.
"""

from paravt_jax.video.decord_reader import DecordReader
from paravt_jax.video.media import VideoInfo, broken, missing, no_frames, not_video
from paravt_jax.video.pyav_reader import PyavReader

__all__ = [
  'READERS',
  'DecordReader',
  'PyavReader',
  'VideoInfo',
  'broken',
  'missing',
  'no_frames',
  'not_video',
]

READERS = {'pyav': PyavReader, 'decord': DecordReader}
