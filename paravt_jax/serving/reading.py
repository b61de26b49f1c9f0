"""Reads published weight versions, in any form, and compares them with what the reader has."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from paravt_jax.errors import SyncError
from paravt_jax.models import lora
from paravt_jax.serving import array_files, flat, manifest
from paravt_jax.serving.array_files import ARRAYS
from paravt_jax.serving.manifest import Manifest, Params


def load(
  folder: str | os.PathLike, abstract: Params, frozen: Mapping[str, Any] | None = None
) -> tuple[int, Params]:
  """Reads one published version and checks every array of it.

  Args:
    folder: `weights/<version>`.
    abstract: tree of ShapeDtypeStructs of the whole model, which the weights must match in names
    and shapes.
    frozen: the reader's own arrays by name, or functions that return an array's
    `manifest.frozen_hashes` hash. A function is called only if a version leaves out its array.
    None: every array must be published.

  Returns:
    The version and the tree of numpy arrays, float32 or bfloat16 as published. Frozen arrays are
    not in it. The tree of an adapter is its part of the parameters (`lora.PART`).

  Raises:
    SyncError: the version is missing, unreadable, of another model, not finite, or not what was
    published. The message names the array.
  """
  folder = pathlib.Path(folder).absolute()
  page = check(folder, abstract, frozen)
  if (folder / flat.FILE).exists():
    return page.version, manifest.nest(flat.read(folder, page))
  _compare_files(folder, page)
  return page.version, manifest.nest(array_files.read(folder, page))


def check(
  folder: pathlib.Path, abstract: Params, frozen: Mapping[str, Any] | None = None
) -> Manifest:
  """Returns the manifest of a version that fits a model. It reads no array of it.

  Raises:
    SyncError: the version is missing, of another model, or leaves out arrays that the reader has not.
  """
  page = manifest.read(folder)
  _compare_names(folder, page, manifest.leaves(_with_adapter(folder, page, abstract)))
  _compare_frozen(folder, page.frozen, {} if frozen is None else frozen)
  return page


def _with_adapter(folder: pathlib.Path, page: Manifest, abstract: Params) -> Params:
  """Returns the model's arrays, and those of the version's adapter."""
  if page.adapter is None:
    return abstract
  if not page.arrays.keys().isdisjoint(manifest.leaves(abstract)):
    raise SyncError(f'{folder}: publishes an adapter and arrays of the model; publish it again')
  part = lora.shapes(page.adapter, abstract['text']['layers'])
  return {**abstract, lora.PART: part}


def _compare_names(folder: pathlib.Path, page: Manifest, wanted: dict[str, Any]) -> None:
  odd = sorted((page.arrays.keys() | page.frozen.keys()) ^ wanted.keys())
  if odd:
    side = 'missing' if odd[0] in wanted else 'unknown'
    raise SyncError(
      f'{folder}: array {odd[0]!r} is {side} ({len(odd)} such); publish the model that the server '
      'was started with'
    )
  for name, entry in page.arrays.items():
    shape = tuple(wanted[name].shape)
    if entry.shape != shape or entry.dtype not in manifest.DTYPES:
      raise SyncError(
        f'{folder}: {name!r} is {entry.text()}, wanted float32 or bfloat16 {list(shape)}; '
        'publish the model that the server was started with'
      )


def _compare_frozen(
  folder: pathlib.Path, hashes: Mapping[str, str], frozen: Mapping[str, Any]
) -> None:
  for name, wanted in hashes.items():
    if name not in frozen:
      raise SyncError(
        f'{folder}: array {name!r} is not in this version and not here either; publish all arrays'
      )
    own = (
      frozen[name]()
      if callable(frozen[name])
      else manifest.frozen_hashes({name: frozen[name]})[name]
    )
    if own != wanted:
      raise SyncError(
        f'{folder}: {name!r} was left out as unchanged, but is another one here; publish all '
        'arrays, or start '
        'the server with the model that the run began from'
      )


def _compare_files(folder: pathlib.Path, page: Manifest) -> None:
  try:
    found = manifest.list_files(folder / ARRAYS)
  except OSError as error:
    raise SyncError(
      f'{folder}: the arrays cannot be read ({array_files.reason(error)}); publish it again'
    ) from error
  for path in sorted(found.keys() | page.files.keys()):
    if found.get(path) == page.files.get(path):
      continue
    name = path.split('/')[0].replace('.', '/')
    where = f'{name!r} (file {path!r})' if name in page.arrays else f'file {path!r}'
    if path not in found or path not in page.files:
      raise SyncError(
        f'{folder}: {where} is {"unknown" if path in found else "missing"}; publish it again'
      )
    (size, _), (wanted, _) = found[path], page.files[path]
    said = (
      f'{size} bytes, wanted {wanted}' if size != wanted else 'other content than was published'
    )
    raise SyncError(f'{folder}: {where} has {said}; publish it again')
