"""How pages of keys and values lie in a device's memory, and what attends over them.

A page holds the keys and values of one chunk of a context. `Shapes.attention` names the form:

  slots    a context's pages are copied to contiguous columns of its slot, and decoding reads those
           (`slots.py`). Fast on a CPU, but each slot takes memory for the longest context.
  pages    decoding reads pages where they are (`paged.py`), with a loop of plain XLA
  triton   the same with JAX's paged kernel for NVIDIA GPUs. Prefill uses the loop.
  ragged   the same with JAX's ragged paged kernel for TPUs, which also computes prefill

Of the last three, contexts with a common beginning also share memory while they decode.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

FORMS = ('slots', 'pages', 'triton', 'ragged')
_FAR = -1e30
_LANES = 128  # the ragged kernel takes heads of whole lanes
_SUBPAGE = 64  # tokens that the Triton kernel reads at once, at most
_LEAST_TILE = 16  # tokens or queries of a product in Triton
_SPLITS = 16  # parts of a context that the Triton kernel computes side by side, at most
_BLOCK = 512  # tokens that the ragged kernel holds in fast memory, twice
_QUERIES = 32  # of a block of the ragged kernel
_VMEM_BYTES = 64 << 20  # fast memory that the ragged kernel may use

Layer = tuple[jax.Array, ...]  # the pages of one layer


def choose(platform: str, dtype: Any, chunk: int, head_dim: int) -> str:
  """Returns the form that 'auto' stands for.

  Args:
    platform: of the devices: 'cpu', 'gpu', 'cuda' or 'tpu'.
    dtype: of keys and values.
    chunk: tokens of a page.
    head_dim: width of a head.
  """
  if platform == 'cpu':
    return 'slots'
  kernels = ('triton', 'ragged')
  fitting = (form for form in kernels if not unmet(form, platform, dtype, chunk, head_dim))
  return next(fitting, 'pages')


def unmet(form: str, platform: str, dtype: Any, chunk: int, head_dim: int) -> str:
  """Returns what a form wants and does not get, '' if nothing. Arguments as in `choose`."""
  if form == 'ragged':
    if platform != 'tpu':
      return f'a TPU, and the devices are {platform}'
    return '' if head_dim % _LANES == 0 else f'heads of a multiple of {_LANES}, got {head_dim}'
  if form == 'triton':
    if platform not in ('gpu', 'cuda'):
      return f'a GPU, and the devices are {platform}'
    if head_dim < _LEAST_TILE or head_dim.bit_count() != 1:
      return f'heads of a power of two from {_LEAST_TILE} on, got {head_dim}'
    if chunk % _LEAST_TILE:
      return f'chunk_tokens of a multiple of {_LEAST_TILE}, got {chunk}'
    if jnp.dtype(dtype).itemsize != 2:
      return f'bfloat16, got {dtype}, whose products it would round to TensorFloat-32'
  return ''


def layout_of(form: str, interpret: bool = False) -> 'Layout':
  """Returns the layout of a form.

  Args:
    form: one of FORMS.
    interpret: run a kernel on the host instead, for tests.
  """
  kinds = {'slots': SlotPages, 'pages': HeadPages, 'triton': TritonPages, 'ragged': RaggedPages}
  return kinds[form](interpret)


@dataclasses.dataclass(frozen=True)
class Layout:
  """Pages of one layer in some order of axes. Subclasses say which."""

  interpret: bool = False  # run a kernel on the host instead, for tests
  axes: ClassVar[tuple[str | None, ...]]  # logical, of each array of a layer
  paged: ClassVar[bool] = True  # whether decoding reads pages

  def shapes(self, pages: int, heads: int, chunk: int, width: int) -> tuple[tuple[int, ...], ...]:
    """Returns the shapes of a layer's arrays."""
    raise NotImplementedError

  def write_pages(self, layer: Layer, k_RTKF, v_RTKF, page_R: jax.Array) -> Layer:
    """Returns the layer with whole pages replaced, one per row."""
    raise NotImplementedError

  def write_tokens(self, layer: Layer, k_SKF, v_SKF, page_S: jax.Array, at_S: jax.Array) -> Layer:
    """Returns the layer with one token of each context written, at a place of a page."""
    raise NotImplementedError

  def copy_page(self, layer: Layer, old: jax.Array, new: jax.Array) -> Layer:
    """Returns the layer with page `old` copied to page `new`."""
    raise NotImplementedError

  def attend_chunks(
    self, q_RTHF, layer: Layer, table_RP: jax.Array, chunk_R: jax.Array, mesh: Mesh | None
  ) -> jax.Array:
    """Attends with the queries of one chunk of each context to its pages so far.

    Args:
      q_RTHF: queries of chunk `chunk_R` of each row's context.
      table_RP: the pages of each row's context.
      mesh: of the devices that share the heads, None for one device.

    Returns:
      [R, T, H, F] in q's dtype.
    """
    chunk = q_RTHF.shape[1]
    return _attend(q_RTHF, self._fetch(layer), table_RP, chunk_R * chunk, chunk)

  def attend_tokens(
    self, q_S1HF, layer: Layer, table_SP: jax.Array, last_S: jax.Array, mesh: Mesh | None
  ) -> jax.Array:
    """Attends with one query per context to its tokens 0..`last_S`. Returns [S, 1, H, F]."""
    raise NotImplementedError

  def _fetch(self, layer: Layer) -> Callable[[jax.Array], tuple[jax.Array, jax.Array]]:
    """Returns a function from page_R to the keys [R, K, F, U] and values [R, K, U, F] of pages."""
    raise NotImplementedError


