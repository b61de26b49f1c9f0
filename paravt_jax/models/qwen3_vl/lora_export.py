"""An adapter for others: folded into the model's weights, or alone as the library PEFT reads it."""

import json
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file

from paravt_jax import files
from paravt_jax.errors import DataError
from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import export
from paravt_jax.models.qwen3_vl.config import Config

WEIGHTS = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'  # written last: a folder without it is no adapter
_LAYERS = 'model.language_model.layers'
# our product -> the module of a layer in transformers
_MODULES = {
  **{name: f'self_attn.{name}_proj' for name in ('q', 'k', 'v', 'o')},
  **{name: f'mlp.{name}_proj' for name in ('gate', 'up', 'down')},
}


def folded(config: Config, params: dict[str, Any]) -> dict[str, Any]:
  """Returns the parameters of a model without an adapter that computes the same (`lora.fold`).

  The folded kernels are new arrays, with the shardings of the old ones.

  Raises:
    ValueError: the config has no adapter.
  """
  adapter = config.adapter
  if adapter is None:
    raise ValueError('lora_export.folded: the config has no adapter')
  places = jax.tree.map(lambda x: x.sharding, params['text']['layers'])
  whole = jax.jit(lambda params: lora.fold(adapter, params)['text']['layers'], out_shardings=places)
  changed = {name: part for name, part in params.items() if name in ('text', lora.PART)}
  base = {name: part for name, part in params.items() if name != lora.PART}
  return {**base, 'text': {**params['text'], 'layers': whole(changed)}}


def save_peft(
  folder: str | os.PathLike, config: Config, params: dict[str, Any], base: str | os.PathLike
) -> None:
  """Writes the adapter alone, in float32 and in the form of `peft.LoraConfig`.

  `peft.PeftModel.from_pretrained(model, folder)` loads it beside the base model of transformers.
  Every process of a multi-host run calls this, and the first one writes.

  Args:
    folder: made if it is missing. Its files are replaced.
    base: the Hugging Face folder that the adapter belongs to.

  Raises:
    DataError: the folder cannot be written.
  """
  tensors = _tensors(config, params)
  if jax.process_index() != 0:
    return
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    save_file(tensors, folder / WEIGHTS)
    text = json.dumps(_peft_config(config, base), indent=2, sort_keys=True) + '\n'
    files.write(folder / CONFIG, text.encode(), sync=True)
  except OSError as error:
    raise DataError(
      f'{folder}: the adapter cannot be written ({error}); free space or choose another place'
    ) from error


def _tensors(config: Config, params: dict[str, Any]) -> dict[str, np.ndarray]:
  """Returns PEFT's tensors by name: A is [rank, in] and B is [out, rank] there."""
  tensors = {}
  for product, pair in params[lora.PART]['layers'].items():
    for ours, theirs in ((lora.A, 'lora_A'), (lora.B, 'lora_B')):
      for layer in range(config.text.layers):
        name = f'base_model.model.{_LAYERS}.{layer}.{_MODULES[product]}.{theirs}.weight'
        array = export.to_host(pair[ours], layer, 'float32')
        tensors[name] = np.ascontiguousarray(array.T)
  return tensors


def _peft_config(config: Config, base: str | os.PathLike) -> dict[str, Any]:
  adapter = config.adapter
  if adapter is None:
    raise ValueError('lora_export.save_peft: the config has no adapter')
  # one expression over whole names, so that no module of the vision tower matches
  modules = '|'.join(re.escape(_MODULES[product]) for product in adapter.products)
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': str(base),
    'r': adapter.rank,
    'lora_alpha': adapter.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'target_modules': rf'{re.escape(_LAYERS)}\.\d+\.({modules})',
    'inference_mode': True,
  }


__all__ = ['folded', 'save_peft']
