"""Attention over packed rows and over images: one dispatcher, and a backend per platform."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['BACKENDS', 'attend', 'attend_images', 'choose', 'masked', 'visible']

if TYPE_CHECKING:
  from paravt_jax.models.attention.dispatch import BACKENDS, attend, attend_images, choose
  from paravt_jax.models.attention.plain import masked, visible
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    dispatch=('BACKENDS', 'attend', 'attend_images', 'choose'),
    plain=('masked', 'visible'),
  )
