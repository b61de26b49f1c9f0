"""Rematerialization: what a layer keeps for its backward pass, by named policies.

The backward pass of a layer needs the arrays of its forward pass. A policy says which of them stay
in memory and which are computed again.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_ATTENTION = 'attention'  # the name of what `mark_attention` marks
# Policies of jax.checkpoint by name.
_POLICIES: dict[str, Callable[..., Any]] = {
  'layers': jax.checkpoint_policies.nothing_saveable,
  'attention': jax.checkpoint_policies.save_only_these_names(_ATTENTION),
}
# none: a layer keeps all its arrays. layers: it keeps its input, and computes the rest again.
# attention: as `layers`, but it keeps the output of attention too, so attention is not run again.
POLICIES = ('none', *_POLICIES)


def apply(layer: Callable, policy: str) -> Callable:
  """Returns the function of a layer under a policy.

  Raises:
    ValueError: the policy is not one of POLICIES.
  """
  if policy not in POLICIES:
    raise ValueError(f'remat policy {policy!r}: wanted one of {", ".join(POLICIES)}')
  return layer if policy == 'none' else jax.checkpoint(layer, policy=_POLICIES[policy])


def mark_attention(array: jax.Array) -> jax.Array:
  """Returns the array, marked as one that the policy `attention` keeps.

  A kernel's forward pass marks all its results, or it would run again for the missing one.
  """
  return checkpoint_name(array, _ATTENTION)
