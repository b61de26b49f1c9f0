"""Targets over HTTP bodies: what clients send to the embedded server, and what a server replies."""

import asyncio
import base64
import contextlib
import http.client
import io
import json
import pathlib
import threading
from collections.abc import Iterator

import numpy as np
import orjson
from PIL import Image

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.rollout import client
from paravt_jax.serving import fields, images, protocol
from paravt_jax.serving.embedded import openai_request, server
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.testing import stack, tiny
from tests.fuzz import mutate
from tests.fuzz.driver import Target
from tests.fuzz.mutate import Rng
from tests.fuzz.texts import TOK

_VOCAB = 300
_PIXELS = np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3)
_PNG = protocol.encode_image(_PIXELS)
_IMAGES = images.pack(_PIXELS[None])
_TIMEOUT_S = 60.0
STATUSES = (200, 400, 404, 405, 409, 413)


def _jpeg() -> str:
  buffer = io.BytesIO()
  Image.fromarray(_PIXELS).save(buffer, 'JPEG')
  return base64.b64encode(buffer.getvalue()).decode()


_PICTURES = (_PNG, _jpeg(), 'data:image/png;base64,' + _PNG, images.content_name(_PIXELS), '')
GENERATE = {
  'rid': 'a',
  'input_ids': [1, 2, 3, 4],
  'image_data': [],
  'return_logprob': True,
  'stream': False,
  'sampling_params': {
    'temperature': 0.7,
    'top_p': 0.9,
    'top_k': -1,
    'max_new_tokens': 4,
    'stop_token_ids': [2],
    'logit_bias': {'5': -1e9},
    'sampling_seed': 3,
    'ignore_eos': False,
  },
}
CHAT = {
  'model': 'tiny',
  'messages': [
    {'role': 'system', 'content': 'Be brief.'},
    {
      'role': 'user',
      'content': [
        {'type': 'text', 'text': 'What?'},
        {'type': 'image_url', 'image_url': {'url': 'data:image/png;base64,' + _PNG}},
      ],
    },
    {
      'role': 'assistant',
      'content': 'I look.',
      'tool_calls': [{'function': {'name': 'zoom', 'arguments': '{"at": 1}'}}],
    },
    {'role': 'tool', 'tool_call_id': 'x', 'content': 'red'},
  ],
  'tools': [{'type': 'function', 'function': {'name': 'zoom', 'parameters': {}}}],
  'max_tokens': 4,
  'temperature': 0.5,
  'stop': ['x'],
  'seed': 1,
  'stream': False,
}
REPLY = protocol.GenerateReply([5, 6], [-0.5, -1.0], 'stop', 4, 0, 0, [(0, 0, 2)]).to_json(
  'a', {'type': 'stop'}, 0.1
)
_ASKED = protocol.GenerateRequest(
  rid='a',
  input_ids=[1, 2, 3, 4],
  images=(),
  temperature=0.7,
  top_p=1.0,
  top_k=-1,
  max_new_tokens=8,
  stop_token_ids=(),
  banned_ids=(9,),
  seed=1,
  ignore_eos=False,
)
_OTHERS = {
  '/abort_request': {'rid': 'a', 'abort_all': False},
  '/pause_generation': {'mode': 'retract'},
  '/continue_generation': {},
  '/flush_cache': {},
  '/update_weights_from_disk': {'model_path': '/nowhere', 'weight_version': '3'},
}
_EXTRA = (
  *('a', 'zoom', 'system', 'user', 'tool', 'data:image/png;base64,', 'data:image/gif;base64,AAAA'),
  *([], {}, [[]], [0], [-1], [299], [10**9], [1] * 600, {'1': 1e39}, {'-1': 0}, {'1': None}),
  *(0, 1, -1, 2**31, 1e-9, 100.5, True, None, '{"a": 1}', '{', 'file:///etc/passwd', '/dev/zero'),
  *_PICTURES,
)


def _json(rng: Rng, value, changes: int = 4) -> bytes:
  for _ in range(int(rng.integers(changes + 1))):
    value = mutate.change_json(rng, value, _EXTRA)
  data = json.dumps(value, allow_nan=True).encode()
  return data if rng.random() < 0.85 else mutate.change_bytes(rng, data)


def _one_line(error: Exception) -> None:
  text = str(error)
  assert '\n' not in text and 0 < len(text) < 2000, text[:300]


def _check_generate(data: bytes) -> str:
  try:
    found = protocol.parse_generate(fields.json_object('/generate', data), _VOCAB)
    assert found.input_ids and all(0 <= number < _VOCAB for number in found.input_ids)
    assert 0 <= found.temperature <= 100 and 0 < found.top_p <= 1 and found.max_new_tokens > 0
    for one in found.image_data:
      if not images.is_name(one):
        pixels = protocol.decode_image(one, 64)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
  except fields.RequestError as error:
    _one_line(error)
    return 'refused'
  return 'valid'


