"""Converts a published version to the folder that a Hugging Face server loads.

It verifies the version first, then writes safetensors files in memory.
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from paravt_jax import files
from paravt_jax.errors import DataError, SyncError
from paravt_jax.models.qwen3_vl import stored, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.serving import changes, described, flat, manifest, owned_folders, publish
from paravt_jax.serving.base_model import BaseModel
from paravt_jax.serving.manifest import Manifest, Params

WEIGHTS = described.WEIGHTS
_MEMORY = owned_folders.MEMORY
_PREFIX = 'paravt-staging-'
_FILES = 4  # files written at the same time
_FILE_BYTES = 64 << 20  # a smaller file does not justify a thread


class Staging:
  """Converts published versions to folders that a server loads, below one staging folder.

  Args:
    model_folder: the Hugging Face folder that the servers were started with. It has the sizes, the
    tokenizer, and the arrays that versions leave out.
    folder: the staging folder. None: a new folder in memory if twice the bytes are free there, else
    in the system's temporary folder. `close` removes it. If this process is killed, the next run
    removes it.
    keep: servers keep what they load, because changes of it follow. Whole versions are then
    written as one flat file, whose order the changes have.

  Raises:
    SyncError: `model_folder` is not a checkpoint of this model family.
  """

  def __init__(
    self,
    model_folder: str | os.PathLike,
    folder: str | os.PathLike | None,
    *,
    keep: bool = False,
  ):
    self._base, self._keep = BaseModel(model_folder), keep
    self._folder = None if folder is None else pathlib.Path(folder).absolute()
    self._own: owned_folders.Place | None = None  # where the folder is ours
    self._staged: dict[pathlib.Path, Manifest] = {}

  def stage(self, published: str | os.PathLike) -> pathlib.Path:
    """Verifies and converts a version. Returns its folder, whose name is the version.

    A staged version is not converted again.

    The folder contains only the arrays that differ from the base model's: those published, or the
    kernels that an adapter is folded into. A server keeps its other arrays, whose hashes were
    compared with the base model's.

    Raises:
      SyncError: the version is not what was published, or the folder cannot be written. The message
      names the array or file.
    """
    published = pathlib.Path(published).absolute()
    page = publish.read_manifest(published)
    try:
      parent = self._open(page)
      name = f'{page.version}-changes' if changes.is_changes(published) else str(page.version)
      target = parent / name
      if self._staged.get(target) == page and target.is_dir():
        return target
      with files.replacing_folder(target) as part:
        dtype = self._fill(part, target, published, page)
        weights.write_companions(part, self._base.config, dtype, self._base.folder)
    except (OSError, DataError) as error:
      raise SyncError(
        f'{published}: cannot be staged for the servers ({error}); free memory or space '
        'there, or set another '
        'staging folder'
      ) from error
    self._staged[target] = page
    return target

  def _fill(
    self, part: pathlib.Path, target: pathlib.Path, published: pathlib.Path, page: Manifest
  ) -> str:
    """Writes what a server loads, into the folder that will be `target`. Returns the number type."""
    config = self._base.config
    if page.adapter is None and (changes.is_changes(published) or (published / flat.FILE).exists()):
      page = self._base.check(published)
      described.write(part, config, published, page, keep=self._keep)
      return next(iter(page.arrays.values())).dtype
    page, params = self._base.load(published)
    if self._keep and page.adapter is None:
      page = flat.write(part, page, manifest.leaves(params))
      described.write(part, config, target, page, keep=True)
    else:
      write_tensors(part, config, params)
    return next(iter(manifest.leaves(params).values())).dtype.name

  def clear(self, keep: pathlib.Path | None) -> None:
    """Removes all staged versions except `keep`."""
    for path in [path for path in self._staged if path != keep]:
      del self._staged[path]
      shutil.rmtree(path, ignore_errors=True)

  def close(self) -> None:
    """Removes the staged versions, and the folder if this object created it."""
    self.clear(None)
    if self._own is not None:
      self._own.close()
      self._own = self._folder = None

  def __enter__(self) -> 'Staging':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def _open(self, page: Manifest) -> pathlib.Path:
    if self._folder is None:
      parent = memory_folder(2 * sum(size for size, _ in page.files.values()))
      self._own = owned_folders.Place(parent, _PREFIX)
      self._folder = self._own.open()
    self._folder.mkdir(parents=True, exist_ok=True)
    return self._folder


def write_tensors(folder: pathlib.Path, config: Config, params: Params) -> int:
  """Writes our parameters (any subset of whole leaves) as safetensors files with their names.

  Returns the number of bytes. It writes one file, or several files and an index as transformers
  does. Each file has its own thread, because the system allows one writer per file at a time.

  Raises:
    OSError: no space, or no permission.
  """
  named = manifest.leaves(params)
  slots = {
    name: slot for name, slot in weights.name_table(config).items() if '/'.join(slot.path) in named
  }
  tensors = {}
  for name, slot in slots.items():
    array = named['/'.join(slot.path)]
    shape = weights.their_shape(config, array.shape, slot)
    tensors[name] = array.dtype.name, shape, math.prod(shape) * array.itemsize
  count = min(_FILES, -(-sum(size for *_, size in tensors.values()) // _FILE_BYTES))
  shares, filled = [[] for _ in range(count)], [0] * count
  # The next largest array goes to the file with the fewest bytes.
  for name in sorted(tensors, key=lambda name: -tensors[name][2]):
    emptiest = filled.index(min(filled))
    shares[emptiest].append(name)
    filled[emptiest] += tensors[name][2]

  def write(file: str, names: list[str]) -> int:
    with (folder / file).open('wb') as out:
      out.write(stored.header({name: tensors[name] for name in names}))
      for name in names:
        for block in weights.pick_blocks(config, params, slots[name]):
          out.write(block.reshape(-1).view(np.uint8).data)
      return out.tell()

  files = {
    WEIGHTS if count == 1 else f'model-{i + 1:05d}-of-{count:05d}.safetensors': names
    for i, names in enumerate(shares)
  }
  if count > 1:
    weight_map = {name: file for file, names in files.items() for name in names}
    (folder / f'{WEIGHTS}.index.json').write_text(
      json.dumps({'metadata': {'total_size': sum(filled)}, 'weight_map': weight_map})
    )
  with ThreadPoolExecutor(_FILES) as pool:
    return sum(pool.map(write, files, files.values()))


def memory_folder(wanted: int) -> pathlib.Path:
  """Returns a folder in memory if it has `wanted` bytes free, else the system's temporary
  folder.
  """
  if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= wanted:
    return _MEMORY
  return pathlib.Path(tempfile.gettempdir())
