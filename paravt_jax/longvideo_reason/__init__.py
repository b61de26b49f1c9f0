"""Builds reasoning data from your own long videos: split, caption, merge, ask, parse, rewrite, and
write rows for SFT and RL.
"""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Pipeline', 'Servers', 'Tally', 'Video']

if TYPE_CHECKING:
  from paravt_jax.longvideo_reason.items import Video
  from paravt_jax.longvideo_reason.pipeline import Pipeline, Servers, Tally
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    items=('Video',),
    pipeline=('Pipeline', 'Servers', 'Tally'),
  )
