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


@pytest.mark.parametrize('hf, message', [
    (_changed(text_config={'num_experts': 64}), 'num_experts is 64, wanted 0'),
    (_changed(text_config={'rope_theta': None, 'rope_parameters': {'mrope_section': [24, 20, 20]}}), 'no rope theta'),
    (_changed(text_config={'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1., 'mrope_section': [1, 1, 1]}}),
     "rope type 'yarn'"),
    (_changed(text_config={'hidden_size': None}), "no 'hidden_size'"),
    (_changed(text_config={'num_key_value_heads': 5}), 'heads 16 are a multiple of kv_heads 5'),
    (_changed(vision_config={'deepstack_visual_indexes': [5, 99]}), r'taps \(5, 99\) rise within depth 24'),
    ({'model_type': 'qwen3_vl'}, "no 'text_config'")])
def test_what_is_not_a_dense_qwen3_vl_is_refused(hf, message):
  with pytest.raises(ConfigError, match=message):
    Config.from_hf(hf)


@pytest.mark.parametrize('section, name, value, message', [
    ('text_config', 'head_dim', '128', "text_config: head_dim is '128', wanted a whole number, 1 or more"),
    ('text_config', 'num_key_value_heads', 0, 'num_key_value_heads is 0, wanted a whole number, 1 or more'),
    ('text_config', 'num_hidden_layers', 2.5, 'num_hidden_layers is 2.5'),
    ('text_config', 'vocab_size', True, 'vocab_size is True'),
    ('text_config', 'rms_norm_eps', 'small', "rms_norm_eps is 'small', wanted a number above 0"),
    ('text_config', 'rope_parameters', [1], r'rope_parameters is \[1\], wanted an object'),
    ('text_config', 'rope_parameters', {'rope_theta': 5e6, 'mrope_section': 24}, 'mrope_section is 24, wanted a list'),
    ('text_config', 'rope_parameters', {'rope_theta': 5e6, 'mrope_section': [32, 32]}, 'wanted three whole numbers'),
    ('text_config', 'rope_parameters', {'rope_theta': 'x', 'mrope_section': [24, 20, 20]}, "rope_theta is 'x'"),
    ('vision_config', 'num_heads', -16, 'num_heads is -16'),
    ('vision_config', 'deepstack_visual_indexes', 5, 'deepstack_visual_indexes is 5, wanted a list'),
    ('vision_config', 'deepstack_visual_indexes', ['5'], "deepstack_visual_indexes is '5'")])
def test_a_size_that_is_no_such_number_is_refused_by_its_name(section, name, value, message):
  with pytest.raises(ConfigError, match=message):
    Config.from_hf(_changed(**{section: {name: value}}))


@pytest.mark.parametrize('name, value', [
    ('text_config', 'x'), ('vision_config', [1]), ('image_token_id', []), ('video_token_id', -1)])
def test_a_part_of_the_config_that_is_of_another_kind_is_refused_by_its_name(name, value):
  with pytest.raises(ConfigError, match=f'config.json: {name} is '):
    Config.from_hf({**PUBLISHED['2b']().to_hf('float32'), name: value})
