"""M-RoPE position ids: three numbers per token (time, height, width). Numpy only.

A text token advances all three by one. An image of h x w merged tokens at position p has one time
step. Its tokens have the positions (p, p + row, p + column), and the next token has p + max(h, w).
Every temporal patch of a native video counts as a separate image.
"""

from collections.abc import Sequence

import numpy as np

from paravt_jax.errors import DataError


def mrope_positions(
  ids: np.ndarray,
  image_id: int,
  merged_grids: Sequence[tuple[int, int]],
  start: int = 0,
  *,
  video_id: int | None = None,
  video_grids: Sequence[tuple[int, int]] = (),
) -> tuple[np.ndarray, int]:
  """Returns the M-RoPE positions of one sequence of expanded ids.

  Args:
    ids: int[n]; every image placeholder is already repeated once per merged token.
    image_id: the token id of the image placeholder.
    merged_grids: (rows, columns) of merged tokens per image, in order.
    start: position of the first token.
    video_id, video_grids: the same for native video, one grid per *temporal patch*.

  Returns:
    (int32[3, n] positions, the position of the next token). Empty ids give int32[3, 0] and `start`.

  Raises:
    DataError: the placeholders do not match the grids.
  """
  ids = np.asarray(ids)
  positions = np.empty((3, len(ids)), np.int32)
  grids = {image_id: iter(merged_grids)}
  if video_id is not None:
    grids[video_id] = iter(video_grids)
  visual = np.isin(ids, list(grids))
  at, position = 0, start
  while at < len(ids):
    # text up to the next image
    if not visual[at]:
      ahead = np.flatnonzero(visual[at:])
      n = int(ahead[0]) if len(ahead) else len(ids) - at
      positions[:, at : at + n] = position + np.arange(n, dtype=np.int32)
      at, position = at + n, position + n
      continue
    # an image: one time step for all its tokens
    rows, columns = _grid_at(ids, at, next(grids[int(ids[at])], None))
    n = rows * columns
    positions[0, at : at + n] = position
    positions[1, at : at + n] = position + np.repeat(np.arange(rows, dtype=np.int32), columns)
    positions[2, at : at + n] = position + np.tile(np.arange(columns, dtype=np.int32), rows)
    at, position = at + n, position + max(rows, columns)
  # no grid may be left over
  left = {name: len(list(rest)) for name, rest in grids.items()}
  if any(left.values()):
    raise DataError(
      f'got {sum(left.values())} more grids than runs of placeholders in {len(ids)} ids; '
      'expand the ids again'
    )
  return positions, position


def _grid_at(ids: np.ndarray, at: int, grid: tuple[int, int] | None) -> tuple[int, int]:
  """Returns the grid (rows, columns) of the image that begins at token `at`.

  Raises DataError when the placeholders do not match the grid.
  """
  if grid is None:
    raise DataError(
      f'token {at}: placeholder {int(ids[at])} has no image left, wanted one grid per image; '
      'expand the ids again'
    )
  rows, columns = int(grid[0]), int(grid[1])
  n = rows * columns
  if not (ids[at : at + n] == ids[at]).all() or at + n > len(ids):
    raise DataError(
      f'token {at}: an image of {rows} x {columns} merged tokens wants {n} equal '
      'placeholders, got fewer; expand the ids with the grids of these very images'
    )
  return rows, columns
