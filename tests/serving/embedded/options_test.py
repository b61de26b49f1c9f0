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
  ('form', 'platform'), [('triton', 'cpu'), ('triton', 'tpu'), ('ragged', 'gpu')]
)
def test_a_kernel_of_other_devices_is_refused(form, platform):
  with pytest.raises(ConfigError, match=f"attention='{form}'.*the devices are {platform}"):
    dataclasses.replace(GOOD, attention=form).form(128, platform)
