"""The readers of video files, by name. Each reader has one open file and the same interface.

`read(seconds)` yields (index into seconds, the frame's presentation time, uint8[H, W, 3] upright
RGB) for every requested time, in time order. A repeated time yields its frame again. The frame at
time t is the frame on screen: the last one with a presentation time <= t. Seconds count from the
stream's start. `info` is a VideoInfo, `interval` the nominal time between two frames in seconds.
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
