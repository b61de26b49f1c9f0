"""Advantages and losses: pure functions of arrays."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['batch_normalize', 'decoupled_policy_loss', 'group_normalize']

if TYPE_CHECKING:
  from paravt_jax.rl.advantages import batch_normalize, group_normalize
  from paravt_jax.rl.losses import decoupled_policy_loss
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    advantages=('batch_normalize', 'group_normalize'),
    losses=('decoupled_policy_loss',),
  )
