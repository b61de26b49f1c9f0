"""Whatever a body holds: one line with status 400 that names the field, and the server serves the
next request.
"""

import base64
import gzip
import http.client
import io
import json
import math
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving.protocol import encode_image
from tests.serving.contract.drive import KEY, frame, request

DEEP: list = []
for _ in range(900):
  DEEP = [DEEP]
# What no field takes; those that a field does take are left out where it is walked.
ODD = {
  'true': True,
  'text': 'x',
  'long text': 'x' * 5000,
  'nothing': '',
  'fraction': 1.5,
  'negative': -3,
  'negative fraction': -0.5,
  'huge': 10**18,
  'huger': 10**30,
  'beyond float32': 1e39,
  'list': [],
  'list of one': [1],
  'list of lists': [[1]],
  'object': {},
  'object of one': {'a': 1},
  'deep': DEEP,
  'several lines': 'a\nb',
}


def png(width: int, height: int, packed: bytes = b'') -> str:
  """A PNG of this size by its header, whatever its data are."""

  def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  parts = chunk(b'IHDR', header) + chunk(b'IDAT', packed) + chunk(b'IEND', b'')
  return base64.b64encode(b'\x89PNG\r\n\x1a\n' + parts).decode()


def saved(kind: str, frames: int = 1, side: int = 64) -> str:
  images = [Image.new('RGB', (side, side), (50 * i, 0, 0)) for i in range(frames)]
  buffer = io.BytesIO()
  images[0].save(
    buffer, kind, **({'save_all': True, 'append_images': images[1:]} if frames > 1 else {})
  )
  return base64.b64encode(buffer.getvalue()).decode()


