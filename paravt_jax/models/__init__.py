"""Models in Flax: shared attention, layers and shardings, and the `qwen3_vl` model."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Linear', 'RMSNorm', 'attend', 'make_mesh', 'visible']

if TYPE_CHECKING:
  from paravt_jax.models.attention import attend, visible
  from paravt_jax.models.layers import Linear, RMSNorm
  from paravt_jax.models.sharding import make_mesh
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    attention=('attend', 'visible'),
    layers=('Linear', 'RMSNorm'),
    sharding=('make_mesh',),
  )
