"""Qwen3-VL as functions of a parameter tree, and its Hugging Face checkpoints."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Config', 'Inputs', 'encode_images', 'hidden', 'init', 'load_hf', 'logits', 'save_hf']

if TYPE_CHECKING:
  from paravt_jax.models.qwen3_vl.config import Config
  from paravt_jax.models.qwen3_vl.model import Inputs, encode_images, hidden, init, logits
  from paravt_jax.models.qwen3_vl.weights import load_hf, save_hf
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    config=('Config',),
    model=('Inputs', 'encode_images', 'hidden', 'init', 'logits'),
    weights=('load_hf', 'save_hf'),
  )
