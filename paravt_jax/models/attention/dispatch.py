"""One call for all backends: `attend` over packed rows, `attend_images` over images.

Token i sees token j if three conditions are true. Both have the same segment (document), which
is not 0. j is not later in the row. j is in the shared prefix (branch 0) or in i's branch. So one
row can hold several documents, and several continuations of one prefix:

  segment  1 1 1 1 1 1 1 2 2 0      the prefix a b c is computed once; suffixes d e and f g
  branch   0 0 0 1 1 2 2 0 0 0      see it and themselves, not each other; document h i sees
  token    a b c d e f g h i .      itself; the last token is padding

'xla' and 'chunked' read segments and branches. The others read the two ranges of keys of
`ranges.py`, which need contiguous branches, as `paravt_jax.packing` lays them out.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from paravt_jax import shapes
from paravt_jax.models.attention import mesh as meshes
from paravt_jax.models.attention import ranges
from paravt_jax.models.attention.chunked import attend_chunked
from paravt_jax.models.attention.plain import attend_xla, masked
from paravt_jax.models.attention.tiled import attend_tiled


def _attend_triton(q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  # on use: Pallas takes time to import, and other versions of JAX may lack it
  from paravt_jax.models.attention.triton import attend_triton

  return attend_triton(q_BTHF, k_BTKF, v_BTKF, ranges_BT4)


def _attend_splash(q_BTHF, k_BTKF, v_BTKF, ranges_BT4):
  # on use, as above
  from paravt_jax.models.attention.splash import attend_splash

  return attend_splash(q_BTHF, k_BTKF, v_BTKF, ranges_BT4)


_BY_SEGMENTS = {'xla': attend_xla, 'chunked': attend_chunked}
_BY_RANGES: Mapping[str, Callable[..., jax.Array]] = {
  'tiled': attend_tiled,
  'triton': _attend_triton,
  'splash': _attend_splash,
}
BACKENDS = ('auto', *_BY_SEGMENTS, *_BY_RANGES)

_SHORT_ROW = 512  # tokens; up to here 'chunked' is as fast as 'tiled' on a CPU
_LARGE_IMAGE = 1024  # patches; below, all weights of an image are in memory at once


def choose(platform: str, length: int, dtype: jax.typing.DTypeLike) -> str:
  """Returns the backend that 'auto' stands for.

  Args:
    platform: of the devices: 'cpu', 'gpu', 'cuda' or 'tpu'.
    length: tokens of a row.
    dtype: of queries, keys and values.
  """
  if platform in ('gpu', 'cuda') and jnp.dtype(dtype).itemsize == 2:
    return 'triton'
  if platform == 'tpu':
    return 'splash'
  if platform == 'cpu' and length <= _SHORT_ROW:
    return 'chunked'
  return 'tiled'


def attend(
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  segments_BT: jax.Array,
  branches_BT: jax.Array,
  *,
  backend: str,
  mesh: Mesh | None = None,
) -> jax.Array:
  """Computes causal attention over packed rows with shared prefixes.

  Args:
    q_BTHF, k_BTKF, v_BTKF: rotary already applied; H is a multiple of K.
    segments_BT, branches_BT: int32; segment 0 is padding.
    backend: one of BACKENDS. 'xla' stores all T x T weights. 'chunked' stores the weights of one
      block of queries. 'tiled' stores one pair of tiles and skips pairs that see nothing. 'triton'
      does the same as a kernel for NVIDIA GPUs, 'splash' as one for TPUs. 'auto' is the choice of
      `choose`.
    mesh: of the devices, with axes named data, fsdp, context and tensor. The backends that loop
      over rows then run on each device with its own rows, heads and queries (`mesh.py`), and 'xla'
      and 'chunked' with whole rows. Without it they take the whole arrays.

  Returns:
    [B, T, H, F] in q's dtype; outputs at padding are garbage. Queries of padding get gradient 0,
    except in 'xla'.

  Raises:
    ValueError: the backend is unknown, or the shapes do not match.
  """
  shapes.check(
    q_BTHF=q_BTHF, k_BTKF=k_BTKF, v_BTKF=v_BTKF, segments_BT=segments_BT, branches_BT=branches_BT
  )
  backend = _resolve(backend, mesh, q_BTHF)
  if backend in _BY_SEGMENTS:
    arrays = (meshes.whole_rows(mesh, x) for x in (q_BTHF, k_BTKF, v_BTKF))
    return _BY_SEGMENTS[backend](*arrays, segments_BT, branches_BT)
  ranges_BT4 = ranges.packed_rows(segments_BT, branches_BT)
  return meshes.attend_rows(_BY_RANGES[backend], mesh, q_BTHF, k_BTKF, v_BTKF, ranges_BT4)


def attend_images(
  q_IXHF: jax.Array,
  k_IXHF: jax.Array,
  v_IXHF: jax.Array,
  exists_IX: jax.Array,
  *,
  backend: str = 'auto',
  mesh: Mesh | None = None,
) -> jax.Array:
  """Computes attention of every patch to the patches of its image that are not padding.

  Args:
    q_IXHF, k_IXHF, v_IXHF: rotary already applied.
    exists_IX: bool; the valid patches come first.
    backend, mesh: as in `attend`. Images of fewer than 1,024 patches use 'xla' on every platform.

  Returns:
    [I, X, H, F]; outputs at padding are garbage.
  """
  shapes.check(q_IXHF=q_IXHF, k_IXHF=k_IXHF, v_IXHF=v_IXHF, exists_IX=exists_IX)
  images, patches = exists_IX.shape
  if patches < _LARGE_IMAGE or backend == 'xla':
    mask_IXX = jnp.broadcast_to(exists_IX[:, None, :], (images, patches, patches))
    return masked(q_IXHF, k_IXHF, v_IXHF, mask_IXX)
  backend = _resolve(backend, mesh, q_IXHF)
  # 'chunked' has no form for images
  call = _BY_RANGES.get(backend, attend_tiled)
  ranges_IX4 = ranges.valid_keys(exists_IX)
  return meshes.attend_each_image(call, mesh, q_IXHF, k_IXHF, v_IXHF, ranges_IX4)


def _resolve(backend: str, mesh: Mesh | None, q_BTHF: jax.Array) -> str:
  """Returns a backend other than 'auto'.

  Raises:
    ValueError: the backend is unknown.
  """
  if backend not in BACKENDS:
    raise ValueError(f'attention backend {backend!r}: wanted one of {sorted(BACKENDS)}')
  if backend != 'auto':
    return backend
  platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
  return choose(platform, q_BTHF.shape[1], q_BTHF.dtype)
