"""Frames of videos and images: chooses times, decodes with a deadline, caches the frames."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['DecodePool', 'FrameStore', 'VideoInfo', 'draw_budget', 'overview_times', 'window_times']

if TYPE_CHECKING:
  from paravt_jax.video.decode import DecodePool
  from paravt_jax.video.readers import VideoInfo
  from paravt_jax.video.sampling import draw_budget, overview_times, window_times
  from paravt_jax.video.store import FrameStore
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    decode=('DecodePool',),
    readers=('VideoInfo',),
    sampling=('draw_budget', 'overview_times', 'window_times'),
    store=('FrameStore',),
  )
