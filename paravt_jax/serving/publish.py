"""Published weight versions in a shared folder: Orbax arrays and a manifest of their contents.

`weights/<version>/` appears atomically, by rename: `arrays/` (Orbax, neither compressed nor OCDBT)
and `manifest.json` (see `manifest`). Only trained arrays are written. The manifest lists the other
arrays with their hashes.

With several processes, each writes and hashes its own shards, and process 0 merges their manifests.
They synchronize at a barrier in `start`, and afterwards only through files. A collective in a
background thread could interleave with one of the training step.

Files are not synced to the disk (`fsync`), because that would take most of the time. After a power
cut, an incomplete version does not match its manifest and is refused. The next step publishes a new
version. Checkpoints, in another module, are synced.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from paravt_jax.errors import SyncError
from paravt_jax.models.lora import Adapter
from paravt_jax.serving import array_files, flat, manifest
from paravt_jax.serving.array_files import ARRAYS
from paravt_jax.serving.changes import Outlet as Changes
from paravt_jax.serving.manifest import Manifest, Params

MANIFEST = manifest.FILE
_FAILED = 'failed'
_PATIENCE_S = 600.0  # wait for the other processes to finish their part
_POLL_S = 0.02
# Orbax's store raises its own type for a full disk.
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)

read_manifest = manifest.read


@dataclasses.dataclass(frozen=True)
class Outgoing:
  """What servers load of a version."""

  whole: Callable[[], pathlib.Path]  # waits for the folder of all arrays; raises SyncError
  # folder of what changed since the version before, where there is one
  changes: pathlib.Path | None

  @property
  def first(self) -> pathlib.Path:
    """Returns the folder that servers try first. Raises SyncError as `whole`."""
    return self.whole() if self.changes is None else self.changes


class Pending:
  """A version that is being written."""

  def __init__(self, ready: 'Future[Outgoing]', future: 'Future[pathlib.Path]'):
    self._ready, self._future = ready, future

  @property
  def done(self) -> bool:
    """Returns whether `result` would return at once."""
    return self._future.done()

  def ready(self) -> Outgoing:
    """Waits until servers can load the version, which may be before it is on the disk.

    Raises:
      SyncError: as `result`.
    """
    return self._ready.result()

  def result(self) -> pathlib.Path:
    """Waits until the version is on the disk. Returns the published folder.

    Raises:
      SyncError: the folder cannot be written. No partial version remains, and earlier versions are
      unchanged.
    """
    return self._future.result()


@dataclasses.dataclass(frozen=True)
class _Job:
  """Everything that the writing thread needs."""

  target: pathlib.Path  # the folder of the version
  partial: pathlib.Path  # written first, then renamed to `target`
  version: int
  named: dict[str, Any]  # arrays that no other code changes
  frozen: dict[str, str]  # name -> hash of an array that is not written
  canary: dict[str, Any] | None
  adapter: Adapter | None  # the form of an adapter, where `named` is one
  ready: 'Future[Outgoing]'  # gets what servers load
  written: 'Future[pathlib.Path]'  # gets `target`, once it is on the disk

  @property
  def page(self) -> Manifest:
    """Returns the manifest, without the arrays."""
    return Manifest(self.version, {}, self.frozen, self.canary, {}, self.adapter)

  def settle(self, done: 'Future[pathlib.Path]') -> None:
    """Passes on the end of the write, to servers too if they wait for it."""
    error = done.exception()
    if error is not None:
      self.written.set_exception(error)
      if not self.ready.done():
        self.ready.set_exception(error)
      return
    self.written.set_result(done.result())
    if not self.ready.done():
      self.ready.set_result(Outgoing(done.result, None))


class Publisher:
  """Writes versions below `folder` and deletes all but the newest `keep`.

  Every process of a run has one publisher, and a folder belongs to one run.

  Args:
    memory: where each version goes first, for servers on this machine; None without one.
    changes: where its changes go first, for servers on other machines; None without one.
  """

  def __init__(
    self,
    folder: str | os.PathLike,
    *,
    keep: int,
    memory: flat.Store | None = None,
    changes: Changes | None = None,
  ):
    if keep < 1:
      raise ValueError(f'publish: got keep={keep}, wanted at least 1')
    self._folder, self._keep = pathlib.Path(folder).absolute(), keep
    self._memory, self._changes = memory, changes
    self._thread = ThreadPoolExecutor(1, 'publish')
    self._pending: Pending | None = None
    self._frozen: tuple[Params | None, dict[str, str]] = (None, {})

  def start(
    self,
    version: int,
    params: Params,
    *,
    frozen: Params | None,
    canary: dict[str, Any] | None,
    adapter: Adapter | None = None,
  ) -> Pending:
    """Starts to write a version. Returns once the caller may overwrite or donate its buffers.

    It waits for the previous write first, see `settle`.

    Args:
      version: the name of the folder; a version that exists is replaced.
      params: tree of float32 or bfloat16 arrays, on host or devices, sharded or not. Each keeps its
      dtype.
      frozen: the model's other arrays, or functions that return them. They are hashed (once per
      tree object) and never written.
      canary: any JSON value, stored in the manifest.
      adapter: the form of the adapter that `params` is; None for weights of the model itself.

    Raises:
      SyncError: the folder cannot be made, an array is of another dtype, or the previous version
      went out through memory and could not be written to the disk.
    """
    self.settle()
    return self._begin(version, params, frozen, canary, adapter, copy=True)

  def settle(self) -> None:
    """Waits for the current write.

    Raises:
      SyncError: servers have the version through memory, and it cannot be written to the disk. It
      is raised once.
    """
    pending, self._pending = self._pending, None
    if pending is not None and pending._future.exception() and not pending._ready.exception():
      pending.result()

  def close(self) -> None:
    """Waits for the current write."""
    self._thread.shutdown()

  def __enter__(self) -> 'Publisher':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _begin(
    self,
    version: int,
    params: Params,
    frozen: Params | None,
    canary: dict[str, Any] | None,
    adapter: Adapter | None,
    *,
    copy: bool,
  ) -> Pending:
    target, partial = self._folder / str(version), self._folder / f'.{version}.part'
    named = manifest.leaves(params)
    for name, leaf in named.items():
      if np.dtype(leaf.dtype).name not in manifest.DTYPES:
        raise SyncError(
          f'{target}: {name!r} is {np.dtype(leaf.dtype).name}, wanted one of '
          f'{manifest.DTYPES}; cast it first'
        )
    hashes = self._hashes(frozen)
    both = sorted(named.keys() & hashes.keys())
    if both:
      raise SyncError(f'{target}: {both[0]!r} is both published and frozen; give each array once')
    self._open(target, partial)
    own = {name: array_files.snapshot(leaf) if copy else leaf for name, leaf in named.items()}
    jax.block_until_ready(own)
    job = _Job(target, partial, int(version), own, hashes, canary, adapter, Future(), Future())
    self._thread.submit(self._write, job).add_done_callback(job.settle)
    self._pending = Pending(job.ready, job.written)
    return self._pending

  def _hashes(self, frozen: Params | None) -> dict[str, str]:
    if frozen is None:
      return {}
    if self._frozen[0] is not frozen:
      hashes: dict[str, str] = {}
      for name, leaf in manifest.leaves(frozen).items():  # one at a time is whole on this host
        hashes |= manifest.frozen_hashes({name: array_files.whole(leaf)})
      self._frozen = frozen, hashes
    return self._frozen[1]

  def _open(self, target: pathlib.Path, partial: pathlib.Path) -> None:
    """Creates an empty partial folder that all processes share.

    It removes the remains of a killed publisher.
    """
    problem = None
    if jax.process_index() == 0:
      try:
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob('.*.part*'):
          shutil.rmtree(left) if left.is_dir() else left.unlink()
        (partial / ARRAYS).mkdir(parents=True)
      except OSError as error:
        problem = error
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'publish-{target.name}')
    if problem is not None or not (partial / ARRAYS).is_dir():
      raise _unwritable(
        target, problem or FileNotFoundError(f'{partial} was not made by process 0')
      ) from problem

  def _send(self, job: _Job) -> None:
    """Lets servers have the version before it is on the disk, if they can. Raises SyncError."""
    if self._memory is not None:
      folder = self._memory.write(job.page, job.named)
      if folder is not None:
        job.ready.set_result(Outgoing(lambda: folder, None))
    elif self._changes is not None and job.adapter is None:
      changed = self._changes.write(job.page, job.named)
      if changed is not None:
        job.ready.set_result(Outgoing(job.written.result, changed))

  def _write(self, job: _Job) -> pathlib.Path:
    try:
      self._send(job)
      entries = array_files.write(job.partial / ARRAYS, job.named)
      page = dataclasses.replace(job.page, arrays=entries)
      if jax.process_index() == 0:
        _finish(job, page)
        self._forget(job.version)
      else:
        _hand_over(job, page)
    except SyncError as error:
      _give_up(job, error)
      raise
    except _WRITE_ERRORS as error:
      _give_up(job, error)
      raise _unwritable(job.target, error) from error
    return job.target

  def _forget(self, version: int) -> None:
    for old in sorted(versions(self._folder))[: -self._keep]:
      if old != version:
        shutil.rmtree(self._folder / str(old), ignore_errors=True)


def save(
  folder: str | os.PathLike,
  version: int,
  params: Params,
  *,
  keep: int,
  frozen: Params | None = None,
  canary: dict[str, Any] | None = None,
  adapter: Adapter | None = None,
) -> pathlib.Path:
  """Publishes `params` as `folder/<version>/` and waits for it; see Publisher.

  It does not copy the arrays, because no other code changes them meanwhile.

  Raises:
    SyncError: the folder cannot be written. No partial version remains.
  """
  with Publisher(folder, keep=keep) as publisher:
    return publisher._begin(version, params, frozen, canary, adapter, copy=False).result()


def versions(folder: str | os.PathLike) -> list[int]:
  """Returns the published versions, unsorted. Empty for a missing folder."""
  folder = pathlib.Path(folder)
  found = folder.iterdir() if folder.is_dir() else ()
  return [int(path.name) for path in found if path.name.isdecimal() and (path / MANIFEST).is_file()]


def _part(job: _Job, process: int) -> pathlib.Path:
  return job.partial / f'process-{process}.json'


def _hand_over(job: _Job, page: Manifest) -> None:
  """Writes this process's part for process 0, and waits until it has renamed the folder."""
  partial = _part(job, jax.process_index()).with_suffix('.part')
  partial.write_text(page.to_text())
  partial.rename(_part(job, jax.process_index()))
  _wait(job, lambda: not job.partial.exists())