def _check_chat(data: bytes) -> str:
  try:
    request = openai_request.parse(fields.json_object(openai_request.PATH, data), _VOCAB)
    found = openai_request.prompt(
      TOK, request, think_prefix='<think>\n', context=512, max_patches=64
    )
  except fields.RequestError as error:
    _one_line(error)
    return 'refused'
  assert found.ids.count(TOK.image_pad) == len(found.images) == request.image_count
  assert found.ids.count(TOK.im_start) == len(request.messages) + (not request.continues)
  return 'valid'


def _check_images(data: bytes) -> str:
  try:
    found = images.unpack(data, 64)
  except fields.RequestError as error:
    _one_line(error)
    return 'refused'
  assert images.pack(found) == data or found.nbytes < len(data)
  return 'valid'


def _check_reply(data: bytes) -> str:
  """What a client makes of a server's reply."""
  try:
    value = orjson.loads(data)
  except orjson.JSONDecodeError:
    return 'no JSON'
  try:
    found = protocol.GenerateReply.from_json(value)
    client.check(_ASKED, found, _VOCAB)
  except RolloutError:
    return 'refused'
  ids = np.asarray(found.output_ids, np.int32)
  assert ids.shape == found.versions().shape == (len(found.logprobs),)
  return 'valid'


def _picture(rng: Rng) -> bytes:
  return mutate.change_bytes(rng, base64.b64decode(mutate.pick(rng, _PICTURES[:2])), most=8)


def _check_picture(data: bytes) -> str:
  text = base64.b64encode(data).decode()
  try:
    pixels = protocol.decode_and_resize('image', text, 64)
  except fields.RequestError as error:
    _one_line(error)
    return 'refused'
  assert pixels.dtype == np.uint8 and pixels.shape[0] % 32 == pixels.shape[1] % 32 == 0
  return 'valid'


def _request(rng: Rng) -> bytes:
  """A path, then a body for it."""
  kind = int(rng.integers(12))
  if kind < 4:
    path, body = '/generate', _json(rng, GENERATE)
  elif kind < 8:
    path, body = openai_request.PATH, _json(rng, CHAT)
  elif kind == 8:
    path, body = images.PATH, mutate.change_bytes(rng, _IMAGES)
  elif kind == 9:
    path, body = '/generate', _json(rng, {**GENERATE, 'stream': True})
  else:
    path = mutate.pick(rng, list(_OTHERS))
    body = _json(rng, _OTHERS[path], 2)
  return path.encode() + b'\n' + body


def app_target(port: int) -> Target:
  """Returns the target of requests to a server at a port of this machine."""

  def send(method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
      connection.request(method, path, body, {'Content-Type': 'application/json'})
      reply = connection.getresponse()
      return reply.status, reply.read()

  def check(data: bytes) -> str:
    path, _, body = data.partition(b'\n')
    status, reply = send('POST', path.decode(), body)
    assert status in STATUSES, (status, reply[:300])
    if status != 200:
      value = json.loads(reply)
      error = value.get('error', value)  # as SGLang, weights are refused with success: false
      assert '\n' not in error['message'] and len(error['message']) < 4000, error
    elif reply.startswith(b'data: '):
      assert reply.endswith(b'data: [DONE]\n\n'), reply[-200:]
    elif reply:
      json.loads(reply)
    if path == b'/pause_generation':
      assert send('POST', '/continue_generation', b'{}')[0] == 200
    assert send('GET', '/health', None)[0] == 200
    return str(status)

  return Target('server', _request, check, seconds=30.0, megabytes=1024)


@contextlib.contextmanager
def served(folder: pathlib.Path) -> Iterator[int]:
  """Runs the embedded server of the tiny model in this process; yields its port."""
  tiny.build_model_folder(folder, seed=0)
  options: ServerOptions = stack.server_options(folder)
  sock = server.bind(options.host, 0)
  engine = server.build(options)
  loop, done = asyncio.new_event_loop(), asyncio.Event()
  thread = threading.Thread(
    target=lambda: loop.run_until_complete(server.serve(engine, options, sock, done)), daemon=True
  )
  thread.start()
  try:
    yield sock.getsockname()[1]
  finally:
    loop.call_soon_threadsafe(done.set)
    thread.join(_TIMEOUT_S)
    if thread.is_alive():
      raise ConfigError('the server did not end')


def targets() -> list[Target]:
  """Returns the targets of this module that need no server."""
  return [
    Target('generate_bodies', lambda rng: _json(rng, GENERATE), _check_generate),
    Target('chat_bodies', lambda rng: _json(rng, CHAT), _check_chat),
    Target('image_bodies', lambda rng: mutate.change_bytes(rng, _IMAGES), _check_images),
    Target('pictures', _picture, _check_picture),
    Target('server_replies', lambda rng: _json(rng, REPLY), _check_reply),
  ]
