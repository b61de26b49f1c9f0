"""Measures the sizes of rows without decoding, in parallel and ahead of use.

A row's size is (tokens, frame slots, slots of large images). With a cache folder the sizes are
stored for the next run, with a fingerprint of the row's media (path, bytes, modification time). A
replaced file is measured again. Faults are not cached, so a repaired file is read again.

  <folder>/lengths/<parquet's digest>-<digest of the options>.npz    sizes int32[n, 3], media uint64[n], known bool[n], provenance
"""

import concurrent.futures
import dataclasses
import json
import logging
import os
import pathlib
import threading
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

from paravt_jax import files, packing
from paravt_jax.chat import prompts
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import fields, sft
from paravt_jax.data.conversations import Conversation, ImageRef, VideoRef
from paravt_jax.data.table import Table
from paravt_jax.errors import ChatError, DataError, MediaError

VERSION = 2  # increase when the same row and options give another size
NO_TARGET = 'no_target'
_EVERY = 1024  # new sizes after which an index is written


@dataclasses.dataclass(frozen=True)
class Cache:
  """The cache of sizes on disk."""

  folder: pathlib.Path
  tokenizer: str  # digest of the tokenizer's file


@dataclasses.dataclass(frozen=True)
class Size:
  """The size of a row. All numbers are 0 when the row cannot be used."""

  tokens: int  # images expanded
  frames: int  # frame slots
  large_images: int  # slots of large images
  # why the row cannot be used: a schema reason, media_<reason>, chat, no_target; '' if it can be
  reason: str = ''
  fault: str = ''  # the full error message


class Lengths:
  """The sizes of one source's rows. Safe to use from several threads.

  Args:
    rows: a Table, or any sequence of conversations. Only the sizes of a Table are cached on disk.
    tok, frames, options: as for `sft.sample`; videos are probed, not decoded.
    image_patches: patches of a frame slot; larger images take slots for large images.
    skip_bad_rows: if True, a row that breaks the schema gets a reason; if False, it raises.
    pool: measures rows ahead.
    cache: the cache on disk; None for no cache.
    alone: whether this is the only host. Media that time out on one of several hosts would make the
      hosts' plans differ from then on, so such a failure raises. On a single host it is a reason.
  """

  def __init__(
    self,
    rows: Sequence[Conversation],
    tok: ChatTokenizer,
    frames: sft.Frames,
    options: sft.FrameOptions,
    image_patches: int,
    skip_bad_rows: bool,
    pool: concurrent.futures.Executor,
    cache: Cache | None,
    alone: bool = True,
  ):
    self._rows, self._tok = rows, tok
    self._options, self._image_patches = options, image_patches
    self._media = sft.media_sizes(frames, options)
    self._skip, self._pool, self._alone = skip_bad_rows, pool, alone
    self._sizes: dict[int, Size] = {}
    self._asked: dict[int, concurrent.futures.Future] = {}
    self._indexes: tuple[_Index, ...] = ()
    if cache is not None and isinstance(rows, Table):
      made_with = {
        'tokenizer': cache.tokenizer,
        'image_patches': image_patches,
        'system': prompts.SYSTEM,
        **dataclasses.asdict(options),
      }
      self._indexes = tuple(
        _Index(cache.folder, shard.digest, shard.path.name, shard.rows, made_with)
        for shard in rows.shards
      )

  def ask(self, rows: Iterable[int]) -> None:
    """Starts to measure rows that will be needed soon."""
    for row in rows:
      if row not in self._sizes and row not in self._asked:
        self._asked[row] = self._pool.submit(self._measure, row)

  def size(self, row: int) -> Size:
    """Returns the size of a row, measured at most once.

    Raises:
      DataError: the row breaks the schema, and such rows are not skipped.
    """
    if row not in self._sizes:
      asked = self._asked.pop(row, None)
      self._sizes[row] = asked.result() if asked is not None else self._measure(row)
    return self._sizes[row]

  def name(self, row: int) -> str:
    """Returns 'file.parquet:row' for messages."""
    return name(self._rows, row)

  def close(self) -> None:
    """Writes the sizes that were measured since the last write."""
    for index in self._indexes:
      index.write()

  def _measure(self, row: int) -> Size:
    try:
      conversation = self._rows[row]
    except (fields.Broken, DataError) as error:
      if not self._skip:
        raise DataError(
          f'row {self.name(row)}: {error}; fix the row or set data.skip_bad_rows=True '
          '(counted in data/skipped)'
        ) from error
      return Size(0, 0, 0, fields.reason_of(error), str(error))
    index, inner = self._index(row)
    mark = _fingerprint(conversation) if index is not None else 0
    known = index.get(inner, mark) if index is not None else None
    if known is None:
      known = self._count(conversation)
      if index is not None and known.reason in ('', NO_TARGET):
        index.put(inner, mark, known)
    return known

  def _count(self, conversation: Conversation) -> Size:
    try:
      sample = sft.sample(self._tok, conversation, self._media, self._options)
    except MediaError as error:
      if error.reason in sft.PASSING and not self._alone:
        raise DataError(
          f'{error}; every host must plan the same batches, so this one cannot leave the row '
          'out: see to its disk, then run again'
        ) from error
      return Size(0, 0, 0, f'media_{error.reason}', str(error))
    except ChatError as error:
      return Size(0, 0, 0, 'chat', str(error))
    if not sample.extras[sft.MASK].any():
      return Size(0, 0, 0, NO_TARGET, 'no token of it is a target')
    return Size(*packing.sizes(packing.Tree(sample), self._image_patches))

  def _index(self, row: int) -> 'tuple[_Index | None, int]':
    if not self._indexes or not isinstance(self._rows, Table):
      return None, row
    shard, inner = self._rows.locate(row)
    return self._indexes[shard], inner


