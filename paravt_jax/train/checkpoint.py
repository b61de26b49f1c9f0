"""Checkpoint records of a run: one folder per step, either complete or absent.

    <root>/00000012/arrays/...   parameters, optimizer state: one Orbax checkpoint, leaves by name
    <root>/00000012/host.json    the host's counters: data position, rollout counters, ...
    <root>/00000012/base.json    only if arrays leave out frozen parameters: where those are
    <root>/00000012/...          further files of the caller

A record is written in the background under a temporary name and renamed, so a kill in the middle
leaves the previous one as the newest.
"""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as orbax

from paravt_jax.errors import CheckpointError

BASE = 'base.json'
_TEMPORARY = '.writing-'
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Record:
  """The result of `restore`."""

  step: int  # of the record
  state: Any  # a tree like the template, on its devices
  host: dict[str, Any]  # as saved


@dataclasses.dataclass(frozen=True)
class Base:
  """Where the parameters are that a record leaves out because training does not change them."""

  folder: str  # a Hugging Face folder
  names: tuple[str, ...]  # top-level names of the parameters
  fingerprint: str  # of their values (state.fingerprint)


def leaf_names(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a tree by path, such as 'params/text/embed'."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def folder(root: str | os.PathLike, step: int) -> pathlib.Path:
  """Returns the folder of a step's record."""
  return pathlib.Path(root) / f'{step:08d}'


def steps(root: str | os.PathLike) -> tuple[int, ...]:
  """Returns the steps with a complete record, oldest first. Empty if there is no folder."""
  root = pathlib.Path(root)
  if not root.is_dir():
    return ()
  return tuple(
    sorted(
      int(path.name)
      for path in root.iterdir()
      if path.name.isdigit() and (path / 'host.json').is_file()
    )
  )


def latest(root: str | os.PathLike) -> int | None:
  """Returns the newest step with a complete record, or None."""
  found = steps(root)
  return found[-1] if found else None


def sweep(root: str | os.PathLike) -> None:
  """Removes the partial records of a killed or failed `save`. No `save` may run at the same time.

  A missing folder is no error.
  """
  if jax.process_index() == 0:
    for path in pathlib.Path(root).glob(f'{_TEMPORARY}*'):
      shutil.rmtree(path, ignore_errors=True)


class Writer:
  """Writes the records of a run in the background, one at a time.

  Args:
    root: folder of the records; created if missing.
    keep: number of records that stay, at least 1.
  """

  def __init__(self, root: str | os.PathLike, *, keep: int):
    self._root = pathlib.Path(root).absolute()  # Orbax refuses relative paths
    self._keep = max(keep, 1)
    self._thread = ThreadPoolExecutor(1, 'checkpoint')
    self._pending: tuple[pathlib.Path, Future[None]] | None = None

  def save(
    self,
    step: int,
    state: Any,
    host: Any,
    base: Base | None = None,
    files: Mapping[str, Callable[[pathlib.Path], None]] | None = None,
  ) -> pathlib.Path:
    """Begins the record of a step. Returns its folder, which appears when it is complete.

    It waits for the record before, and until the arrays have been copied to host memory. Then the
    caller may overwrite or donate them. The host needs the bytes of the record meanwhile.

    Args:
      step: number of the record; one that exists is replaced.
      state: any tree of arrays, sharded or not. Every process of a multi-host run calls this.
      host: any JSON value.
      base: where the parameters are that `state` leaves out.
      files: what writes further files of the record, by name, in the background.

    Raises:
      CheckpointError: this record or the one before cannot be written (disk full, no permission).
      Earlier records are unchanged.
    """
    self.wait()
    text = json.dumps(host, indent=1) + '\n'
    target = folder(self._root, step)
    temporary = self._root / f'{_TEMPORARY}{target.name}'
    try:
      if jax.process_index() == 0:
        self._root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
      _barrier(f'checkpoint-{step}-begin')
      # Every process writes its shards. The first process adds the host's file and renames the
      # folder.
      with _context():
        arrays = orbax.save_checkpointables_async(
          str(temporary / 'arrays'), {'state': leaf_names(state)}
        )
    except _WRITE_ERRORS as error:
      raise _unwritable(target, temporary, error) from error
    self._pending = (
      target,
      self._thread.submit(self._finish, arrays, temporary, target, text, base, files or {}),
    )
    return target

  def _finish(
    self,
    arrays: orbax.AsyncResponse[None],
    temporary: pathlib.Path,
    target: pathlib.Path,
    host: str,
    base: Base | None,
    files: Mapping[str, Callable[[pathlib.Path], None]],
  ) -> None:
    try:
      arrays.result()
      if jax.process_index() == 0:
        if base is not None:
          (temporary / BASE).write_text(json.dumps(dataclasses.asdict(base), indent=1) + '\n')
        for name, write in files.items():
          write(temporary / name)
        (temporary / 'host.json').write_text(host)
        if target.exists():
          shutil.rmtree(target)
        temporary.rename(target)
        for old in steps(self._root)[: -self._keep]:
          shutil.rmtree(folder(self._root, old), ignore_errors=True)
    except _WRITE_ERRORS as error:
      raise _unwritable(target, temporary, error) from error

  def wait(self) -> None:
    """Waits for the current record, if any.

    Raises:
      CheckpointError: it could not be written. It is raised once.
    """
    self._wait(together=True)

  def _wait(self, *, together: bool) -> None:
    if self._pending is not None:
      target, written = self._pending
      futures.wait([written])
      self._pending = None
      written.result()
      if together:
        _barrier(f'checkpoint-{target.name}-end')

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    """Waits for the current record. An error of the body counts more than one of the record."""
    try:
      # after an error the other processes do not come here; an interrupt ends all of them
      self._wait(together=kind is None or issubclass(kind, KeyboardInterrupt))
    except CheckpointError as error:
      if kind is None:
        raise
      logging.getLogger(__name__).error('%s', error)
    finally:
      self._thread.shutdown()


def save(
  root: str | os.PathLike,
  step: int,
  state: Any,
  host: Any,
  *,
  keep: int,
  base: Base | None = None,
) -> pathlib.Path:
  """Writes the record of a step and waits for it; see Writer.

  Raises:
    CheckpointError: the record cannot be written. Earlier records are unchanged.
  """
  with Writer(root, keep=keep) as writer:
    return writer.save(step, state, host, base)


def _unwritable(
  target: pathlib.Path, temporary: pathlib.Path, error: BaseException
) -> CheckpointError:
  shutil.rmtree(temporary, ignore_errors=True)
  return CheckpointError(
    f'{target}: the record could not be written ({error}); earlier records are intact; '
    f'free disk space or set another run folder'
  )


def base(root: str | os.PathLike, step: int) -> Base | None:
  """Returns where the parameters are that a record leaves out. None: it has all of them.

  Raises:
    CheckpointError: the record's note of them is damaged.
  """
  file = folder(root, step) / BASE
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text())
    return Base(str(found['folder']), tuple(found['names']), str(found['fingerprint']))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{file}: half written or damaged ({error}); delete {file.parent} to fall back on an '
      'earlier record'
    ) from error