class SlotPages(Layout):
  """k [pages, K, F, T], v [pages, K, T, F]: as the columns of slots, which are copied from them."""

  axes = (None, 'kv_heads', None, None)
  paged = False

  def shapes(self, pages, heads, chunk, width):
    return (pages, heads, width, chunk), (pages, heads, chunk, width)

  def write_pages(self, layer, k_RTKF, v_RTKF, page_R):
    keys, values = layer
    k_RKFT, v_RKTF = k_RTKF.transpose(0, 2, 3, 1), v_RTKF.transpose(0, 2, 1, 3)
    for r in range(page_R.shape[0]):
      at = (page_R[r], 0, 0, 0)
      keys = jax.lax.dynamic_update_slice(keys, k_RKFT[r : r + 1], at)
      values = jax.lax.dynamic_update_slice(values, v_RKTF[r : r + 1], at)
    return keys, values

  def _fetch(self, layer):
    return lambda page_R: (layer[0][page_R], layer[1][page_R])


class HeadPages(Layout):
  """k and v [K, pages, T, F], as JAX's paged kernels take them."""

  axes = ('kv_heads', None, None, None)

  def shapes(self, pages, heads, chunk, width):
    return ((heads, pages, chunk, width),) * 2

  def write_pages(self, layer, k_RTKF, v_RTKF, page_R):
    keys, values = layer
    k_KRTF, v_KRTF = k_RTKF.transpose(2, 0, 1, 3), v_RTKF.transpose(2, 0, 1, 3)
    for r in range(page_R.shape[0]):
      at = (0, page_R[r], 0, 0)
      keys = jax.lax.dynamic_update_slice(keys, k_KRTF[:, r : r + 1], at)
      values = jax.lax.dynamic_update_slice(values, v_KRTF[:, r : r + 1], at)
    return keys, values

  def write_tokens(self, layer, k_SKF, v_SKF, page_S, at_S):
    put = lambda pages, x_SKF: pages.at[:, page_S, at_S].set(
      x_SKF.transpose(1, 0, 2), mode='promise_in_bounds'
    )
    return put(layer[0], k_SKF), put(layer[1], v_SKF)

  def copy_page(self, layer, old, new):
    return tuple(_copied(pages, old, new, axis=1) for pages in layer)

  def attend_tokens(self, q_S1HF, layer, table_SP, last_S, mesh):
    return _attend(q_S1HF, self._fetch(layer), table_SP, last_S, layer[0].shape[2])

  def _fetch(self, layer):
    def pages(page_R):
      k_KRUF, v_KRUF = (x.at[:, page_R].get(mode='promise_in_bounds') for x in layer)
      return k_KRUF.transpose(1, 0, 3, 2), v_KRUF.transpose(1, 0, 2, 3)

    return pages