def name(rows: Sequence[Conversation], row: int) -> str:
  """Returns 'file.parquet:row' of a row, even if the row is not readable."""
  return rows.name(row) if isinstance(rows, Table) else rows[row].id


def _fingerprint(conversation: Conversation) -> int:
  """Returns a uint64 digest of a row's media files: paths, bytes and modification times.

  A missing file is part of the digest.
  """
  found = []
  for message in conversation.messages:
    for part in message.parts:
      if isinstance(part, (VideoRef, ImageRef)):
        try:
          stat = os.stat(part.path)
          found.append((part.path, stat.st_size, stat.st_mtime_ns))
        except OSError:
          found.append((part.path, -1, 0))
  return int(files.digest(repr(found).encode('utf-8', 'surrogatepass'), 8), 16)


class _Index:
  """The sizes of one parquet file's rows, in memory and in a file.

  Several processes may share the file.
  """

  def __init__(self, folder: pathlib.Path, digest: str, name: str, rows: int, options: dict):
    made = files.digest_json([VERSION, options], 8)
    self._file = folder / 'lengths' / f'{digest}-{made}.npz'
    self._record = json.dumps(
      {
        'tool': 'data.lengths',
        'version': VERSION,
        'options': options,
        'inputs': [{'path': name, 'blake2b': digest}],
      }
    )
    self._sizes = np.zeros((rows, 3), np.int32)
    self._media = np.zeros(rows, np.uint64)
    self._known = np.zeros(rows, bool)
    self._new, self._unsaved = 0, False
    self._lock = threading.Lock()
    self._merge()

  def get(self, row: int, media: int) -> Size | None:
    """Returns the size of a row with this media digest; None when it was not measured."""
    with self._lock:
      if not self._known[row] or int(self._media[row]) != media:
        return None
      tokens, frames, large_images = self._sizes[row].tolist()
    return (
      Size(tokens, frames, large_images)
      if tokens
      else Size(0, 0, 0, NO_TARGET, 'no token of it is a target')
    )

  def put(self, row: int, media: int, size: Size) -> None:
    """Stores a size, and writes the file after every 1024 new sizes."""
    with self._lock:
      self._sizes[row] = size.tokens, size.frames, size.large_images
      self._media[row], self._known[row] = media, True
      self._new += 1
      due = self._new >= _EVERY
    if due:
      self.write()

  def write(self) -> None:
    """Merges the new sizes with those of other processes and writes the file by rename."""
    with self._lock:
      if not self._new and not self._unsaved:
        return
      self._merge()
      self._new, self._unsaved = 0, True
      try:
        with files.replacing(self._file, sync=True) as out:
          np.savez(
            out,
            sizes=self._sizes,
            media=self._media,
            known=self._known,
            provenance=np.array(self._record),
          )
        self._unsaved = False
      except OSError as error:
        logging.getLogger(__name__).warning(
          '%s: cannot be written (%s); the next run measures lengths again, wanted space for '
          'them: free some space or set data.cache_folder elsewhere',
          self._file,
          error,
        )

  def _merge(self) -> None:
    """Adds the sizes from the file that are not known yet.

    An unreadable file is ignored; a later write replaces it.
    """
    try:
      with np.load(self._file) as found:
        sizes, media, known = found['sizes'], found['media'], found['known']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      return
    if sizes.shape == self._sizes.shape and media.shape == known.shape == self._known.shape:
      new = known & ~self._known
      self._sizes[new], self._media[new], self._known[new] = sizes[new], media[new], True
