"""Turns decoded images upright with the display matrix of the recording."""

import av
import numpy as np


def matrix(frame: av.VideoFrame) -> np.ndarray | None:
  """Returns the int64[2, 2] part of a frame's display matrix, or None if it has none.

  A pixel (x, y) is displayed at (x, y) @ matrix.
  """
  data = frame.side_data.get('DISPLAYMATRIX')
  if data is None:
    return None
  # 3x3 int32, row by row; the third column is the perspective, the third row the offset
  return np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].astype(np.int64)


def is_upright(frame: av.VideoFrame) -> bool:
  """Returns whether the frame is displayed as stored, without turning or mirroring."""
  return _parts(matrix(frame)) == (False, False, False)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
  """Returns (height, width) of the upright image."""
  transposed, _, _ = _parts(matrix(frame))
  return (frame.width, frame.height) if transposed else (frame.height, frame.width)


def upright(frame: av.VideoFrame, image: np.ndarray) -> np.ndarray:
  """Returns the image [H, W, 3] upright: turned by a multiple of 90 degrees and mirrored."""
  transposed, flip_rows, flip_columns = _parts(matrix(frame))
  if transposed:
    image = image.transpose(1, 0, 2)
  return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _parts(turn: np.ndarray | None) -> tuple[bool, bool, bool]:
  """Returns (swap rows and columns, reverse rows, reverse columns), to be applied in this order."""
  if turn is None or not turn.any():
    return False, False, False
  (a, b), (c, d) = turn.tolist()
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return False, d < 0, a < 0
  return True, b < 0, c < 0
