"""Attention on TPU: JAX's splash kernel, called for each range of keys.

Splash skips a pair of blocks that a table marks as empty, and asks a function of two integers for
the mask within a block: one integer per query, and the index of the key. Here the table comes from
the ranges, and the integer of a query packs its range, so that both passes skip other documents.
Such an integer holds a range of at most 32,768 keys: longer rows take a call for each such span.

The kernel is called below its public interface, which takes static masks only. `requirements.txt`
pins the version of JAX.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info

from paravt_jax.models.attention import ranges
from paravt_jax.models.attention.merged import attend_merged

_LANES = 128  # a block is a multiple of these
MOST_KEYS = 32768  # of a call: start and end of a range each fit 16 bits of an int32


def attend_splash(
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  ranges_BT4: jax.Array,
  interpret: bool = False,
) -> jax.Array:
  """Computes attention of queries to their two ranges of keys on a TPU.

  Args:
    q_BTHF, k_BTKF, v_BTKF, ranges_BT4: as in `merged.attend_merged`.
    interpret: run the kernel on the host instead, for tests.

  There may be fewer queries than keys: those of a slice of the row.

  Returns:
    [B, T, H, F] in q's dtype. A query that sees no key returns 0, and its gradient is 0.
  """
  length, width = q_BTHF.shape[1], q_BTHF.shape[3]
  # whole blocks, and whole lanes of a head; the padded width must not change the scale
  block = 512 if length % 512 == 0 and k_BTKF.shape[1] % 512 == 0 else _LANES
  more, wide = (lambda x: (0, -x.shape[1] % block)), -width % _LANES
  pad = lambda x: jnp.pad(x, ((0, 0), more(x), (0, 0), (0, wide)))
  q_BTHF = q_BTHF * ((width + wide) / width) ** 0.5
  ranges_BT4 = jnp.pad(ranges_BT4, ((0, 0), more(ranges_BT4), (0, 0)))
  kernel = SplashKernel(block, interpret)
  out_BTHF = attend_merged(kernel, pad(q_BTHF), pad(k_BTKF), pad(v_BTKF), ranges_BT4)
  return out_BTHF[:, :length, :, :width]


def _in_range(query, key):
  """Returns whether a query's packed range (`_tables`) holds the index of a key."""
  return (key >= (query >> 16)) & (key < (query & 0xFFFF))


@dataclasses.dataclass(frozen=True)
class SplashKernel:
  """A `merged.FlashKernel`: splash attention over the blocks that a range meets."""

  block: int  # queries and keys of a block
  interpret: bool

  @property
  def most_keys(self):
    """See `merged.FlashKernel`."""
    return MOST_KEYS

  def _sizes(self):
    b = self.block
    return splash.BlockSizes(
      block_q=b, block_kv=b, block_q_dkv=b, block_kv_dkv=b, block_q_dq=b, block_kv_dq=b
    )

  def _tables(self, range_BT2, keys):
    """Returns the packed ranges int32[B, T] (start, then 16 bits of end), and the visible blocks
    bool[B, queries, keys].
    """
    ranges_BT4 = jnp.concatenate([range_BT2, jnp.zeros_like(range_BT2)], axis=-1)
    seen = ranges.visible_tiles(ranges_BT4, self.block, keys)
    return (range_BT2[..., 0] << 16) | range_BT2[..., 1], seen

  def _mask_info(self, packed_T, seen, axis):
    """Returns splash's tables. `axis` is that of the blocks which the kernel's inner loop visits."""
    count = seen.shape[axis]
    index = jnp.expand_dims(jnp.arange(count, dtype=jnp.int32), 1 - axis)
    # an empty pair names the next block to prefetch, or the first if there is none
    following = jax.lax.cummin(jnp.where(seen, index, count), axis=axis, reverse=True)
    following = jnp.where(following < count, following, 0)
    return splash_attention_mask_info.MaskInfo(
      data_next=following[None],
      mask_next=None,
      block_mask=seen.astype(jnp.int32)[None],
      partial_mask_blocks=None,
      q_sequence=packed_T,
    )

  def forward(self, q_BTHF, k_BUKF, v_BUKF, range_BT2):
    """See `merged.FlashKernel`."""

    def one(row):
      q_HTF, k_KTF, v_KTF, packed_T, seen = row
      out_HTF, (log_sum_HT,) = splash._splash_attention_forward(
        self._mask_info(packed_T, seen, 1),
        q_HTF,
        k_KTF,
        v_KTF,
        segment_ids=None,
        sinks=None,
        mask_value=splash.DEFAULT_MASK_VALUE,
        is_mqa=False,
        block_sizes=self._sizes(),
        residual_checkpoint_name=None,
        save_residuals=True,
        mask_function=_in_range,
        interpret=self.interpret,
      )
      return out_HTF, log_sum_HT

    heads_first = (jnp.swapaxes(x, 1, 2) for x in (q_BTHF, k_BUKF, v_BUKF))
    tables = self._tables(range_BT2, k_BUKF.shape[1])
    out_BHTF, log_sum_BHT = jax.lax.map(one, (*heads_first, *tables))
    return jnp.swapaxes(out_BHTF, 1, 2), jnp.swapaxes(log_sum_BHT, 1, 2)

  def backward(self, q_BTHF, k_BUKF, v_BUKF, range_BT2, out_BTHF, log_sum_BTH, d_out_BTHF):
    """See `merged.FlashKernel`."""

    def one(row):
      q_HTF, k_KTF, v_KTF, out_HTF, d_out_HTF, log_sum_HT, packed_T, seen = row
      by_queries, by_keys = (self._mask_info(packed_T, seen, axis) for axis in (1, 0))
      saved = (q_HTF, k_KTF, v_KTF, None, None, out_HTF, log_sum_HT, by_queries, by_keys)
      gradients = splash._splash_attention_bwd(
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        is_mqa=False,
        block_sizes=self._sizes(),
        residual_checkpoint_name=None,
        mask_function=_in_range,
        attn_logits_soft_cap=None,
        interpret=self.interpret,
        res=saved,
        do=d_out_HTF,
      )
      return gradients[3:6]

    arrays = (q_BTHF, k_BUKF, v_BUKF, out_BTHF, d_out_BTHF, log_sum_BTH)
    heads_first = (jnp.swapaxes(x, 1, 2) for x in arrays)
    tables = self._tables(range_BT2, k_BUKF.shape[1])
    gradients = jax.lax.map(one, (*heads_first, *tables))
    d_q, d_k, d_v = (jnp.swapaxes(x, 1, 2) for x in gradients)
    return d_q, d_k, d_v