class TritonPages(HeadPages):
  """The same memory, read by JAX's Pallas kernel for decoding on NVIDIA GPUs."""

  def attend_tokens(self, q_S1HF, layer, table_SP, last_S, mesh):
    # on use: Pallas takes time to import, and other versions of JAX may lack it
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    chunk, width = layer[0].shape[2:]
    # A page is several small pages in a row, whose keys fit the shared memory of a GPU.
    small = _power(chunk, _SUBPAGE)
    parts = chunk // small
    table_SP = (table_SP[..., None] * parts + jnp.arange(parts)).reshape(table_SP.shape[0], -1)
    splits = _power(table_SP.shape[1], _SPLITS)
    at_once = _power(table_SP.shape[1] // splits, max(1, 2 * _SUBPAGE // small))

    def call(q_S1HF, keys, values, table_SP, last_S):
      cut = lambda pages: pages.reshape(pages.shape[0], -1, small, width)
      out_SHF = paged_attention(
        q_S1HF[:, 0] * width**-0.5,
        cut(keys),
        cut(values),
        table_SP,
        last_S + 1,
        k_splits=splits,
        pages_per_compute_block=at_once,
        num_warps=4,
        interpret=self.interpret,
      )
      return out_SHF[:, None]

    return _on_heads(call, self, mesh, q_S1HF, layer, table_SP, last_S)


class RaggedPages(Layout):
  """kv [pages, T, 2 K, F], keys and values of a head side by side, for JAX's TPU kernel."""

  axes = (None, None, 'kv_heads', None)

  def shapes(self, pages, heads, chunk, width):
    return ((pages, chunk, 2 * heads, width),)

  def write_pages(self, layer, k_RTKF, v_RTKF, page_R):
    (pages,) = layer
    both = _side_by_side(k_RTKF, v_RTKF)
    for r in range(page_R.shape[0]):
      pages = jax.lax.dynamic_update_slice(pages, both[r : r + 1], (page_R[r], 0, 0, 0))
    return (pages,)

  def write_tokens(self, layer, k_SKF, v_SKF, page_S, at_S):
    both = _side_by_side(k_SKF, v_SKF)
    return (layer[0].at[page_S, at_S].set(both, mode='promise_in_bounds'),)

  def copy_page(self, layer, old, new):
    return (_copied(layer[0], old, new, axis=0),)

  def attend_chunks(self, q_RTHF, layer, table_RP, chunk_R, mesh):
    return self._ragged(q_RTHF, layer, table_RP, (chunk_R + 1) * q_RTHF.shape[1], mesh)

  def attend_tokens(self, q_S1HF, layer, table_SP, last_S, mesh):
    return self._ragged(q_S1HF, layer, table_SP, last_S + 1, mesh)

  def _ragged(self, q_RTHF, layer, table_RP, length_R, mesh):
    """Attends with the last T tokens of each context's `length_R`."""
    # on use, as above
    from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention

    pages = min(max(1, _BLOCK // layer[0].shape[1]), table_RP.shape[1])

    def call(q_RTHF, kv, table_RP, length_R):
      rows, queries, heads, width = q_RTHF.shape
      out = ragged_paged_attention(
        q_RTHF.reshape(rows * queries, heads, width),
        kv,
        length_R,
        table_RP,
        jnp.arange(rows + 1, dtype=jnp.int32) * queries,
        jnp.array([rows], jnp.int32),
        sm_scale=width**-0.5,
        num_kv_pages_per_block=pages,
        num_queries_per_block=min(_QUERIES, rows * queries),
        vmem_limit_bytes=_VMEM_BYTES,
      )
      return out.reshape(q_RTHF.shape)

    return _on_heads(call, self, mesh, q_RTHF, layer, table_RP, length_R)


def _side_by_side(k_SKF: jax.Array, v_SKF: jax.Array) -> jax.Array:
  """Returns [..., 2 K, F]: key and value of each head in turn."""
  both = jnp.stack([k_SKF, v_SKF], axis=-2)
  return both.reshape(*both.shape[:-3], -1, both.shape[-1])


def _copied(pages: jax.Array, old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
  page = jax.lax.dynamic_slice_in_dim(pages, old, 1, axis)
  return jax.lax.dynamic_update_slice_in_dim(pages, page, new, axis)


def _power(size: int, most: int) -> int:
  """Returns the largest power of two that divides `size` and is at most `most`."""
  return min(size & -size, most)


def _on_heads(call, layout: Layout, mesh: Mesh | None, q_RTHF, layer: Layer, table, numbers):
  """Calls `call(q, *layer, table, numbers)` on each device with its own heads."""
  if mesh is None:
    return call(q_RTHF, *layer, table, numbers)
  # a mesh of one device too: it tells the kernel for what it is compiled
  heads = PartitionSpec(None, None, 'tensor', None)
  pages = PartitionSpec(*('tensor' if name else None for name in layout.axes))
  whole = PartitionSpec()
  places = (heads, *(pages for _ in layer), whole, whole)
  local = jax.shard_map(call, mesh=mesh, in_specs=places, out_specs=heads, check_vma=False)
  return local(q_RTHF, *layer, table, numbers)


def _attend(
  q_RTHF: jax.Array,
  fetch: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
  table_RP: jax.Array,
  first_R: jax.Array,
  chunk: int,
) -> jax.Array:
  """Attends over the pages of each row with an online softmax (Milakov & Gimelshein 2018).

  The loop ends after the last page of the longest row. A page after a row's last one does not
  change that row's sums, so other rows do not affect its result.

  Args:
    fetch: from page_R to keys [R, K, F, U] and values [R, K, U, F].
    first_R: the place of each row's first query in its context.
    chunk: tokens of a page.
  """
  rows, queries, heads, width = q_RTHF.shape
  kv_heads = jax.eval_shape(fetch, table_RP[:, 0])[0].shape[1]
  groups = heads // kv_heads
  # Group the query heads by key head: Q = groups * queries per key head.
  q_RKQF = (
    (q_RTHF * width**-0.5)
    .reshape(rows, queries, kv_heads, groups, width)
    .transpose(0, 2, 3, 1, 4)
    .reshape(rows, kv_heads, groups * queries, width)
  )
  place_RQ = first_R[:, None] + jnp.tile(jnp.arange(queries), groups)

  def step(j, carry):
    # Running maximum, sum of weights and weighted values, rescaled to the new maximum.
    top, total, out = carry
    keys, values = fetch(table_RP[:, j])
    score = jnp.einsum('RKQF,RKFU->RKQU', q_RKQF, keys, preferred_element_type=jnp.float32)
    visible = (j * chunk + jnp.arange(chunk)) <= place_RQ[:, :, None]
    score = jnp.where(visible[:, None], score, _FAR)
    new_top = jnp.maximum(top, score.max(-1, keepdims=True))
    weight, keep = jnp.exp(score - new_top), jnp.exp(top - new_top)
    add = jnp.einsum(
      'RKQU,RKUF->RKQF', weight.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return new_top, total * keep + weight.sum(-1, keepdims=True), out * keep + add

  column = jnp.zeros((rows, kv_heads, groups * queries, 1), jnp.float32)
  start = (column + _FAR, column, jnp.zeros(q_RKQF.shape, jnp.float32))
  last = (first_R.max() + queries - 1) // chunk
  _, total, out = jax.lax.fori_loop(0, last + 1, step, start)
  out_RKGTF = (out / total).reshape(rows, kv_heads, groups, queries, width)
  return out_RKGTF.transpose(0, 3, 1, 2, 4).reshape(q_RTHF.shape).astype(q_RTHF.dtype)
