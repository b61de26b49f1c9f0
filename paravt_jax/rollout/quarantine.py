"""Videos that cannot be read, or are no longer the files that the run began with.

A question is lost with its video, and each attempt may take as long as a decode's deadline. After
`FAILURES` lost groups in a row the questions on a video are left out for the rest of the epoch. The
next epoch tries one of them again, so a video that was repaired comes back.

All decisions depend on what was recorded before, which `state` holds: a run that is continued
leaves out the same questions.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paravt_jax import files

MEDIA = 'media_'  # how the reasons of groups that were lost with their video begin
CHANGED, LEFT_OUT = 'media_changed', 'media_quarantined'
FAILURES = 3  # lost groups in a row

Videos = Sequence[str]  # of one question; questions on several videos are known by all of them


class Quarantine:
  """Counts the failures of each question's videos, and notices files of another size.

  A file of another size than at the run's start holds other frames than its questions are about.

  Args:
    root: the media folder. Videos are known by their path below it, because it may move.
    all_videos: those of every question; their sizes are looked up in a new run.
    state: of an earlier process of the run; None for a new run.
  """

  def __init__(self, root: str, all_videos: Iterable[Videos], state: Mapping[str, Any] | None):
    self._root = root
    if state is None:
      sizes = {self._key(videos): _sizes(videos) for videos in set(map(tuple, all_videos))}
      state = {'sizes': {key: found for key, found in sizes.items() if found is not None}}
    # by the key of the videos: groups lost in a row, and the epoch of the last one
    self._failed: dict[str, tuple[int, int]] = {
      key: (int(count), int(epoch)) for key, (count, epoch) in state.get('failed', {}).items()
    }
    self._sizes: dict[str, list[int]] = dict(state.get('sizes', {}))  # bytes, at the run's start

  def refuse(self, videos: Videos, epoch: int) -> str | None:
    """Returns why a group on these videos cannot run, None if it can. It may wait for the disk.

    A missing file is left to the decoder.
    """
    if self.is_out(videos, epoch):
      return LEFT_OUT
    begun, sizes = self._sizes.get(self._key(videos)), _sizes(videos)
    return CHANGED if sizes is not None and begun is not None and sizes != begun else None

  def is_out(self, videos: Videos, epoch: int) -> bool:
    """Returns whether the questions on these videos are left out in an epoch."""
    count, last = self._failed.get(self._key(videos), (0, epoch))
    return count >= FAILURES and last >= epoch

  def record(self, videos: Videos, epoch: int, reason: str | None) -> None:
    """Records how a group ended: None with an episode, else why it is lost."""
    key = self._key(videos)
    if reason is None:
      self._failed.pop(key, None)
    elif reason.startswith(MEDIA) and reason != LEFT_OUT:
      before = self.is_out(videos, epoch)
      count, last = self._failed.get(key, (0, epoch))
      self._failed[key] = (count + 1, max(last, epoch))
      if not before and self.is_out(videos, epoch):
        logging.getLogger(__name__).warning(
          '%s: got %d groups in a row that were lost (the last: %s), wanted the file that the run '
          'began with; its questions are left out for the rest of epoch %d (counted in '
          'groups/dropped), restore the file and they come back in the next one',
          ', '.join(videos),
          count + 1,
          reason,
          epoch,
        )

  def count(self, epoch: int) -> int:
    """Returns how many videos are left out in an epoch."""
    return sum(failures >= FAILURES and last >= epoch for failures, last in self._failed.values())

  def state(self) -> dict[str, Any]:
    """Returns what a later process needs, as JSON."""
    return {
      'failed': {key: list(value) for key, value in sorted(self._failed.items())},
      'sizes': dict(sorted(self._sizes.items())),
    }

  def _key(self, videos: Videos) -> str:
    below = [os.path.relpath(video, self._root) if self._root else video for video in videos]
    return files.digest('\0'.join(below).encode(errors='surrogateescape'), 8)


def _sizes(videos: Videos) -> list[int] | None:
  """Returns the bytes of each file, None if one cannot be looked up."""
  try:
    return [os.stat(video).st_size for video in videos]
  except OSError:
    return None
