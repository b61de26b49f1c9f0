"""Qwen3-VL that adds DeepStack features in the published order, and loads weights from memory.

The published model adds them after a layer's residual: (hidden + residual) + DeepStack. SGLang
first adds DeepStack to the layer's output. That is equal in exact arithmetic, and differs in
bfloat16 at image tokens. SGLang has both orders. It takes the published one only with
`--rl-on-policy-target`, which also gives image tokens the positions of text and rounds log-probs
to bfloat16 (0.5.21). So this class takes the order alone.
"""

import itertools
from collections.abc import Iterable

import torch
from sglang.srt.models import qwen3_vl

from . import flat_weights


class Qwen3VLForConditionalGeneration(qwen3_vl.Qwen3VLForConditionalGeneration):
  """SGLang's model with the order of the published one."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    if not hasattr(self.model, 'use_hf_deepstack_order'):
      raise AttributeError(
        'Qwen3-VL of this SGLang has no use_hf_deepstack_order; third_party/sglang is made for '
        '0.5.21: run make sglang'
      )
    self.model.use_hf_deepstack_order = True
    self._refused, self._kept = None, flat_weights.Kept()

  def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]):
    """Loads tensors, or the flat file that the only one of them describes."""
    weights = iter(weights)
    first = next(weights, None)
    if first is None or first[0] != flat_weights.NAME:
      return super().load_weights(itertools.chain([] if first is None else [first], weights))
    description = bytes(first[1].tolist())
    if description == self._refused:
      # SGLang loads a second time what it could not load, "to roll back". Nothing was changed, and
      # an error now would end the server.
      self._refused = None
      return set()
    device = next(self.parameters()).device
    try:
      found = flat_weights.tensors(first[1], device, self._kept)
    except flat_weights.WrongWeights:
      self._refused = description
      raise
    return super().load_weights(found)


EntryClass = Qwen3VLForConditionalGeneration
