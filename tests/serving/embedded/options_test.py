"""Options are whole, or the error names the knob."""

import dataclasses
import json

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.serving.embedded.options import ServerOptions

GOOD = ServerOptions(
  model_path='m',
  served_name='tiny',
  think_prefix='',
  host='127.0.0.1',
  port=0,
  port_file=None,
  api_key=None,
  dtype='float32',
  eos_token_ids=(1,),
  lanes=((128, 8), (256, 4)),
  chunk_tokens=32,
  prefill_rows=4,
  pages=64,
  decode_steps=4,
  image_batch=4,
  image_slots=32,
  max_image_patches=16,
  bias_rows=4,
  max_stop_ids=4,
  image_cache_mb=4,
  max_body_mb=16,
  attention='auto',
  tensor_parallel=1,
  compile_cache=None,
  parent_pid=None,
)


def test_options_survive_the_command_line():
  assert ServerOptions.from_json(GOOD.to_json()) == GOOD
  assert GOOD.context == 256


@pytest.mark.parametrize(
  'change, says',
  [
    ({'lanes': [[100, 8]]}, 'multiples of chunk_tokens'),
    ({'lanes': [[256, 4], [128, 8]]}, 'smallest context first'),
    ({'pages': 8}, 'pages=8: wanted at least 9'),
    ({'dtype': 'float16'}, "dtype='float16': wanted one of"),
    ({'decode_steps': 0}, 'decode_steps=0: wanted at least 1'),
    ({'prots': 1}, "'prots' is unknown"),
    ({'port': 70000}, 'port=70000: wanted 0..65535'),
  ],
)
def test_a_wrong_option_is_named(change, says):
  with pytest.raises(ConfigError, match=says):
    ServerOptions.from_json(json.dumps(json.loads(GOOD.to_json()) | change))


def test_a_missing_option_is_named():
  given = json.loads(GOOD.to_json())
  del given['pages']
  with pytest.raises(ConfigError, match="'pages' is missing"):
    ServerOptions.from_json(json.dumps(given))


@pytest.mark.parametrize(
  ('form', 'platform', 'changes', 'head_dim', 'says'),
  [
    ('triton', 'cpu', {}, 128, 'a GPU, and the devices are cpu'),
    ('triton', 'tpu', {}, 128, 'a GPU, and the devices are tpu'),
    ('ragged', 'gpu', {}, 128, 'a TPU, and the devices are gpu'),
    ('ragged', 'tpu', {}, 64, 'heads of a multiple of 128, got 64'),
    ('triton', 'gpu', {}, 96, 'heads of a power of two from 16 on, got 96'),
    ('triton', 'cuda', {'chunk_tokens': 8}, 128, 'chunk_tokens of a multiple of 16, got 8'),
    ('triton', 'cuda', {'dtype': 'float32'}, 128, 'bfloat16, got float32'),
  ],
)
def test_a_kernel_that_does_not_take_devices_or_model_is_refused(
  form, platform, changes, head_dim, says
):
  options = dataclasses.replace(GOOD, **{'dtype': 'bfloat16', 'pages': 64, **changes})
  options = dataclasses.replace(options, attention=form)
  with pytest.raises(ConfigError, match=f"attention='{form}': its kernel wants {says}"):
    options.form(head_dim, platform)
  # auto takes another form instead
  assert dataclasses.replace(options, attention='auto').form(head_dim, platform) != form
