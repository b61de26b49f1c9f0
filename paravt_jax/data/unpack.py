"""Archives of media, extracted into one root.

Run: python -m paravt_jax.data.unpack --archives DIR --root DIR [--include GLOB ...] [--workers N]

Every zip and tar (also .tar.gz, .bz2, .xz, .zst, .lz4, and what `split` made of one: x.tar.part.aa,
x.zip.001) at any depth of DIR. All that can be seen beforehand is checked for all archives before
the first byte is written, and every fault is listed: names that leave the root, links, devices,
encryption, bombs, missing parts, files that two archives hold differently, a disk that is too
small, damage. Files appear by rename, so that a killed run leaves whole files only; the next run
continues, and skips quickly what the journal (ROOT/.paravt_unpack) knows. Other files that carry a
member's name are compared by checksum and replaced if they differ: the archives are what is right.

What macOS and Windows leave in archives (__MACOSX/, ._*, .DS_Store, Thumbs.db, ...) is left out and
counted. Files that look like an archive and are not read (.7z, .rar, a download that stopped, a zip
over several disks, ...) are named: the others are unpacked, and the status is 2 until they are
gone.

Status: 0 done; 1 nothing found (no archive, or no member that --include wants); 2 refused, failed,
or not all read, a line for each reason.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from paravt_jax.data import archives as archives_module
from paravt_jax.data import command_line
from paravt_jax.data.archive_members import PLAIN, Archive, Member
from paravt_jax.data.archive_parts import SUFFIXES
from paravt_jax.data.unpack_files import Brought, bring
from paravt_jax.data.unpack_journal import Journal, header, lock_root
from paravt_jax.data.unpack_plan import Plan
from paravt_jax.data.unpack_workers import Workers
from paravt_jax.errors import DataError, ParavtError

_BATCH_FILES, _BATCH_BYTES = 64, 16 << 20  # the limits of one batch of a worker: files, bytes
_SMALL = 256 << 10  # a smaller file (bytes) costs mostly system calls
MANY = 2000  # from this many small files on, worker processes pay off


class NothingFound(DataError):
  """Raised when there is no archive, or no member that matches `include`."""


@dataclasses.dataclass(frozen=True)
class Unpacked:
  """The counts that `unpack` returns."""

  written: int  # written files
  kept: int  # files that were already complete, or that a second archive also contains
  bytes: int = 0  # bytes of the written files
  skipped: int = 0  # files that match no glob of `include`
  replaced: int = 0  # of the written files, those that replaced a file with other content
  changed: tuple[str, ...] = ()  # one line for each archive that changed since the last run
  left_out: int = 0  # metadata files of macOS and Windows that were not extracted
  unread: tuple[str, ...] = ()  # one line per unreadable archive


def unpack(
  archives: str | os.PathLike,
  root: str | os.PathLike,
  *,
  workers: int | None = None,
  include: Sequence[str] = (),
  progress: Callable[[int, int], None] | None = None,
) -> Unpacked:
  """Extracts all archives below the folder `archives` into `root`.

  `archives` may also be one archive file, or one part of a split archive. A killed run can be
  started again.

  Args:
    workers: number of workers, over archives and over the members of one archive. They are threads,
      or processes for many small files. None: one per available core, at most 16.
    include: globs that are matched against a member's whole path (`*` crosses `/`). A member must
      match at least one. Empty: all members. Faults of other members are ignored.
    progress: called as progress(done, total) in bytes, by the workers, one call at a time. It
      counts reading the packed tars first. Then it counts writing, which adds to both numbers.

  Raises:
    NothingFound: there is no archive, or no member that matches `include`.
    DataError: only unreadable files were found, or there are faults, one line each (see the module
      docstring). After a fault found while writing (wrong checksum, full disk), finished files
      stay.
  """
  source, root = pathlib.Path(archives), pathlib.Path(root)
  try:
    return _unpack(source, root, workers, include, progress)
  except OSError as error:
    raise DataError(
      f'{root}: {error.strerror} at {error.filename or root}; wanted to extract {source} there: '
      'free space or check permissions, then run again (finished files are kept)'
    ) from error


def _unpack(
  source: pathlib.Path,
  root: pathlib.Path,
  workers: int | None,
  include: Sequence[str],
  progress: Callable[[int, int], None] | None,
) -> Unpacked:
  run = _Run(root, workers or min(16, len(os.sched_getaffinity(0))), progress)
  if not source.exists():
    raise DataError(f'{source}: no such file or folder, wanted archives; check --archives')
  found = archives_module.find(source, root)
  if not found.archives and found.unread:
    raise DataError('\n'.join(found.unread))
  if not found.archives:
    raise NothingFound(
      f'{source}: got no archive, wanted a file or a folder with '
      f'{" ".join("*" + s for s in SUFFIXES)}; check --archives'
    )
  journals = [
    Journal(root, parts[0].name if source.is_file() else str(parts[0].relative_to(source)))
    for parts in found.archives
  ]
  # 1. list the members: from the journal if it is still valid, else from the archive
  listed = run.each(
    [functools.partial(_list, run, *each) for each in zip(found.archives, journals)]
  )
  # 2. check everything before the first byte is written
  plan = Plan(root, include, {path.resolve() for parts in found.archives for path in parts})
  for archive, journal in zip(listed, journals):
    plan.add(archive, journal)
  plan.finish()
  if plan.faults:
    raise DataError('\n'.join(plan.faults))
  if not plan.targets:
    raise NothingFound(
      f'{source}: got {plan.skipped} members, wanted one at least'
      + (
        f' that matches {" or ".join(include)}; check --include'
        if include
        else '; check --archives'
      )
    )
  # 3. write the files
  _write(run, plan)
  changed = tuple(
    filter(None, (_change(archive, journal) for archive, journal in zip(listed, journals)))
  )
  return Unpacked(
    run.counts['written'],
    plan.kept + run.counts['kept'],
    run.counts['bytes'],
    plan.skipped,
    run.counts['replaced'],
    changed,
    sum(archive.left for archive in listed),
    tuple(found.unread),
  )


def _list(run: '_Run', parts: tuple[pathlib.Path, ...], journal: Journal) -> Archive:
  known = journal.read_listing(parts)
  if known:
    return known
  if archives_module.kind_of(parts[0]) not in PLAIN:
    run.expect(archives_module.facts(parts)[0])
  return archives_module.read(parts, run.advance)


def _change(archive: Archive, journal: Journal) -> str | None:
  """Returns a message if the archive differs from the one unpacked before, else None."""
  if journal.known is None or journal.is_of(archive):
    return None
  gone = len(journal.files.keys() - {member.name for member in archive.members})
  return f'{archive.path}: changed since it was unpacked here' + (
    f'; {gone} files that it no longer holds stay' if gone else ''
  )


# Writing the files


class _Stopped(Exception):
  """Raised in a worker when another worker failed or the user pressed Ctrl-C."""


class _Run:
  """The workers of one run, with their counts, faults and common progress."""

  def __init__(self, root: pathlib.Path, workers: int, progress: Callable[[int, int], None] | None):
    self.root, self.real, self.workers = root, os.path.realpath(root), workers
    self.counts: collections.Counter[str] = collections.Counter()
    self.faults: list[str] = []
    # without worker processes, only one thread at a time writes small files (see unpack_workers)
    self.small = threading.Lock()
    self._progress, self._done, self._total = progress, 0, 0
    self._lock = threading.Lock()
    self._stop = threading.Event()

  def expect(self, count: int):
    """Adds `count` bytes to the total of the progress."""
    with self._lock:
      self._total += count

  def advance(self, count: int):
    """Adds `count` bytes to the progress. Raises _Stopped if another job failed."""
    if self._stop.is_set():
      raise _Stopped
    with self._lock:
      self._done += count
      if self._progress:
        self._progress(self._done, self._total)

  def add(self, done: Brought):
    """Adds the counts and faults of one job."""
    with self._lock:
      self.counts.update(done.counts)
      self.faults += done.faults

  def each(self, jobs: list[Callable]) -> list:
    """Runs the jobs in threads and returns their results in order. The first failure stops all."""
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      futures = [pool.submit(job) for job in jobs]
      try:
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future.done()]
        failed = [error for error in errors if error is not None]
        if failed:  # the original error, not the _Stopped that it caused in other jobs
          raise next((error for error in failed if not isinstance(error, _Stopped)), failed[0])
        return [future.result() for future in futures]
      except BaseException:  # includes Ctrl-C; the workers check the flag
        self._stop.set()
        raise
      finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _write(run: _Run, plan: Plan):
  """Writes the planned files.

  Raises:
    DataError: members are damaged. All other files are written first, and every fault is listed. A
      disk error is raised at once.
  """
  todo = [entry for entry in plan.todo if entry[2] or not entry[1].is_of_same_files(entry[0])]
  if not todo:
    return
  run.expect(plan.bytes)
  # streams first: only one worker can read a stream
  batches = [
    (archive, journal, members)
    for archive, journal, fresh, _ in sorted(todo, key=lambda entry: not entry[0].is_stream)
    for members in _batches(archive, fresh)
  ]
  small = sum(member.size < _SMALL for _, _, members in batches for member in members)
  with lock_root(run.root) as lock, contextlib.ExitStack() as stack:
    for folder in sorted(
      {os.path.dirname(member.name) for _, _, members in batches for member in members}
    ):
      os.makedirs(f'{run.real}/{folder}', exist_ok=True)
    for archive, journal, _, trusted in todo:
      # keep the lines of an earlier run with another --include
      rest = journal.files if journal.is_of_same_files(archive) else {}
      journal.start(header(archive, journal.name), {**rest, **trusted})
      stack.callback(journal.close)
    many = run.workers > 1 and small >= MANY
    helpers = stack.enter_context(Workers(min(run.workers, len(batches)), lock)) if many else None
    run.each([functools.partial(_batch, run, *batch, helpers) for batch in batches])
  if run.faults:
    raise DataError('\n'.join(sorted(run.faults)))


def _batches(archive: Archive, members: list[Member]) -> Iterator[list[Member]]:
  """Yields the members in byte order, in small batches. A packed tar is one batch."""
  batch, size = [], 0
  for member in sorted(members, key=lambda member: member.place):
    if (
      batch
      and not archive.is_stream
      and (len(batch) >= _BATCH_FILES or size + member.size > _BATCH_BYTES)
    ):
      yield batch
      batch, size = [], 0
    batch.append(member)
    size += member.size
  if batch:
    yield batch


def _batch(
  run: _Run, archive: Archive, journal: Journal, members: list[Member], helpers: Workers | None
):
  """Writes some members of one archive into the root and records the results in the journal."""
  run.advance(0)  # raises _Stopped if another job failed
  if sum(member.size for member in members) >= _SMALL * len(members):
    done = bring(run.real, archive, members, run.advance)
  elif helpers:
    done = helpers.bring(run.real, archive, members, run.advance)
  else:
    with run.small:
      done = bring(run.real, archive, members, run.advance)
  journal.add(done.files)
  run.add(done)
  if done.error:
    raise done.error


def _parser() -> argparse.ArgumentParser:
  parser = command_line.parser('unpack', __doc__)
  parser.add_argument(
    '--archives', required=True, help='an archive, or a folder that holds some at any depth'
  )
  parser.add_argument('--root', required=True, help='the media root to extract into')
  parser.add_argument(
    '--include',
    nargs='+',
    action='extend',
    default=[],
    metavar='GLOB',
    help="only members whose path matches one of these ('longvt_source/tvg_*')",
  )
  parser.add_argument(
    '--workers',
    type=int,
    help='threads, or processes for many small files (default: one per core, 16 at most)',
  )
  return parser


def main(arguments: list[str] | None = None) -> int:
  """Runs the command and returns its exit status."""
  parser = _parser()
  options = parser.parse_args(arguments)
  if options.workers is not None and options.workers < 1:
    parser.error('--workers must be 1 at least')
  try:
    with tqdm(
      desc='unpack',
      unit='B',
      unit_scale=True,
      unit_divisor=1024,
      file=sys.stderr,
      dynamic_ncols=True,
      mininterval=0.2 if sys.stderr.isatty() else 15.0,
      delay=0.5,
    ) as bar:

      def show(done: int, total: int):
        bar.total = total
        bar.update(done - bar.n)

      done = unpack(
        options.archives,
        options.root,
        workers=options.workers,
        include=options.include,
        progress=show,
      )
  except ParavtError as error:
    print(error, file=sys.stderr)
    return 1 if isinstance(error, NothingFound) else 2
  for line in done.changed:
    print(line)
  print(
    f'{options.root}: {done.written} files written ({done.bytes} bytes, {done.replaced} of them '
    f'in place of another content), {done.kept} already there, {done.skipped} not wanted by '
    '--include'
    + (f', {done.left_out} left out that macOS or Windows left there' if done.left_out else '')
  )
  for line in done.unread:
    print(line, file=sys.stderr)
  return 2 if done.unread else 0


if __name__ == '__main__':
  sys.exit(main())
