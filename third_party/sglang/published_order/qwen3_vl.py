"""Qwen3-VL that adds DeepStack features in the published order.

The published model adds them after a layer's residual: (hidden + residual) + DeepStack. SGLang
first adds DeepStack to the layer's output. That is equal in exact arithmetic, and differs in
bfloat16 at image tokens. SGLang has both orders. It takes the published one only with
`--rl-on-policy-target`, which also gives image tokens the positions of text and rounds log-probs
to bfloat16 (0.5.21). So this class takes the order alone.
"""

from sglang.srt.models import qwen3_vl


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


EntryClass = Qwen3VLForConditionalGeneration
