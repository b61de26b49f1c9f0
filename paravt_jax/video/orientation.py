"""Turning a decoded image upright, as the recording's display matrix has it."""

import av
import numpy as np


def matrix(frame: av.VideoFrame) -> np.ndarray | None:
  """int[2, 2] of a frame's display matrix: a pixel is shown at (x, y) @ matrix; None without."""
  data = frame.side_data.get('DISPLAYMATRIX')
  if data is None:
    return None
  # 3x3 of 32-bit numbers, row by row; the third column and row hold perspective and offset
  return np.frombuffer(bytes(data), np.int32)[:9].reshape(3, 3)[:2, :2].astype(np.int64)


def is_upright(frame: av.VideoFrame) -> bool:
  """Whether the frame is shown as it is stored."""
  return _parts(matrix(frame)) == (False, False, False)


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
  """(height, width) of the upright image."""
  transposed, _, _ = _parts(matrix(frame))
  return (frame.width, frame.height) if transposed else (frame.height, frame.width)


def upright(frame: av.VideoFrame, image: np.ndarray) -> np.ndarray:
  """The image [H, W, 3] as it is shown, turned by a multiple of 90 degrees and mirrored."""
  transposed, flip_rows, flip_columns = _parts(matrix(frame))
  if transposed:
    image = image.transpose(1, 0, 2)
  return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _parts(turn: np.ndarray | None) -> tuple[bool, bool, bool]:
  """(rows and columns swap, then rows are reversed, then columns are)."""
  if turn is None or not turn.any():
    return False, False, False
  (a, b), (c, d) = turn.tolist()
  if abs(a) + abs(d) >= abs(b) + abs(c):
    return False, d < 0, a < 0
  return True, b < 0, c < 0
