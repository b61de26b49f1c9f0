"""Sizes from config.json, in the styles of transformers 4 and 5."""

import copy

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.models.qwen3_vl.config import PUBLISHED, Config
from tests.models.qwen3_vl import oracle


def test_a_config_written_by_us_reads_back_and_transformers_reads_it_too():
  from transformers import Qwen3VLConfig

  config = PUBLISHED['8b']()
  assert Config.from_hf(config.to_hf('bfloat16')) == config
  theirs = Qwen3VLConfig(**config.to_hf('bfloat16'))
  assert theirs.text_config.rope_parameters['rope_theta'] == 5e6
  assert theirs.text_config.rope_parameters['mrope_section'] == [24, 20, 20]


def test_a_config_of_transformers_5_and_one_of_4_say_the_same():
  new = oracle.torch_config().to_dict()
  old = copy.deepcopy(new)
  rope = old['text_config'].pop('rope_parameters')
  old['text_config'] |= {'rope_theta': rope.pop('rope_theta'), 'rope_scaling': rope}
  assert Config.from_hf(new) == Config.from_hf(old)
  assert Config.from_hf(old).text.rope_theta == 5e6


def _changed(**sections):
  hf = PUBLISHED['2b']().to_hf('float32')
  for name, change in sections.items():
    hf[name] |= change
  return hf


@pytest.mark.parametrize(
  'hf, message',
  [
    (_changed(text_config={'num_experts': 64}), 'num_experts is 64, wanted 0'),
    (
      _changed(
        text_config={'rope_theta': None, 'rope_parameters': {'mrope_section': [24, 20, 20]}}
      ),
      'no rope theta',
    ),
    (
      _changed(
        text_config={
          'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1.0, 'mrope_section': [1, 1, 1]}
        }
      ),
      "rope type 'yarn'",
    ),
    (_changed(text_config={'hidden_size': None}), "no 'hidden_size'"),
    (_changed(text_config={'num_key_value_heads': 5}), 'heads 16 are a multiple of kv_heads 5'),
    (
      _changed(vision_config={'deepstack_visual_indexes': [5, 99]}),
      r'taps \(5, 99\) rise within depth 24',
    ),
    ({'model_type': 'qwen3_vl'}, "no 'text_config'"),
  ],
)
def test_what_is_not_a_dense_qwen3_vl_is_refused(hf, message):
  with pytest.raises(ConfigError, match=message):
    Config.from_hf(hf)
