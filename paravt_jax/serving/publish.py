"""Weight versions on a shared folder: Orbax arrays plus a manifest that says exactly what must be read back.

`weights/<version>/` appears by rename, whole or not at all: `arrays/` (Orbax, neither compressed nor OCDBT) and `manifest.json`
(version, and name, shape, dtype and content hash of every array).
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from paravt_jax.errors import SyncError

MANIFEST = 'manifest.json'
_ARRAYS = 'arrays'
_FORMAT = 1
_WRITE_ERRORS = (OSError, ValueError, RuntimeError)          # Orbax's store has its own for a full disk
_HASHERS = 4                 # threads; hashing releases the GIL

Params = dict[str, Any]


def save(folder: str | os.PathLike, version: int, params: Params, *, keep: int) -> pathlib.Path:
  """Publishes `params` (any tree of arrays, on host or device) as `folder/<version>/` and forgets all but the newest `keep`.

  Returns:
    The published folder.

  Raises:
    SyncError: the folder cannot be written; nothing half-written stays.
  """
  if keep < 1:
    raise ValueError(f'publish.save: got keep={keep}, wanted at least 1')
  folder = pathlib.Path(folder).absolute()
  target, partial = folder / str(version), folder / f'.{version}.part-{os.getpid()}'
  host = jax.tree.map(np.asarray, jax.device_get(params))
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob('.*.part-*'):          # of a publisher that was killed; a folder has one
      shutil.rmtree(left, ignore_errors=True)
    (partial / _ARRAYS).mkdir(parents=True)
    with ThreadPoolExecutor(1) as side:
      entries = side.submit(_entries, host)
      _handler().save(epath.Path(partial / _ARRAYS), args=ocp.args.PyTreeSave(host))
    manifest = {'format': _FORMAT, 'version': int(version), 'arrays': entries.result()}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')
    if target.exists():
      shutil.rmtree(target)
    partial.rename(target)
  except _WRITE_ERRORS as error:
    shutil.rmtree(partial, ignore_errors=True)
    why = ' '.join((getattr(error, 'strerror', None) or str(error)).split())[:400]
    raise SyncError(f'{target}: weights cannot be written ({why}); free space or choose another folder, '
                    'the run goes on from its last checkpoint') from error
  for old in sorted(versions(folder))[:-keep]:
    if old != version:
      shutil.rmtree(folder / str(old), ignore_errors=True)
  return target


def versions(folder: str | os.PathLike) -> list[int]:
  """The published versions, unsorted; an absent folder has none."""
  folder = pathlib.Path(folder)
  found = folder.iterdir() if folder.is_dir() else ()
  return [int(path.name) for path in found if path.name.isdecimal() and (path / MANIFEST).is_file()]


def load(folder: str | os.PathLike, abstract: Params) -> tuple[int, Params]:
  """Reads one published version and checks every array of it.

  Args:
    folder: `weights/<version>`.
    abstract: tree of ShapeDtypeStructs that the weights must match in names, shapes and dtypes.

  Returns:
    The version and the tree of numpy arrays.

  Raises:
    SyncError: it is missing, unreadable, of another model, not finite, or not what was published; the array is named.
  """
  folder = pathlib.Path(folder).absolute()
  manifest = _read_manifest(folder)
  wanted = dict(_named(abstract))
  _compare_names(folder, manifest['arrays'], wanted)
  restore = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
  try:
    params = _handler().restore(epath.Path(folder / _ARRAYS), args=ocp.args.PyTreeRestore(restore_args=restore))
    named = dict(_named(params))
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise SyncError(f'{folder}: the arrays cannot be read ({type(error).__name__}: {str(error)[:160]}); '
                    'publish it again') from error
  if named.keys() != wanted.keys():
    odd = sorted(named.keys() ^ wanted.keys())[0]
    raise SyncError(f'{folder}: array {odd!r} is in the manifest but not on disk, or the reverse; publish it again')
  with ThreadPoolExecutor(_HASHERS) as pool:
    problems = [p for p in pool.map(lambda name: _problem(name, named[name], manifest['arrays'][name]), named) if p]
  if problems:
    raise SyncError(f'{folder}: {problems[0]}; publish it again')
  return manifest['version'], params


def _handler() -> ocp.PyTreeCheckpointHandler:
  return ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False)


def _named(tree: Params) -> Iterable[tuple[str, Any]]:
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    yield jax.tree_util.keystr(path, simple=True, separator='/'), leaf


def _digest(array: np.ndarray) -> str:
  contiguous = np.ascontiguousarray(array)
  return hashlib.blake2b(contiguous.reshape(-1).view(np.uint8), digest_size=16).hexdigest()


def _entries(params: Params) -> dict[str, dict[str, Any]]:
  named = dict(_named(params))
  with ThreadPoolExecutor(_HASHERS) as pool:
    digests = pool.map(_digest, named.values())
  return {name: {'shape': list(array.shape), 'dtype': array.dtype.name, 'hash': digest}
          for (name, array), digest in zip(named.items(), digests)}


def _read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  try:
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest['format'] != _FORMAT or type(manifest['version']) is not int:
      raise ValueError(f'format {manifest["format"]!r}, version {manifest["version"]!r}')
    for entry in manifest['arrays'].values():
      _ = entry['shape'], entry['dtype'], entry['hash']
  except OSError as error:
    raise SyncError(f'{folder}: got no {MANIFEST} ({error.strerror}), wanted a published version; check the path') from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise SyncError(f'{folder / MANIFEST}: broken ({type(error).__name__}: {error}); publish it again') from error
  return manifest


def _compare_names(folder: pathlib.Path, got: dict[str, dict[str, Any]], wanted: dict[str, Any]) -> None:
  odd = sorted(got.keys() ^ wanted.keys())
  if odd:
    side = 'missing' if odd[0] in wanted else 'unknown'
    raise SyncError(f'{folder}: array {odd[0]!r} is {side} ({len(odd)} such); publish the model that the server '
                    'was started with')
  for name, leaf in wanted.items():
    entry = got[name]
    if tuple(entry['shape']) != tuple(leaf.shape) or entry['dtype'] != np.dtype(leaf.dtype).name:
      raise SyncError(f'{folder}: {name!r} is {entry["dtype"]}{entry["shape"]}, wanted {np.dtype(leaf.dtype).name}'
                      f'{list(leaf.shape)}; publish the model that the server was started with')


def _problem(name: str, array: np.ndarray, entry: dict[str, Any]) -> str | None:
  if list(array.shape) != entry['shape'] or array.dtype.name != entry['dtype']:
    return f'{name!r} is {array.dtype.name}{list(array.shape)} on disk, the manifest says {entry["dtype"]}{entry["shape"]}'
  if _digest(array) != entry['hash']:
    return f'{name!r} has other content than was published'
  if not np.isfinite(array.astype(np.float32) if array.dtype.itemsize < 4 else array).all():
    return f'{name!r} holds values that are not finite'
  return None
