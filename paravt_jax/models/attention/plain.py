"""Plain attention: the mask of packed rows as an array, and softmax over all keys.

Every other backend of this package is tested against this one. `packed_rows` of `ranges.py` says
the same mask in four numbers per query.
"""

import jax
import jax.numpy as jnp

from paravt_jax import shapes

FAR = -1e30  # finite, so that a query that sees no key returns garbage but not nan


def visible(
  segments_BT: jax.Array,
  branches_BT: jax.Array,
  segments_BU: jax.Array,
  branches_BU: jax.Array,
  first: int = 0,
) -> jax.Array:
  """Returns the mask bool[B, T, U]: which key each query sees.

  Queries start at row index `first`, keys at 0.
  """
  # the three conditions of the module docstring: same document, visible branch, not later
  same = (segments_BT[:, :, None] == segments_BU[:, None, :]) & (segments_BT[:, :, None] != 0)
  branch = (branches_BU[:, None, :] == 0) | (branches_BU[:, None, :] == branches_BT[:, :, None])
  rows, columns = segments_BT.shape[1], segments_BU.shape[1]
  causal = jnp.arange(columns)[None, :] <= first + jnp.arange(rows)[:, None]
  return same & branch & causal[None]


def masked(
  q_BTHF: jax.Array, k_BUKF: jax.Array, v_BUKF: jax.Array, mask_BTU: jax.Array
) -> jax.Array:
  """Computes softmax attention with an explicit mask; query head h reads key head h // (H / K).

  The softmax runs in float32.

  Returns [B, T, H, F] in q's dtype. A query that sees no key returns the mean of all values, which
  is garbage but never nan.
  """
  sizes = shapes.check(q_BTHF=q_BTHF, k_BUKF=k_BUKF, v_BUKF=v_BUKF, mask_BTU=mask_BTU)
  # group the query heads by the key head that they share
  groups = sizes['H'] // sizes['K']
  q_BTKGF = q_BTHF.reshape(*q_BTHF.shape[:2], sizes['K'], groups, sizes['F'])
  # scaled scores, softmax over the visible keys, weighted mean of values
  scores_BKGTU = jnp.einsum(
    'BTKGF,BUKF->BKGTU', q_BTKGF * sizes['F'] ** -0.5, k_BUKF, preferred_element_type=jnp.float32
  )
  weights_BKGTU = jax.nn.softmax(jnp.where(mask_BTU[:, None, None], scores_BKGTU, FAR), axis=-1)
  out_BTKGF = jnp.einsum('BKGTU,BUKF->BTKGF', weights_BKGTU.astype(v_BUKF.dtype), v_BUKF)
  return out_BTKGF.reshape(q_BTHF.shape)


def attend_xla(
  q_BTHF: jax.Array,
  k_BTKF: jax.Array,
  v_BTKF: jax.Array,
  segments_BT: jax.Array,
  branches_BT: jax.Array,
) -> jax.Array:
  """Computes attention over packed rows with all T x T weights in memory."""
  return masked(q_BTHF, k_BTKF, v_BTKF, visible(segments_BT, branches_BT, segments_BT, branches_BT))
