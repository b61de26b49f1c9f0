"""How long rows are, without decoding anything: measured once, in parallel and ahead of need, and
kept for the next run.

A row's size is (tokens, frame slots, slots of large images). With a cache folder it is written down
with a fingerprint of the row's media (path, bytes, time of change), so that a file that was
replaced is measured again; faults are never kept, so that a file that was fixed is read again.

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

VERSION = 2  # raise when the same row and options give another size
NO_TARGET = 'no_target'
_EVERY = 1024  # new sizes after which an index is written


@dataclasses.dataclass(frozen=True)
class Cache:
  """Where sizes are kept."""

  folder: pathlib.Path
  tokenizer: str  # digest of the tokenizer's file


@dataclasses.dataclass(frozen=True)
class Size:
  """What a row takes. All numbers are 0 when it cannot be used."""

  tokens: int  # images expanded
  frames: int  # frame slots
  large_images: int  # slots of large images
  # why it cannot be used: a schema's reason, media_<reason>, chat, no_target; '' when it can
  reason: str = ''
  fault: str = ''  # the reason in words


class Lengths:
  """The sizes of one source's rows. Safe to use from several threads.

  Args:
    rows: a Table, or any sequence of conversations (nothing is kept of those). tok, frames,
    options: as for `sft.sample`; frames are only probed. image_patches: of a frame slot: larger
    images take slots of their own. skip_bad_rows: a row that breaks the schema has a reason; else
    it raises. alone: whether this is the only host. With others, media that time out here and
    nowhere else would make the hosts' plans part
      for good, so that such a failure raises; alone it is a reason as any other.
    pool: measures ahead.
    cache: where sizes are kept; None for nowhere.
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
    """Begins to measure rows that will be wanted soon."""
    for row in rows:
      if row not in self._sizes and row not in self._asked:
        self._asked[row] = self._pool.submit(self._measure, row)

  def size(self, row: int) -> Size:
    """The size of a row; remembered. Raises DataError for a row that breaks the schema, unless such
    rows are skipped.
    """
    if row not in self._sizes:
      asked = self._asked.pop(row, None)
      self._sizes[row] = asked.result() if asked is not None else self._measure(row)
    return self._sizes[row]

  def name(self, row: int) -> str:
    """'file.parquet:row' for people."""
    return name(self._rows, row)

  def close(self) -> None:
    """Writes down what was measured since the last time."""
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
  """'file.parquet:row' of a row, whether it can be read or not."""
  return rows.name(row) if isinstance(rows, Table) else rows[row].id


def _fingerprint(conversation: Conversation) -> int:
  """A uint64 of the media files of a row: paths, bytes and times of change; a file that is not
  there counts, too.
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
  """The sizes of one parquet file's rows, in memory and in a file that several processes may
  share.
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
    """The size of a row with these media; None when it was not measured."""
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
    """Remembers a size, and writes the file every so often."""
    with self._lock:
      self._sizes[row] = size.tokens, size.frames, size.large_images
      self._media[row], self._known[row] = media, True
      self._new += 1
      due = self._new >= _EVERY
    if due:
      self.write()

  def write(self) -> None:
    """Writes what is new, with what other processes have written meanwhile, beside the place, and
    renames.
    """
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
          '%s: cannot be written (%s); lengths are measured again by the next run, wanted room for '
          'them: free some space or set data.cache_folder elsewhere',
          self._file,
          error,
        )

  def _merge(self) -> None:
    """Takes over sizes from the file that are not known here. A file that cannot be read is written
    anew later.
    """
    try:
      with np.load(self._file) as found:
        sizes, media, known = found['sizes'], found['media'], found['known']
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
      return
    if sizes.shape == self._sizes.shape and media.shape == known.shape == self._known.shape:
      new = known & ~self._known
      self._sizes[new], self._media[new], self._known[new] = sizes[new], media[new], True
