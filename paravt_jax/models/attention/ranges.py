"""The keys that a query sees, as two ranges of the row: `ranges_BT4`.

Query i sees the keys u with `start1 <= u < end1` or `start2 <= u < end2`. An empty range has
start >= end. This needs that a document is contiguous, its prefix comes first, and each branch is
contiguous, as `paravt_jax.packing` lays them out:

  segment  1 1 1 1 1 1 1 2 2 0      token g (index 6) sees [0, 3), the prefix a b c of its document,
  branch   0 0 0 1 1 2 2 0 0 0      and [5, 7), its branch up to itself
  token    a b c d e f g h i .

Both ranges take O(T) memory. The masks, the lists of tiles and the calls of flash kernels of this
package all come from them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax import shapes


def packed_rows(segments_BT: jax.Array, branches_BT: jax.Array) -> jax.Array:
  """Returns int32[B, T, 4], the two ranges of keys that each query of packed rows sees.

  The first range is the prefix of the query's document, up to the query. The second is the query's
  branch, up to the query; it is empty in a prefix. Both are empty at padding (segment 0).
  """
  length = segments_BT.shape[1]
  index_T = jnp.arange(length, dtype=jnp.int32)
  # the first token of each document, and of each branch
  document_BT = _changes(segments_BT)
  branch_BT = document_BT | _changes(branches_BT)
  # running maxima carry an index to the tokens behind it
  last = lambda where_BT, value_T: jax.lax.cummax(jnp.where(where_BT, value_T, 0), axis=1)
  start_BT = last(document_BT, index_T)
  # one behind the last prefix token so far; a document without prefix finds an earlier one's
  prefix_end_BT = last(branches_BT == 0, index_T + 1)
  own_BT = last(branch_BT, index_T)
  end_BT = jnp.where(branches_BT > 0, index_T + 1, 0)
  ranges_BT4 = jnp.stack([start_BT, prefix_end_BT, own_BT, end_BT], axis=-1)
  return jnp.where(segments_BT[..., None] > 0, ranges_BT4, 0)


def _changes(x_BT):
  """Returns bool[B, T]: the value differs from the one before; True at index 0."""
  return jnp.concatenate([jnp.ones_like(x_BT[:, :1], bool), x_BT[:, 1:] != x_BT[:, :-1]], axis=1)


def valid_keys(exists_BT: jax.Array) -> jax.Array:
  """Returns int32[B, T, 4] for rows in which every query sees all valid tokens.

  Valid tokens come first in their row, as the patches of an image do.
  """
  count_B = jnp.sum(exists_BT, axis=1, dtype=jnp.int32)
  zero_B = jnp.zeros_like(count_B)
  ranges_B4 = jnp.stack([zero_B, count_B, zero_B, zero_B], axis=-1)
  return jnp.broadcast_to(ranges_B4[:, None], (*exists_BT.shape, 4))


def mask(ranges_BT4: jax.Array, keys: int, first: jax.Array | int = 0) -> jax.Array:
  """Returns bool[B, T, U]: whether a query sees the keys first .. first + keys - 1."""
  index_U = first + jnp.arange(keys, dtype=jnp.int32)
  start1, end1, start2, end2 = (ranges_BT4[..., i, None] for i in range(4))
  return ((start1 <= index_U) & (index_U < end1)) | ((start2 <= index_U) & (index_U < end2))


def visible_tiles(ranges_BT4: jax.Array, tile: int, keys: int | None = None) -> jax.Array:
  """Returns bool[B, query tiles, key tiles]: whether some query of a tile sees some key of another.

  T, and the number of keys if it is not T, must be multiples of `tile`.
  """
  shapes.check(ranges_BT4=ranges_BT4)
  rows, length = ranges_BT4.shape[:2]
  first = jnp.arange(0, keys or length, tile, dtype=jnp.int32)  # of each key tile
  tiles = ranges_BT4.reshape(rows, length // tile, tile, -1, 2, 1)
  start, end = tiles[..., 0, :], tiles[..., 1, :]
  # a range that is not empty meets the keys first .. first + tile - 1
  meets = (start < end) & (start < first + tile) & (end > first)
  return jnp.any(meets, axis=(2, 3))


def count_tile_pairs(segments_BT: np.ndarray, branches_BT: np.ndarray, tile: int) -> int:
  """Returns how many pairs of tiles packed rows multiply; each has tile * tile pairs of tokens."""
  pad = -segments_BT.shape[1] % tile
  padded = (jnp.pad(jnp.asarray(x), ((0, 0), (0, pad))) for x in (segments_BT, branches_BT))
  return int(jnp.sum(visible_tiles(packed_rows(*padded), tile)))


def count_visible_pairs(segments_BT: np.ndarray, branches_BT: np.ndarray) -> int:
  """Returns how many pairs (query, key) of packed rows see each other."""
  ranges_BT4 = np.asarray(packed_rows(jnp.asarray(segments_BT), jnp.asarray(branches_BT)))
  lengths = ranges_BT4[..., 1::2].astype(np.int64) - ranges_BT4[..., ::2]
  return int(np.maximum(lengths, 0).sum())
