"""Writes small video files for tests, benchmarks and the synthetic world.

They are real H.264 mp4 files, encoded with PyAV's bundled FFmpeg.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def make_clip(
  path: str | Path,
  seconds: float,
  fps: int,
  size: tuple[int, int],
  frames_fn: Callable[[int], np.ndarray],
  gop: int,
  *,
  options: dict[str, str] | None = None,
  pts: list[int] | None = None,
) -> Path:
  """Writes an H.264 mp4 without audio.

  Args:
    path: the file to write; its folder must exist.
    seconds, fps: length and frame rate; round(seconds * fps) frames are written.
    size: (height, width), even numbers.
    frames_fn: frame index -> uint8[height, width, 3] RGB.
    gop: maximum distance of key frames, in frames.
    options: for libx264, such as {'preset': 'veryfast', 'crf': '18', 'bf': '0'}.
    pts: strictly increasing presentation times of the frames in units of 1/fps; None for 0, 1,
      2, ...

  Returns:
    `path` as a Path.
  """
  path = Path(path)
  with av.open(str(path), 'w', format='mp4') as container:
    stream = container.add_stream(
      'libx264', rate=fps, options={'preset': 'veryfast', 'threads': '1', **(options or {})}
    )
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    stream.gop_size = gop
    stream.codec_context.time_base = Fraction(1, fps)
    for i in range(round(seconds * fps)):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frames_fn(i)), format='rgb24')
      frame.pts = pts[i] if pts else i
      frame.time_base = Fraction(1, fps)
      container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
  return path


def counting_frame(index: int, size: tuple[int, int]) -> np.ndarray:
  """Returns uint8[H, W, 3] that encodes `index` (below 65536) for `read_count`.

  The image is a 4x4 board of black and white squares, one per bit.
  """
  bits = (index >> np.arange(16)) & 1
  height, width = size
  board = np.repeat(np.repeat(bits.reshape(4, 4), -(-height // 4), 0), -(-width // 4), 1)[
    :height, :width
  ]
  return np.repeat((board * 219 + 16).astype(np.uint8)[..., None], 3, 2)


def read_count(frame: np.ndarray) -> int:
  """Returns the index that `counting_frame` encoded, from a decoded image uint8[H, W, 3].

  The image may be resized: only the centers of the squares are read.
  """
  height, width = frame.shape[:2]
  rows, columns = ((np.arange(4) * 2 + 1) * side // 8 for side in (height, width))
  bits = frame[rows][:, columns].mean(-1).reshape(16) > 127
  return int((bits << np.arange(16)).sum())
