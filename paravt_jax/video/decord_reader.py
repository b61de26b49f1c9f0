"""Reads the frames of one open video file with decord, the backend video.backend='decord'."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from paravt_jax.video import media
from paravt_jax.video.media import VideoInfo

# Logged once when this backend is chosen. Measured on real files, compared with a full decode.
KNOWN_FAULTS = (
  "video.backend='decord' is known to be wrong on transport streams, on AVI, at the ends of VP8 "
  'and VP9 and on clips cut with an edit list; it differed or failed on 84 of 351 real files, '
  "'pyav' on 39, most of them broken on purpose"
)


class DecordReader:
  """Reads frames of one file by index; see KNOWN_FAULTS. Attributes and errors as PyavReader."""

  def __init__(self, path: str):
    import decord  # imported only when used, because it loads a second FFmpeg

    if not os.path.exists(path):
      raise media.missing(path)
    self.path = path
    self._faults = (decord.DECORDError, *media.FAULTS)
    try:
      self._reader: Any = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except self._faults as error:
      raise media.not_video(path, media.one_line(error)) from error
    try:
      self._measure()
    except self._faults as error:
      raise self._read_error(error) from error

  def _measure(self):
    count = len(self._reader)
    if not count:
      raise media.no_frames(self.path)
    spans = self._reader.get_frame_timestamp(range(count)).astype(np.float64)
    if not np.isfinite(spans).all() or (np.diff(spans[:, 0]) < 0).any():
      raise ValueError('its frame times are not in order')
    self._times = spans[:, 0] - spans[0, 0]
    duration = max(float(spans[:, 1].max() - spans[0, 0]), count / self._reader.get_avg_fps())
    gaps = np.diff(self._times)
    self.interval = float(np.median(gaps)) if len(gaps) else duration
    height, width = self._reader[0].shape[:2]
    self.info = VideoInfo(duration, count / duration, count, width, height)

  def close(self):
    """Closes the file."""
    self._reader = None

  def read(self, seconds: Sequence[float]) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yields frames as PyavReader.read; the tolerance is wider, as decord stores float32 times."""
    order = np.argsort(seconds, kind='stable')
    wanted = np.asarray(seconds)[order] + 1e-3
    indices = np.maximum(np.searchsorted(self._times, wanted, side='right') - 1, 0)
    try:
      images = self._reader.get_batch(indices.tolist()).asnumpy()
    except self._faults as error:
      raise self._read_error(error) from error
    for i, index, image in zip(order.tolist(), indices.tolist(), images):
      yield i, float(self._times[index]), image

  def _read_error(self, error: BaseException):
    return media.broken(
      self.path, f"decord cannot read it ({media.one_line(error)}); video.backend='pyav' may"
    )
