"""The same model in transformers and torch: an SFT step and a policy step on padded documents.

It is written as one writes it there: a batch padded to its longest document, attention by
`scaled_dot_product_attention`, the fused AdamW. Rollouts of a prompt each carry the prompt.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from paravt_jax import packing
from paravt_jax.packing import Sample
from paravt_jax.rl.losses import LOG_RATIO_LIMIT
from paravt_jax.train.optimizer import OptimizerOptions
from paravt_jax.train.step import RLOptions
from paravt_jax.video import patches


@dataclasses.dataclass(frozen=True)
class Result:
  """What a step says of itself, to compare programs."""

  loss: float
  grad_norm: float


@dataclasses.dataclass(frozen=True)
class TorchOptions:
  """What the steps share."""

  dtype: str  # of products: 'float32' or 'bfloat16'
  threads: int  # of the CPU
  freeze_vision: bool  # no gradient reaches the tower
  optimizer: OptimizerOptions  # AdamW at a constant rate
  gpu: bool  # whether our step runs on a GPU


class TorchModel:
  """A model with its optimizer."""

  def __init__(self, folder: pathlib.Path, options: TorchOptions):
    # here and not above: the other suites do not need them, and both take seconds to load
    import torch
    from transformers import Qwen3VLForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    self._torch, self._options = torch, options
    self.device = 'cuda' if options.gpu and torch.cuda.is_available() else 'cpu'
    loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    self._model = loaded.to(self.device).train()
    if options.freeze_vision:
      loaded.model.visual.requires_grad_(False)
    self._trained = [p for p in loaded.parameters() if p.requires_grad]
    # as in ours, weight decay acts on matrices and tables alone
    decay = [p for p in self._trained if p.ndim > 1]
    rest = [p for p in self._trained if p.ndim == 1]
    knobs = options.optimizer
    self._optimizer = torch.optim.AdamW(
      [
        {'params': decay, 'weight_decay': knobs.weight_decay},
        {'params': rest, 'weight_decay': 0.0},
      ],
      lr=knobs.learning_rate,
      betas=(knobs.beta1, knobs.beta2),
      eps=knobs.epsilon,
      fused=True,
    )

  def sft_step(self, documents: Sequence[Sample]) -> Callable[[], Result]:
    """Returns a step: mean cross-entropy over the trained tokens of the documents."""
    inputs, extras = self._batch(documents)
    mask = extras['mask'][:, 1:]

    def loss():
      return -(self._logprobs(inputs, 1.0) * mask).sum() / mask.sum()

    return lambda: self._step(loss)

  def policy_step(
    self, documents: Sequence[Sample], rl: RLOptions, temperature: float
  ) -> Callable[[], Result]:
    """Returns a step of the decoupled policy loss, whose proximal policy is the policy itself.

    Advantages are taken as they are (`batch_norm` none), and there is no reference.
    """
    torch = self._torch
    inputs, extras = self._batch(documents)
    mask, behavior = extras['mask'][:, 1:], extras['behavior'][:, 1:]
    advantage = extras['advantage'][:, 1:]

    def loss():
      logprob = self._logprobs(inputs, temperature)
      gap = (logprob - logprob.detach()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
      weight = torch.exp(logprob.detach() - behavior)
      weight = torch.where(weight <= rl.weight_cap, weight, 0.0)
      return -(mask * weight * advantage * gap.exp()).sum() / mask.sum()

    return lambda: self._step(loss)

  def _logprobs(self, inputs: dict[str, Any], temperature: float) -> Any:
    """Returns [documents, T - 1]: the log-prob of each token but the first."""
    torch = self._torch
    dtype = getattr(torch, self._options.dtype)
    with torch.autocast(self.device, dtype=dtype, enabled=self._options.dtype != 'float32'):
      logits = self._model(**inputs, use_cache=False).logits
    flat = logits[:, :-1].float().flatten(0, 1) / temperature
    targets = inputs['input_ids'][:, 1:]
    losses = torch.nn.functional.cross_entropy(flat, targets.flatten(), reduction='none')
    return -losses.view(targets.shape)

  def _step(self, loss: Callable[[], Any]) -> Result:
    torch, knobs = self._torch, self._options.optimizer
    value = loss()
    value.backward()
    norm = torch.nn.utils.clip_grad_norm_(self._trained, knobs.clip_norm or float('inf'))
    self._optimizer.step()
    self._optimizer.zero_grad(set_to_none=True)
    return Result(value.item(), norm.item())  # waits for the device

  def _batch(self, documents: Sequence[Sample]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the model's inputs and the values per token, padded on the right."""
    torch, image_id = self._torch, self._model.config.image_token_id
    expanded = [packing.expand(one, image_id) for one in documents]
    length = max(len(one.ids) for one in expanded)

    def padded(arrays: list[np.ndarray]) -> Any:
      filled = [np.pad(array, (0, length - len(array))) for array in arrays]
      return torch.from_numpy(np.stack(filled)).to(self.device)

    ids = padded([one.ids.astype(np.int64) for one in expanded])
    inputs = {
      'input_ids': ids,
      'attention_mask': padded([np.ones(len(one.ids), np.int64) for one in expanded]),
      'mm_token_type_ids': (ids == image_id).int(),
    }
    found = [patches.patchify(image) for one in documents for image in one.images]
    if found:
      pixels = np.concatenate([rows for rows, _ in found]).astype(np.float32) / 127.5 - 1
      # an image stands for both frames of its patches
      twice = np.repeat(pixels.reshape(len(pixels), 3, 1, -1), 2, axis=2)
      inputs['pixel_values'] = torch.from_numpy(twice.reshape(len(pixels), -1)).to(self.device)
      grids = [[1, *grid] for _, grid in found]
      inputs['image_grid_thw'] = torch.tensor(grids, device=self.device)
    names = ('mask', 'advantage', 'behavior')
    extras = {
      name: padded([one.extras[name][full.source] for one, full in zip(documents, expanded)])
      for name in names
    }
    return inputs, extras
