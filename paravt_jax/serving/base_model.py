"""The model folder that servers were started with, and published versions as changes of it."""

import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from paravt_jax.errors import ConfigError, DataError, SyncError
from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import manifest, publish, reading
from paravt_jax.serving.manifest import Manifest, Params

_LAYERS = 'text/layers'


class BaseModel:
  """Reads versions, and folds the adapters among them into the folder's weights.

  Kernels that adapters change stay in host memory after the first one, in the folder's dtype.

  Raises:
    SyncError: the folder is no checkpoint of this model family.
  """

  def __init__(self, folder: str | os.PathLike):
    self.folder = pathlib.Path(folder)
    try:
      self.config = weights.load_hf(self.folder, only=())[0]
    except (DataError, ConfigError) as error:
      raise SyncError(f'base model: {error}') from error
    self._abstract = model.abstract_params(self.config)
    self._names = tuple(manifest.leaves(self._abstract))
    self._hashes: dict[str, str] = {}
    self._kernels: dict[str, np.ndarray] = {}

  def check(self, published: pathlib.Path) -> Manifest:
    """Returns the manifest of a version that fits the folder. It reads none of its arrays.

    Raises:
      SyncError: as `reading.check`.
      DataError: the folder cannot be read any more.
    """
    return reading.check(published, self._abstract, self._frozen())

  def load(self, published: pathlib.Path) -> tuple[Manifest, Params]:
    """Returns a version's manifest, and the arrays of the model that differ from the folder's.

    What the version leaves out is compared with the folder by hash.

    Raises:
      SyncError: as `reading.load`.
      DataError: the folder cannot be read any more.
    """
    page = publish.read_manifest(published)
    version, params = reading.load(published, self._abstract, self._frozen())
    if version != page.version:
      raise SyncError(f'{published}: was replaced while it was read; load it again')
    if page.adapter is None:
      return page, params
    folded: dict[str, Any] = {}
    for product, pair in params[lora.PART]['layers'].items():
      name = f'{_LAYERS}/{product}/kernel'
      folded[name] = lora.fold_kernel(page.adapter, self._kernel(name), pair)
    return page, manifest.nest(folded)

  def read(self, name: str) -> np.ndarray:
    """Returns one whole array of the folder by its path in the parameters, such as 'text/norm/scale'.

    Raises:
      DataError: it cannot be read.
    """
    found = weights.load_hf(self.folder, only={tuple(name.split('/'))})[1]
    return manifest.leaves(found)[name]

  def _frozen(self) -> dict[str, Callable[[], str]]:
    return {name: self._hash(name) for name in self._names}

  def _kernel(self, name: str) -> np.ndarray:
    if name not in self._kernels:
      self._kernels[name] = self.read(name)
    return self._kernels[name]

  def _hash(self, name: str) -> Callable[[], str]:
    return functools.partial(self._compute_hash, name)

  def _compute_hash(self, name: str) -> str:
    if name not in self._hashes:
      array = self._kernels[name] if name in self._kernels else self.read(name)
      self._hashes |= manifest.frozen_hashes({name: array})
    return self._hashes[name]
