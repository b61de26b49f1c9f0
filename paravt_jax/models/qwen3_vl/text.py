"""The pre-norm layer of the text decoder.

It consists of grouped-query attention with q/k norms and interleaved M-RoPE, and a SwiGLU MLP.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.layers import GatedLinear, Linear, RMSNorm, rotate
from paravt_jax.models.placement import Place, anywhere
from paravt_jax.models.qwen3_vl.config import TextConfig

Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def rotary_angles(config: TextConfig, positions_ABT: jax.Array) -> jax.Array:
  """Returns the rotary angles float32[B, T, F/2], position times frequency.

  Frequencies f = 1, 4, ... use the height and f = 2, 5, ... the width, each up to the end of its
  section. All other frequencies use the time.
  """
  # interleaved M-RoPE: each frequency belongs to time (0), height (1) or width (2)
  _, rows, columns = config.rope_sections
  axis = np.zeros(config.head_dim // 2, np.int32)
  axis[1 : 3 * rows : 3] = 1
  axis[2 : 3 * columns : 3] = 2
  exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
  frequency = 1.0 / config.rope_theta**exponent
  position_BTF = jnp.moveaxis(positions_ABT[axis], 0, -1).astype(jnp.float32)
  return position_BTF * frequency.astype(np.float32)


class TextLayer(nn.Module):
  """One decoder layer on [B, T, D].

  `attend(q_BTHF, k_BTKF, v_BTKF) -> o_BTHF` applies the attention mask. `place` says where heads
  and hidden units lie on a mesh; the residual stream is split by rows and tokens only.
  """

  config: TextConfig
  dtype: jnp.dtype
  place: Place = anywhere

  @nn.compact
  def __call__(self, x_BTD: jax.Array, angle_BTF: jax.Array, attend: Attend) -> jax.Array:
    y_BTD = RMSNorm(self.config.norm_eps, 'norm', name='norm1')(x_BTD)
    x_BTD = self.place(x_BTD + self._attention(y_BTD, angle_BTF, attend), 'rows', 'tokens', None)
    y_BTD = RMSNorm(self.config.norm_eps, 'norm', name='norm2')(x_BTD)
    return self.place(x_BTD + self._mlp(y_BTD), 'rows', 'tokens', None)

  def _attention(self, x_BTD, angle_BTF, attend):
    c = self.config

    def heads(name, count, axis):
      flat = Linear(count * c.head_dim, ('embed', axis), self.dtype, False, name=name)(x_BTD)
      split = flat.reshape(*x_BTD.shape[:2], count, c.head_dim)
      return self.place(split, 'rows', 'tokens', axis, None)

    # queries and keys: product, norm per head, rotary
    q_BTHF = RMSNorm(c.norm_eps, 'head_dim', name='q_norm')(heads('q', c.heads, 'heads'))
    q_BTHF = rotate(q_BTHF, angle_BTF)
    k_BTKF = RMSNorm(c.norm_eps, 'head_dim', name='k_norm')(heads('k', c.kv_heads, 'kv_heads'))
    k_BTKF = rotate(k_BTKF, angle_BTF)
    v_BTKF = heads('v', c.kv_heads, 'kv_heads')
    # attention, then concatenate the heads and project: [B, T, H * F] -> [B, T, D]
    o_BTHF = attend(q_BTHF, k_BTKF, v_BTKF)
    o_BTHF = self.place(o_BTHF, 'rows', 'tokens', 'heads', None)
    out = Linear(c.width, ('heads', 'embed'), self.dtype, False, (2 * c.layers) ** -0.5, name='o')
    return out(o_BTHF.reshape(*x_BTD.shape[:2], c.heads * c.head_dim))

  def _mlp(self, x_BTD):
    c = self.config

    def hidden(name):
      flat = Linear(c.mlp, ('embed', 'mlp'), self.dtype, False, name=name)(x_BTD)
      return self.place(flat, 'rows', 'tokens', 'mlp')

    scale = (2 * c.layers) ** -0.5
    down = GatedLinear(c.width, ('mlp', 'embed'), self.dtype, False, scale, name='down')
    return down(hidden('gate'), hidden('up'))