def refuse_other_base(
  path: pathlib.Path, recorded: Base, fingerprint: str, model_folder: str | os.PathLike
) -> None:
  """Raises CheckpointError unless a record was trained with the frozen parameters of a folder.

  Args:
    path: folder of the record.
    fingerprint: of the frozen parameters of `model_folder`.
  """
  if recorded.fingerprint != fingerprint:
    raise CheckpointError(
      f'{path}: {", ".join(recorded.names)} of {model_folder} is not what the record was trained '
      f'with (that of {recorded.folder}); put that model folder back, or start a new run'
    )


def restore(
  root: str | os.PathLike, template: Any, *, step: int | None = None, partial: bool = False
) -> Record:
  """Reads a record onto the devices of the template.

  Args:
    root: folder of the run's records.
    template: a tree of jax.ShapeDtypeStruct with shardings (state.abstract), or of arrays. It has
    the wanted structure, shapes and dtypes.
    step: which record; None for the newest.
    partial: leaves that only the record has are not read. Otherwise they are an error.

  Raises:
    CheckpointError: the record does not exist, or is incomplete or damaged. Also if a leaf is
    missing, unknown, or of another shape or dtype. The message names file and leaf.
  """
  step = latest(root) if step is None else step
  if step is None:
    raise CheckpointError(
      f'{root}: got no checkpoint record, wanted at least one; check the folder, or start '
      'without resuming'
    )
  path = folder(root, step).absolute()
  if not path.is_dir():
    raise CheckpointError(
      f'{path}: no record of step {step}; there are records of {list(steps(root))}'
    )
  # Compare names, shapes and dtypes before reading any array.
  host = _read_host(path)
  wanted = leaf_names(template)
  try:
    stored = orbax.checkpointables_metadata(str(path / 'arrays')).metadata['state']
    if stored is None:
      raise ValueError('its list of arrays cannot be read')
    shapes = {name: (tuple(leaf.shape), leaf.dtype) for name, leaf in stored.items()}
    _compare(path, shapes, wanted, partial)
    with _context(partial):
      abstract = jax.tree.map(_abstract, wanted)
      arrays = orbax.load_checkpointables(str(path / 'arrays'), {'state': abstract})['state']
  except _READ_ERRORS as error:
    raise CheckpointError(
      f'{path}/arrays: half written or damaged ({type(error).__name__}: {str(error)[:200]}); '
      f'delete {path} to fall back on an earlier record {[s for s in steps(root) if s != step]}'
    ) from error
  leaves = [arrays[name] for name in wanted]
  return Record(step, jax.tree.unflatten(jax.tree.structure(template), leaves), host)


def _context(partial: bool = False) -> orbax.Context:
  """Returns Orbax's settings without compression.

  float32 noise hardly shrinks, and writing is 2.7 times as fast.
  """
  context = orbax.Context()
  context.array.saving.use_compression = False
  context.pytree.loading.partial_load = partial
  return context


def _barrier(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(leaf, 'sharding', None))


def _read_host(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads((path / 'host.json').read_text())
  except (OSError, ValueError) as error:
    raise CheckpointError(
      f'{path}/host.json: half written or damaged ({error}); delete {path} to fall back on an '
      'earlier record'
    ) from error


def _compare(
  path: pathlib.Path,
  stored: dict[str, tuple[tuple[int, ...], Any]],
  wanted: dict[str, Any],
  partial: bool,
) -> None:
  """Raises CheckpointError for the first leaf that differs."""
  hint = (
    'this checkpoint belongs to another model or optimizer; point to its own run folder or to '
    'the recipe that wrote it'
  )
  for name, leaf in wanted.items():
    if name not in stored:
      raise CheckpointError(
        f'{path}: leaf {name} is missing, wanted shape {tuple(leaf.shape)}; {hint}'
      )
    shape, dtype = stored[name]
    if shape != tuple(leaf.shape) or np.dtype(dtype) != np.dtype(leaf.dtype):
      raise CheckpointError(
        f'{path}: leaf {name} has shape {shape} {np.dtype(dtype)}, wanted {tuple(leaf.shape)} '
        f'{np.dtype(leaf.dtype)}; {hint}'
      )
  unknown = sorted(set(stored) - set(wanted))
  if unknown and not partial:
    raise CheckpointError(
      f'{path}: got leaf {unknown[0]} (and {len(unknown) - 1} more), wanted no such leaf; {hint}'
    )
