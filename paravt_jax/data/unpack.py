"""Archives of media, extracted into one root.

Run: python -m paravt_jax.data.unpack --archives DIR --root DIR [--include GLOB ...] [--workers N]

Every zip and tar (also .tar.gz, .bz2, .xz, .zst, .lz4, and what `split` made of one: x.tar.part.aa,
x.zip.001) at any depth of DIR. All that can be seen beforehand is checked for all archives before
the first byte is written, and every fault is listed: names that leave the root, links, devices,
encryption, bombs, missing parts, files that two archives hold differently, a disk that is too
small, damage. Files appear by rename, so that a killed run leaves whole files only; the next run
goes on, and skips quickly what the journal (ROOT/.paravt_unpack) knows. Other files that carry a
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

_BATCH_FILES, _BATCH_BYTES = 64, 16 << 20  # what a worker does before it looks for more
_SMALL = 256 << 10  # bytes of a file that is mostly system calls,
MANY = 2000  # and how many of them are worth starting processes for


class NothingFound(DataError):
  """There is no archive, or no member that `include` wants."""


@dataclasses.dataclass(frozen=True)
class Unpacked:
  """What was done."""

  written: int  # files
  kept: int  # files that were there whole, or that another archive holds too
  bytes: int = 0  # of the files written
  skipped: int = 0  # files that `include` does not want
  replaced: int = 0  # of the files written, those in place of another content
  changed: tuple[str, ...] = ()  # a line per archive that is not what it was
  left_out: int = 0  # files of macOS and Windows
  unread: tuple[str, ...] = ()  # a line per file that looks like an archive and is not read


def unpack(
  archives: str | os.PathLike,
  root: str | os.PathLike,
  *,
  workers: int | None = None,
  include: Sequence[str] = (),
  progress: Callable[[int, int], None] | None = None,
) -> Unpacked:
  """Extracts every archive below the folder `archives` (or that one file, or those of which it is a
  part) into `root`. May be killed and run again.

  Args:
    workers: over archives and over the members of one; threads, or processes for many small files.
    None: one per core that this process has, 16 at most.
    include: globs over a member's whole path (`*` crosses `/`), any of which it must match; none:
    all. Faults of members that are not wanted do not count.
    progress: called with (done, total) in bytes, from the workers but one at a time: first over the
    packed tars that must be read through, then over what is written, which adds to both.

  Raises:
    NothingFound: no archive, or no member that `include` wants.
    DataError: nothing but files that are not read; all faults, a line each (see the top). Faults
      that are seen only while writing (a wrong checksum, a full disk) leave the finished files.
  """
  source, root = pathlib.Path(archives), pathlib.Path(root)
  try:
    return _unpack(source, root, workers, include, progress)
  except OSError as error:
    raise DataError(
      f'{root}: {error.strerror} at {error.filename or root}; wanted to extract {source} there: '
      'make room or check permissions, then run again (finished files are kept)'
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
  # lists of members: from the journals where they still hold, else read
  listed = run.each(
    [functools.partial(_list, run, *each) for each in zip(found.archives, journals)]
  )
  # everything that can be refused is refused before the first byte is written
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
  """A line when the archive is not the one that was unpacked before."""
  if journal.known is None or journal.is_of(archive):
    return None
  gone = len(journal.files.keys() - {member.name for member in archive.members})
  return f'{archive.path}: changed since it was unpacked here' + (
    f'; {gone} files that it no longer holds stay' if gone else ''
  )


# Doing it


class _Stopped(Exception):
  """Another worker failed, or somebody pressed Ctrl-C."""


class _Run:
  """Workers, their counts, and the progress of them all."""

  def __init__(self, root: pathlib.Path, workers: int, progress: Callable[[int, int], None] | None):
    self.root, self.real, self.workers = root, os.path.realpath(root), workers
    self.counts: collections.Counter[str] = collections.Counter()
    self.faults: list[str] = []
    # without processes, small files are done by one thread at a time (see unpack_workers)
    self.small = threading.Lock()
    self._progress, self._done, self._total = progress, 0, 0
    self._lock = threading.Lock()
    self._stop = threading.Event()

  def expect(self, count: int):
    """count more bytes are to be done."""
    with self._lock:
      self._total += count

  def advance(self, count: int):
    """count more bytes are done."""
    if self._stop.is_set():
      raise _Stopped
    with self._lock:
      self._done += count
      if self._progress:
        self._progress(self._done, self._total)

  def add(self, done: Brought):
    """Adds a job's counts and faults."""
    with self._lock:
      self.counts.update(done.counts)
      self.faults += done.faults

  def each(self, jobs: list[Callable]) -> list:
    """The jobs' results in their order; the first failure ends them all."""
    with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
      futures = [pool.submit(job) for job in jobs]
      try:
        concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        errors = [future.exception() for future in futures if future.done()]
        failed = [error for error in errors if error is not None]
        if failed:  # that of the job which failed first of itself, not those that it stopped
          raise next((error for error in failed if not isinstance(error, _Stopped)), failed[0])
        return [future.result() for future in futures]
      except BaseException:  # Ctrl-C too: the workers look at the flag
        self._stop.set()
        raise
      finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _write(run: _Run, plan: Plan):
  """Writes what the plan says. Raises DataError with all damage found, after the rest is written;
  at once when a disk fails.
  """
  todo = [entry for entry in plan.todo if entry[2] or not entry[1].is_of_same_files(entry[0])]
  if not todo:
    return
  run.expect(plan.bytes)
  # those that only one worker can do come first
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
      # of an earlier run with another --include
      rest = journal.files if journal.is_of_same_files(archive) else {}
      journal.start(header(archive, journal.name), {**rest, **trusted})
      stack.callback(journal.close)
    many = run.workers > 1 and small >= MANY
    helpers = stack.enter_context(Workers(min(run.workers, len(batches)), lock)) if many else None
    run.each([functools.partial(_batch, run, *batch, helpers) for batch in batches])
  if run.faults:
    raise DataError('\n'.join(sorted(run.faults)))


def _batches(archive: Archive, members: list[Member]) -> Iterator[list[Member]]:
  """Members in the order of their bytes, a few at a time; a packed tar's in one go."""
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
  """Brings some members of one archive into the root, and writes down what came of it."""
  run.advance(0)  # ends here when another job failed
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
  """The command; returns its exit status."""
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