WHOLE = encode_image(np.full((64, 64, 3), 9, np.uint8))
IMAGES = {
  'of 32000x32000': (png(32000, 32000), 'pixels'),
  'of 10240x9216, at which Pillow warns': (png(10240, 9216), 'max_image_patches'),
  'of 8192x8192, which Pillow takes': (png(8192, 8192), 'max_image_patches'),
  'larger than the server': (png(96, 96), 'max_image_patches'),
  'of no width': (png(0, 32), 'image_data'),
  'of a side of 2**31 - 1': (png(2**31 - 1, 32), 'image_data'),
  'a bomb in its data': (png(64, 64, zlib.compress(bytes(50_000_000))), ''),
  'cut off': (WHOLE[: len(WHOLE) // 2 // 4 * 4], 'image_data'),
  'without data': (png(64, 64), 'image_data'),
  'animated': (saved('PNG', 3), 'animated PNG of 3 images'),
  'a GIF': (saved('GIF'), 'PNG or JPEG'),
  'not base64': ('%%%', 'not a base64'),
  'base64 of nothing': ('', 'not a base64'),
  'not ASCII': ('é', 'not a base64'),
  'a header alone': ('data:image/png;base64,', 'not a base64'),
  'a file name': ('file:///etc/passwd', 'not a base64'),
}


@pytest.fixture
def served(embedded_server):
  """The server, which after whatever was asked serves a good request in finite numbers."""
  yield embedded_server
  assert_serves(embedded_server)


def assert_serves(served):
  assert_finite(*served.call('/generate', request(served.words(5, 65)).to_json()))


def assert_finite(status, body):
  assert status == 200 and len(body['output_ids']) == 12, body
  logprobs = [logprob for logprob, _, _ in body['meta_info']['output_token_logprobs']]
  assert len(logprobs) == 12 and all(
    math.isfinite(logprob) and logprob <= 1e-3 for logprob in logprobs
  ), logprobs


def refused(served, path, body, *says):
  """Asserts one line with status 400 that says all of `says`."""
  status, reply = served.call(path, body)
  assert status == 400, (status, reply)
  message = reply['message'] if 'message' in reply else reply['error']['message']
  assert '\n' not in message and len(message) < 700 and all(word in message for word in says), (
    says,
    message,
  )


def walk(served, path, name, but=(), nested='', **others):
  """Every odd value in this field of a body, but for those that it takes."""
  for label, value in ODD.items():
    if label not in but:
      changed = {nested: {**others.get(nested, {}), name: value}} if nested else {name: value}
      refused(served, path, {**others, **changed}, name)


@pytest.mark.parametrize(
  ('name', 'but'),
  [
    ('input_ids', ('list of one',)),
    ('rid', ('text', 'several lines')),
    ('sampling_params', ('object',)),
    ('return_logprob', ('true',)),
    ('stream', ('true',)),
    ('logprob_start_len', ()),
    ('return_text_in_logprobs', ('true',)),
    ('top_logprobs_num', ()),
  ],
)
def test_every_field_of_a_request_is_checked(served, name, but):
  walk(served, '/generate', name, but, input_ids=[1, 2])


@pytest.mark.parametrize(
  ('name', 'but'),
  [
    ('temperature', ('fraction',)),
    ('top_p', ()),
    ('top_k', ()),
    ('max_new_tokens', ()),
    ('stop_token_ids', ('list', 'list of one')),
    ('logit_bias', ('object',)),
    ('sampling_seed', ('huge',)),
    ('ignore_eos', ('true',)),
    ('n', ()),
    ('skip_special_tokens', ('true',)),
    ('spaces_between_special_tokens', ('true',)),
    ('stop', ()),
    ('min_p', ()),
    ('seed', ()),
  ],
)
def test_every_sampling_parameter_is_checked(served, name, but):
  walk(served, '/generate', name, but, nested='sampling_params', input_ids=[1, 2])


@pytest.mark.parametrize(
  ('ids', 'says'),
  [
    ([1, -1], 'got -1'),
    ([1, 2.0], 'flat list'),
    ([1, True], 'flat list'),
    ([1, None], 'flat list'),
    ([1, 10**30], 'flat list'),
    ([1, 2**40], 'got 1099511627776'),
    ([1] * 257, 'got 257 ids'),
    ([1] * 300_000, 'got 300000 ids'),
    (None, 'flat list'),
  ],
)
def test_ids_are_of_the_vocabulary_and_fit_the_context(served, ids, says):
  refused(served, '/generate', {'input_ids': ids}, 'input_ids', says)


@pytest.mark.parametrize(
  ('bias', 'says'),
  [
    ({'9' * 5000: 1}, 'logit_bias: got'),
    ({'-1': 1}, "got '-1'"),
    ({'768000': 1}, "got '768000'"),
    ({'5': 1e39}, 'logit_bias[5]: got 1e+39'),
    ({'5': -1e39}, 'logit_bias[5]'),
    ({'5': '1'}, "logit_bias[5]: got '1'"),
    ({'5': None}, 'logit_bias[5]'),
    ({'5': True}, 'logit_bias[5]'),
    ({'05': 1}, "got '05'"),
    ({'٣': 1}, 'logit_bias: got'),
    ({'5.0': 1}, "got '5.0'"),
    ({'': 1}, "got ''"),
    ({' 5': 1}, "got ' 5'"),
  ],
)
def test_a_logit_bias_is_an_id_and_a_number_that_float32_holds(served, bias, says):
  refused(served, '/generate', {'input_ids': [1], 'sampling_params': {'logit_bias': bias}}, says)


@pytest.mark.parametrize(
  'sampling',
  [
    {'temperature': 1e-38},
    {'temperature': 1e-6},
    {'temperature': 100.0},
    {'temperature': 1e-6, 'bias': 1e30},
    {'bias': -1e30},
    {'bias': 1e30},
    {'temperature': 5e-324, 'bias': -1e9},
    {'temperature': 1e-6, 'top_p': 1e-6, 'bias': -1e30},
  ],
)
def test_log_probs_are_finite_at_the_ends_of_what_is_allowed(served, sampling):
  bias = sampling.pop('bias', 0.0)
  sent = request(served.words(5, 65), **sampling).to_json()
  sent['sampling_params']['logit_bias'] = (
    {str(i): bias for i in range(0, served.config.text.vocab, 2)} if bias else {}
  )
  assert_finite(*served.call('/generate', sent))


def test_a_temperature_below_a_millionth_is_greedy_as_in_sglang(served):
  prompt = served.words(9, 66)
  greedy, cold = (
    served.generate(request(prompt, temperature=temperature)) for temperature in (0.0, 9e-7)
  )
  assert (cold.output_ids, cold.logprobs) == (greedy.output_ids, greedy.logprobs)


@pytest.mark.parametrize(('image', 'says'), IMAGES.values(), ids=IMAGES)
def test_an_image_that_is_none_or_too_large_is_refused_by_its_header(served, image, says):
  pad = served.config.image_id
  if says:
    refused(served, '/generate', {'input_ids': [5, pad], 'image_data': [image]}, 'image_data', says)
  else:  # as large as it says, whatever else its data hold
    assert served.call(
      '/generate',
      {'input_ids': [5, pad], 'image_data': [image], 'sampling_params': {'max_new_tokens': 1}},
    )[0] in (200, 400)


@pytest.mark.parametrize(
  'value', [True, 1, {}, {'url': 'x'}, [1], [None], [[WHOLE]], [{'image': WHOLE}]]
)
def test_images_are_texts(served, value):
  refused(
    served,
    '/generate',
    {'input_ids': [5, served.config.image_id], 'image_data': value},
    'image_data',
  )


BODIES = {
  'no JSON': b'{',
  'no object': b'[1]',
  'a number': b'1',
  'null': b'null',
  'a text': b'"a"',
  'not UTF-8': b'{"rid": "\xff"}',
  'UTF-16': '{}'.encode('utf-16'),
  'a byte-order mark': b'\xef\xbb\xbf{}',
  'nested deeply': b'{"input_ids": ' + b'[' * 1000 + b']' * 1000 + b'}',
  'nested more deeply': b'[' * 200_000,
  'NaN': b'{"sampling_params": {"temperature": NaN}}',
  'Infinity': b'{"a": Infinity}',
  'a number beyond a double': b'{"a": 1e999}',
  'a number of 5000 digits': b'{"a": ' + b'9' * 5000 + b'}',
  'half a surrogate': b'{"rid": "\\ud800"}',
  'a key twice': b'{"input_ids": [1], "input_ids": [2]}',
  'a key twice inside': b'{"sampling_params": {"top_k": 1, "top_k": 2}}',
  'a comment': b'{"a": 1} // b',
  'two objects': b'{}{}',
  'a comma too many': b'{"a": 1,}',
}
POSTS = (
  '/generate',
  '/update_weights_from_disk',
  '/pause_generation',
  '/continue_generation',
  '/abort_request',
  '/flush_cache',
)


@pytest.mark.parametrize('path', POSTS)
@pytest.mark.parametrize('body', BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_plain_json_object_is_refused_everywhere(embedded_server, path, body):
  refused(embedded_server, path, body, path)


def test_and_the_server_still_serves(embedded_server):
  assert_serves(embedded_server)


@pytest.mark.parametrize('path', POSTS)
def test_an_unknown_key_is_named_everywhere(served, path):
  refused(served, path, {'temperatur': 1}, path, "unknown key 'temperatur'")
  refused(served, path, {'x' * 10_000 + '\n': 1}, path, 'unknown key')


@pytest.mark.parametrize(
  'version',
  [
    1.5,
    '-3',
    '9' * 40,
    True,
    '',
    '1.5',
    ' 3',
    '03',
    '٣',
    '1e3',
    -1,
    2**31,
    [],
    {},
    ['3'],
    'latest',
  ],
)
def test_a_weight_version_is_a_number_that_int32_holds(served, version):
  before = served.call('/get_model_info')[1]['weight_version']
  refused(
    served,
    '/update_weights_from_disk',
    {'model_path': str(served.folder), 'weight_version': version},
    'weight_version: got',
  )
  assert served.call('/get_model_info')[1]['weight_version'] == before


def test_the_other_fields_of_an_update_are_checked(served):
  walk(served, '/update_weights_from_disk', 'model_path', but=('several lines',))
  for path in ('a\nb', 'a\0b', '/etc/passwd'):
    refused(
      served, '/update_weights_from_disk', {'model_path': path}, 'model_path', 'manifest.json'
    )
  for name in ('abort_all_requests', 'flush_cache'):
    walk(served, '/update_weights_from_disk', name, ('true',), model_path=str(served.folder))


def test_pausing_and_aborting_are_checked(served):
  walk(served, '/pause_generation', 'mode')
  walk(served, '/abort_request', 'rid', ('text', 'several lines'))
  walk(served, '/abort_request', 'abort_all', ('true',), rid='a')


def raw_call(served, method, path, body=b'', **headers):
  connection = http.client.HTTPConnection(
    '127.0.0.1', int(served.process.url.rsplit(':', 1)[1]), timeout=60
  )
  connection.request(method, path, body, {'Authorization': f'Bearer {KEY}', **headers})
  reply = connection.getresponse()
  found = reply.status, reply.read()
  connection.close()
  return found


@pytest.mark.parametrize(
  ('method', 'path', 'status'),
  [('GET', '/generate', 405), ('POST', '/health', 405), ('GET', '/nowhere%0A', 404)],
)
def test_another_path_or_method_is_one_line_too(served, method, path, status):
  got, body = raw_call(served, method, path)
  message = json.loads(body)['error']['message']
  assert got == status and '\n' not in message and method in message


def test_a_body_that_is_packed_wrongly_or_too_large_is_one_line(served):
  packed = json.dumps(request(served.words(5, 65)).to_json()).encode()
  headers = {'Content-Encoding': 'gzip', 'Content-Type': 'application/json'}
  assert raw_call(served, 'POST', '/generate', gzip.compress(packed), **headers)[0] == 200
  status, body = raw_call(served, 'POST', '/generate', b'no gzip at all', **headers)
  assert status == 400 and b'\n' not in body.strip()
  status, body = raw_call(served, 'POST', '/generate', gzip.compress(b' ' * (17 << 20)), **headers)
  assert status == 413 and 'Maximum request body size' in json.loads(body)['error']['message']


def test_the_answers_beside_generate_hold_finite_numbers_only(served):
  def refuse(word):
    raise AssertionError(word)

  for path in ('/get_model_info', '/get_server_info'):
    json.loads(raw_call(served, 'GET', path)[1], parse_constant=refuse)


def test_a_picture_of_the_right_size_is_served_after_all_that(served):
  sent = request(served.with_image(4, 4, 3), (frame(3),))
  assert len(served.generate(sent).output_ids) == 12


def test_weights_that_are_not_numbers_are_said_instead_of_written(served, tmp_path):
  text = {
    **served.params['text'],
    'norm': {'scale': np.full_like(served.params['text']['norm']['scale'], np.nan)},
  }
  weights.save_hf(tmp_path / 'nan', served.config, {**served.params, 'text': text}, served.folder)
  try:
    served.told(
      '/update_weights_from_disk', {'model_path': str(tmp_path / 'nan'), 'weight_version': '6'}
    )
    status, body = served.call('/generate', request(served.words(5, 65)).to_json())
    assert (
      status == 500
      and 'weights of version 6 give log-probs that are not finite' in body['error']['message']
    )
  finally:
    served.told(
      '/update_weights_from_disk', {'model_path': str(served.folder), 'weight_version': '0'}
    )