def _finish(job: _Job, page: Manifest) -> None:
  """Joins all parts, writes the manifest and renames the folder to its name."""
  for process in range(1, jax.process_count()):
    part = _part(job, process)
    _wait(job, part.exists)
    page = _merge_pages(page, manifest.parse(json.loads(part.read_text())))
    part.unlink()
  page = dataclasses.replace(page, files=manifest.list_files(job.partial / ARRAYS))
  array_files.layout(page)
  (job.partial / MANIFEST).write_text(page.to_text())
  if job.target.exists():
    aside = job.partial.with_name(job.partial.name + '.old')
    job.target.rename(aside)
    job.partial.rename(job.target)
    shutil.rmtree(aside, ignore_errors=True)
  else:
    job.partial.rename(job.target)


def _merge_pages(one: Manifest, other: Manifest) -> Manifest:
  arrays = {
    name: dataclasses.replace(entry, shards=entry.shards + other.arrays[name].shards)
    for name, entry in one.arrays.items()
  }
  return dataclasses.replace(one, arrays=arrays)


def _wait(job: _Job, condition: Any) -> None:
  end = time.monotonic() + _PATIENCE_S
  while not condition():
    if (job.partial / _FAILED).exists():
      raise OSError((job.partial / _FAILED).read_text())
    if time.monotonic() > end:
      raise TimeoutError(f'another process did not write its part within {_PATIENCE_S:.0f} s')
    time.sleep(_POLL_S)


def _give_up(job: _Job, error: Exception) -> None:
  """Removes the partial version. With several processes, marks it as failed so that all of them
  stop.
  """
  if jax.process_count() == 1:
    shutil.rmtree(job.partial, ignore_errors=True)
    return
  try:
    (job.partial / _FAILED).write_text(
      f'process {jax.process_index()}: {array_files.reason(error)}'
    )
  except OSError:
    shutil.rmtree(job.partial, ignore_errors=True)


def _unwritable(target: pathlib.Path, error: BaseException) -> SyncError:
  return SyncError(
    f'{target}: weights cannot be written ({array_files.reason(error)}); free space or '
    'choose another folder, the run continues from its last checkpoint'
  )
