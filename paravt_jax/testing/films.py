"""Writes test videos in many codecs and containers, and edits them: cuts and rotations."""

import pathlib
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import cast

import av
import numpy as np

SIZE = (48, 64)
# fast settings with a key frame every 12 frames and no B-frames
ENCODERS = {
  'libx264': {'preset': 'ultrafast', 'threads': '1', 'g': '12', 'bf': '0'},
  'libx265': {
    'preset': 'ultrafast',
    'x265-params': 'log-level=none:pools=1:frame-threads=1:keyint=12:bframes=0',
  },
  'libvpx': {'deadline': 'realtime', 'cpu-used': '8', 'g': '12', 'threads': '1'},
  'libvpx-vp9': {'deadline': 'realtime', 'cpu-used': '8', 'g': '12', 'threads': '1'},
  'libsvtav1': {'preset': '12', 'g': '12', 'svtav1-params': 'lp=1'},
  'mpeg4': {'g': '12', 'threads': '1'},
  'mpeg1video': {'g': '12', 'threads': '1'},
  'mpeg2video': {'g': '12', 'threads': '1'},
}
B_FRAMES = {
  'libx264': {'preset': 'medium', 'bf': '3', 'x264-params': 'open-gop=1:scenecut=0:rc-lookahead=5'},
  'libx265': {
    'x265-params': 'log-level=none:pools=1:frame-threads=1:keyint=12:bframes=3:open-gop=1:rc-lookahead=5'
  },
  'libvpx-vp9': {'deadline': 'good', 'auto-alt-ref': '1', 'lag-in-frames': '12', 'row-mt': '0'},
  'libvpx': {'deadline': 'good', 'auto-alt-ref': '1', 'lag-in-frames': '12'},
  'mpeg4': {'bf': '2'},
}


def moving_image(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
  """Returns an asymmetric image uint8[H, W, 3] that differs for each index."""
  rows, columns = np.mgrid[: size[0], : size[1]]
  red = (rows * 3 + index * 7) % 256
  green = (columns * 2 + index * 11) % 256
  blue = np.full(size, 40 + index * 5 % 200)
  image = np.stack([red, green, blue], -1).astype(np.uint8)
  at = index * 2 % (size[0] - 8)
  image[at : at + 8, : size[1] // 3] = 255
  return image


def write(
  path: pathlib.Path,
  codec: str,
  frames: int = 48,
  *,
  format: str | None = None,
  container_options: dict[str, str] | None = None,
  options: dict[str, str] | None = None,
  pts: Callable[[int], int] | None = None,
  rotation: int | None = None,
  size: tuple[int, int] = SIZE,
  offset: int = 0,
) -> pathlib.Path:
  """Writes a video of `moving_image`s at 24 frames/s, with indices from `offset` on.

  pts: maps a frame's number to its presentation time in 1/24 s; None for the number itself.
  Returns the path.
  """
  with av.open(str(path), 'w', format=format, options=container_options or {}) as out:
    stream = cast(
      av.VideoStream, out.add_stream(codec, rate=24, options=ENCODERS[codec] | (options or {}))
    )
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    stream.codec_context.gop_size = 12
    stream.codec_context.time_base = Fraction(1, 24)
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for i in range(frames):
      frame = av.VideoFrame.from_ndarray(moving_image(i + offset, size), format='rgb24')
      frame.pts, frame.time_base = i if pts is None else pts(i), Fraction(1, 24)
      out.mux(stream.encode(frame))
    out.mux(stream.encode(None))
  return path


def copy_from(
  source: pathlib.Path, target: pathlib.Path, seconds: float, format: str | None = None
) -> pathlib.Path:
  """Cuts a video without encoding it again, and returns the path of the new file.

  Copies the packets from the key frame before `seconds` on. `seconds` becomes time zero.
  """
  with av.open(str(source)) as a, av.open(str(target), 'w', format=format) as b:
    stream = a.streams.video[0]
    copied = b.add_stream_from_template(stream, opaque=True)
    if stream.time_base is None:
      raise ValueError(f'{source}: its video has no time base')
    start = (stream.start_time or 0) + int(seconds / stream.time_base)
    a.seek(start, stream=stream, backward=True)
    for packet in a.demux(stream):
      if packet.dts is None or packet.pts is None:
        continue
      packet.pts = packet.pts - start
      packet.dts = packet.dts - start
      packet.stream = copied
      b.mux(packet)
  return target


def set_matrix(path: pathlib.Path, matrix: Sequence[int]) -> pathlib.Path:
  """Sets the display matrix (a, b, c, d) of an mp4's track and returns the path.

  The pixel (x, y) is then displayed at (ax + cy, bx + dy).
  """
  data = bytearray(path.read_bytes())
  at = data.index(b'tkhd') + 4
  at += 4 + (32 if data[at] else 20) + 16
  a, b, c, d = (value << 16 for value in matrix)
  data[at : at + 36] = struct.pack('>9i', a, b, 0, c, d, 0, 0, 0, 1 << 30)
  path.write_bytes(data)
  return path
