"""Models in Flax: shared attention and layers, and the `qwen3_vl` model."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Linear', 'RMSNorm', 'attend', 'visible']

if TYPE_CHECKING:
  from paravt_jax.models.attention import attend, visible
  from paravt_jax.models.layers import Linear, RMSNorm
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    attention=('attend', 'visible'),
    layers=('Linear', 'RMSNorm'),
  )
