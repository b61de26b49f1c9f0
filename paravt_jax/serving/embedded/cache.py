"""Host-side bookkeeping of device caches: pages of keys and values, image features, logit biases.

A page stores one complete chunk of C tokens. Its key is a hash chain over all content up to its
end, so equal prefixes share pages.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np


class Pool:
  """Places 0..size-1 for keyed entries. Unused entries are evicted when space is needed (LRU)."""

  def __init__(self, size: int):
    self.size = size
    self._free = list(range(size - 1, -1, -1))
    self._place: dict[Hashable, int] = {}
    self._users: dict[Hashable, int] = {}
    self._idle: OrderedDict[Hashable, None] = OrderedDict()

  @property
  def available(self) -> int:
    """Returns the number of places that are free or hold unused entries."""
    return len(self._free) + len(self._idle)

  def __contains__(self, key: Hashable) -> bool:
    return key in self._place

  def used(self, key: Hashable) -> bool:
    """Returns whether `key` is pinned."""
    return key in self._users

  def place(self, key: Hashable) -> int:
    """Returns the place of `key`, which must be present."""
    return self._place[key]

  def acquire(self, key: Hashable) -> tuple[int, bool]:
    """Pins `key` until `release`. Returns its place, and whether the caller must compute its
    content.

    Raises:
      IndexError: every place is in use; ask `fits` first.
    """
    if key in self._place:
      self._users[key] = self._users.get(key, 0) + 1
      self._idle.pop(key, None)
      return self._place[key], False
    if not self._free:
      oldest, _ = self._idle.popitem(last=False) if self._idle else (None, None)
      if oldest is None:
        raise IndexError(f'all {self.size} places are in use')
      self._free.append(self._place.pop(oldest))
    self._place[key] = self._free.pop()
    self._users[key] = 1
    return self._place[key], True

  def release(self, key: Hashable) -> None:
    """Unpins `key` once. The content stays until its place is needed."""
    self._users[key] -= 1
    if not self._users[key]:
      del self._users[key]
      self._idle[key] = None

  def discard(self, key: Hashable) -> None:
    """Unpins `key`, which one user has, and frees its place.

    Raises:
      RuntimeError: it has other users.
    """
    if self._users[key] != 1:
      raise RuntimeError(f'{key!r} has other users')
    del self._users[key]
    self._free.append(self._place.pop(key))

  def fits(self, keys: Sequence[Hashable], more: int = 0) -> bool:
    """Returns whether all keys, and `more` new ones, could be acquired together now."""
    distinct = set(keys)
    new = sum(key not in self._place for key in distinct)
    pinned_idle = sum(key in self._idle for key in distinct)
    return new + more <= self.available - pinned_idle

  def drop_idle(self) -> None:
    """Frees the places of all entries that nobody uses."""
    for key in self._idle:
      self._free.append(self._place.pop(key))
    self._idle.clear()

  def clear(self) -> None:
    """Drops all entries.

    Raises:
      RuntimeError: an entry is still pinned.
    """
    if self._users:
      raise RuntimeError(f'{len(self._users)} places are still in use')
    self.__init__(self.size)


def chain_keys(content_T: np.ndarray, chunk: int) -> list[bytes]:
  """Returns one 16-byte key per chunk of `chunk` tokens: a hash of all content up to its end.

  The last chunk may be shorter.

  Args:
    content_T: int64[n], token ids; for image tokens, a number that identifies pixels and position.
  """
  keys, parent = [], b''
  for start in range(0, len(content_T), chunk):
    parent = hashlib.blake2b(
      parent + content_T[start : start + chunk].tobytes(), digest_size=16
    ).digest()
    keys.append(parent)
  return keys
