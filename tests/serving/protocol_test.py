"""Requests and replies in SGLang's shapes."""

import json

import numpy as np
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.serving.protocol import (
  BANNED_BIAS,
  GenerateReply,
  GenerateRequest,
  RequestError,
  decode_image,
  encode_image,
  parse_generate,
)

REQUEST = GenerateRequest('r1', [5, 6], (), 0.7, 1.0, -1, 16, (2,), (8, 9), 1234, False)


def test_a_request_is_the_json_that_sglang_takes():
  assert REQUEST.to_json() == {
    'rid': 'r1',
    'input_ids': [5, 6],
    'return_logprob': True,
    'sampling_params': {
      'temperature': 0.7,
      'top_p': 1.0,
      'top_k': -1,
      'max_new_tokens': 16,
      'stop_token_ids': [2],
      'logit_bias': {'8': BANNED_BIAS, '9': BANNED_BIAS},
      'sampling_seed': 1234,
      'ignore_eos': False,
    },
  }


def test_what_is_sent_is_what_is_parsed():
  parsed = parse_generate(json.loads(json.dumps(REQUEST.to_json())), 100)
  assert (parsed.rid, parsed.input_ids, parsed.seed, parsed.stop_token_ids) == (
    'r1',
    [5, 6],
    1234,
    (2,),
  )
  assert parsed.logit_bias == ((8, BANNED_BIAS), (9, BANNED_BIAS))


def test_a_png_brings_the_very_pixels():
  image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
  np.testing.assert_array_equal(decode_image(encode_image(image)), image)
  np.testing.assert_array_equal(decode_image('data:image/png;base64,' + encode_image(image)), image)


def test_an_image_is_never_resized_but_refused():
  with pytest.raises(RequestError, match='33x32'):
    decode_image(encode_image(np.zeros((33, 32, 3), np.uint8)))


def test_a_reply_survives_the_way_through_json():
  reply = GenerateReply([7, 8, 2], [-0.5, -1.0, -0.25], 'stop', 10, 4, 2, [(3, 0, 1), (4, 1, 3)], 1)
  body = json.loads(json.dumps(reply.to_json('r1', {'type': 'stop', 'matched': 2}, 0.1)))
  assert body['meta_info']['output_token_logprobs'] == [
    [-0.5, 7, None],
    [-1.0, 8, None],
    [-0.25, 2, None],
  ]
  assert body['meta_info']['weight_version'] == '4'
  assert GenerateReply.from_json(body) == reply
  assert reply.versions().tolist() == [3, 4, 4]


def test_a_reply_of_weights_never_updated_is_version_0():
  body = {
    'output_ids': [1],
    'meta_info': {
      'finish_reason': {'type': 'length'},
      'output_token_logprobs': [[-1.0, 1, None]],
      'prompt_tokens': 3,
      'cached_tokens': 0,
      'weight_version': 'default',
    },
  }
  assert GenerateReply.from_json(body).weight_versions == [(0, 0, 1)]


@pytest.mark.parametrize(
  'broken',
  [
    {},
    {'output_ids': [1], 'meta_info': {}},
    {
      'output_ids': [1],
      'meta_info': {
        'finish_reason': {'type': 'stop'},
        'output_token_logprobs': [],
        'weight_version': '1',
      },
    },
    {'output_ids': [], 'meta_info': None},
    {'output_ids': [], 'meta_info': 'done'},
    {'output_ids': [float('inf')], 'meta_info': {'finish_reason': {'type': 'stop'}}},
  ],
)
def test_a_reply_of_another_shape_is_an_error(broken):
  with pytest.raises(RolloutError, match='server reply'):
    GenerateReply.from_json(broken)


@pytest.mark.parametrize(
  'params, says',
  [
    ({'n': 2}, 'n > 1'),
    ({'temperature': 'hot'}, "temperature: got 'hot'"),
    ({'top_p': 0}, 'top_p: got 0'),
    ({'logit_bias': {'x': 1}}, "logit_bias: got 'x'"),
    ({'max_tokens': 3}, "unknown key 'max_tokens'"),
    ({'sampling_seed': -1}, 'sampling_seed: got -1'),
  ],
)
def test_wrong_sampling_parameters_are_named(params, says):
  with pytest.raises(RequestError, match=says):
    parse_generate({'input_ids': [1], 'sampling_params': params}, 10)


@pytest.mark.parametrize(
  'body',
  [
    {'input_ids': [10**5000]},
    {'input_ids': [1], 'sampling_params': {'temperature': 10**5000}},
    {'input_ids': [1], 'sampling_params': {'max_new_tokens': -(10**5000)}},
    {'input_ids': [1], 'sampling_params': {'logit_bias': {'5': 10**5000}}},
    {'input_ids': [1], 'sampling_params': {'top_p': float('nan')}},
    {'input_ids': [1], 'sampling_params': {'temperature': float('inf')}},
  ],
)
def test_numbers_that_only_python_can_hold_are_refused_in_a_short_line(body):
  with pytest.raises(RequestError, match=r'got (?:a number of|nan|inf|.*a number of)') as caught:
    parse_generate(body, 10)
  assert len(str(caught.value)) < 200
