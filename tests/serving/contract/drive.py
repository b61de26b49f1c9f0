"""What the contract suite drives: either server behind one face, over plain HTTP, and the learner's
own numbers beside it.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import urllib.error
import urllib.request
from typing import Any
from unittest import mock

import numpy as np
from tokenizers import Tokenizer

from paravt_jax.models.lora import Adapter
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.serving import flat, publish, sglang, staging
from paravt_jax.serving.embedded import launch as embedded
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.protocol import GenerateReply, GenerateRequest
from paravt_jax.testing import tiny
from tests import patience, xla

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONTEXT = 256
KEY = 'a-key-of-ours'
LONG = 200  # new tokens of requests that are to be caught at work
_SERIAL = itertools.count()
_MEMORY = flat.Store()


def embedded_options(folder: pathlib.Path, **changes) -> ServerOptions:
  given = {
    'model_path': str(folder),
    'host': '127.0.0.1',
    'port': 0,
    'port_file': None,
    'api_key': KEY,
    'served_name': 'tiny',
    'think_prefix': '',
    'dtype': 'float32',
    'eos_token_ids': (),
    'lanes': ((128, 8), (CONTEXT, 4)),
    'chunk_tokens': 32,
    'prefill_rows': 4,
    'attention': 'auto',
    'pages': 64,
    'decode_steps': 4,
    'image_batch': 4,
    'image_slots': 32,
    'image_cache_mb': 1,
    'max_image_patches': 16,
    'bias_rows': 4,
    'max_stop_ids': 4,
    'max_body_mb': 16,
    'tensor_parallel': 1,
    'compile_cache': None,
    'parent_pid': None,
  }
  return ServerOptions(**{**given, **changes})


def sglang_options(folder: pathlib.Path, **changes) -> sglang.SGLangOptions:
  given = {
    'python': str(ROOT / '.venv-sglang' / 'bin' / 'python'),
    'launcher': str(ROOT / 'third_party/sglang/launch_cpu.py'),
    'model_path': str(folder),
    'served_name': 'tiny',
    'host': '127.0.0.1',
    'port': 0,
    'api_key': KEY,
    'device': 'cpu',
    'dtype': 'float32',
    'context_length': CONTEXT,
    'max_total_tokens': 16384,
    'max_running_requests': 16,
    'mem_fraction': 0.2,
    'tensor_parallel': 1,
    'devices': (),
    'vision_cache_mb': 0,
    'vision_frozen': False,
    'threads': 2,
    'extra': (),
  }
  return sglang.SGLangOptions(**{**given, **changes})


@dataclasses.dataclass(frozen=True)
class Served:
  """A running server with the model it was started with. scratch: a folder for weights that are
  sent to it.
  """

  kind: str
  process: Any  # a ServerProcess, or a ServerThread
  folder: pathlib.Path
  config: Config
  params: dict
  scratch: pathlib.Path

  def call(
    self, path: str, body=None, key: str | None = KEY, timeout: float = 120.0
  ) -> tuple[int, object]:
    """(status, reply: JSON where it is that, else text). A body makes it a POST."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {'Content-Type': 'application/json'} | (
      {} if key is None else {'Authorization': f'Bearer {key}'}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
      with opener.open(
        urllib.request.Request(self.process.url + path, data, headers),
        timeout=patience.seconds(timeout),
      ) as reply:
        return reply.status, _value(reply.read())
    except urllib.error.HTTPError as error:
      return error.code, _value(error.read())

  def told(self, path: str, body: dict) -> None:
    """A command that succeeds."""
    status, reply = self.call(path, body)
    assert status == 200, reply

  def generate(self, request: GenerateRequest) -> GenerateReply:
    status, body = self.call('/generate', request.to_json())
    assert status == 200, body
    return GenerateReply.from_json(body)

  def running(self) -> int:
    """Requests that are being decoded."""
    if self.kind == 'embedded':
      return sum(self.call('/get_server_info')[1]['running'])
    return self.call('/v1/loads')[1]['loads'][0]['num_running_reqs']

  def staged(self, params: dict, version: int, adapter: Adapter | None = None) -> pathlib.Path:
    """Weights in the form that this server loads. With `adapter`, `params` are of that form, and
    all arrays of the model are left out.
    """
    frozen = None if adapter is None else self.params
    how = {'frozen': frozen, 'adapter': adapter}
    if version % 2:  # the odd ones through memory
      with publish.Publisher(self.scratch / 'weights', keep=2, memory=_MEMORY) as publisher:
        published = publisher.start(version, params, canary=None, **how).ready().whole()
    else:
      published = publish.save(self.scratch / 'weights', version, params, keep=2, **how)
    if self.kind == 'embedded':
      return published
    with mock.patch.object(staging, '_FILE_BYTES', 100_000):  # several files, as a large model has
      return staging.Staging(self.folder, self.scratch / f'staging-{next(_SERIAL)}').stage(
        published
      )

  def load(self, folder: pathlib.Path, version: int) -> tuple[int, object]:
    """(status, reply) of an update."""
    return self.call(
      '/update_weights_from_disk',
      {'model_path': str(folder), 'weight_version': str(version), 'flush_cache': True},
    )

  def update(self, params: dict | None, version: int, adapter: Adapter | None = None) -> None:
    """Sends weights, or an adapter; None: those it was started with."""
    folder = self.folder if params is None else self.staged(params, version, adapter)
    status, body = self.load(folder, version)
    assert (status, body['success']) == (200, True), body

  def words(self, number: int, seed: int) -> list[int]:
    """Random text ids, none of which is a vision id."""
    return [int(token) for token in np.random.default_rng(seed).integers(200, 500, number)]

  def with_image(self, before: int, after: int, seed: int) -> list[int]:
    image = [self.config.vision_start_id, self.config.image_id, self.config.vision_end_id]
    return self.words(before, seed) + image + self.words(after, seed + 1)

  def expected(
    self, sent: GenerateRequest, reply: GenerateReply, params: dict | None = None
  ) -> np.ndarray:
    """float64[n]: the learner's log-probs of the sampled ids: log-softmax of (masked logits /
    temperature), teacher-forced.
    """
    ids = expanded(self.config, sent)
    whole = np.array(ids + reply.output_ids, np.int32)
    padded = np.concatenate([whole, np.zeros(-len(whole) % 64, np.int32)])  # few shapes to compile
    logits = np.asarray(
      model.logits(self.config, self.params if params is None else params, padded, sent.images),
      np.float64,
    )
    logits = logits[len(ids) - 1 : len(whole) - 1] / (sent.temperature or 1.0)
    logits[:, list(sent.banned_ids)] = -np.inf
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(len(reply.output_ids)), reply.output_ids]

  def gap(self, sent: GenerateRequest, reply: GenerateReply, params: dict | None = None) -> float:
    """Mean distance, in nats, of the reply's log-probs from the learner's."""
    return float(np.abs(np.array(reply.logprobs) - self.expected(sent, reply, params)).mean())


def _value(raw: bytes):
  try:
    return json.loads(raw)
  except ValueError:
    return raw.decode()


def expanded(config: Config, sent: GenerateRequest) -> list[int]:
  """The ids with each image placeholder as often as the image has tokens."""
  frames = iter(sent.images)
  ids = []
  for token in sent.input_ids:
    repeats = 1
    if token == config.image_id:
      image = next(frames)
      repeats = image.shape[0] // 32 * (image.shape[1] // 32)
    ids += [token] * repeats
  return ids


def request(ids, images=(), **changes) -> GenerateRequest:
  given = {
    'rid': f'test-{next(_SERIAL)}',
    'input_ids': list(map(int, ids)),
    'images': tuple(images),
    'temperature': 0.7,
    'top_p': 1.0,
    'top_k': -1,
    'max_new_tokens': 12,
    'stop_token_ids': (),
    'banned_ids': (),
    'seed': 11,
    'ignore_eos': True,
  }
  return GenerateRequest(**{**given, **changes})


def frame(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


class Flight:
  """Requests that are under way: `with Flight(served, requests) as flight: ...;
  flight.replies()`.
  """

  def __init__(self, served: Served, requests: list[GenerateRequest]):
    self.pool = concurrent.futures.ThreadPoolExecutor(len(requests))
    self.futures = [self.pool.submit(served.generate, one) for one in requests]

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.pool.shutdown()

  @property
  def done(self) -> list[bool]:
    return [future.done() for future in self.futures]

  def replies(self) -> list[GenerateReply]:
    return [future.result(patience.seconds(300)) for future in self.futures]


def together(served: Served, requests: list[GenerateRequest]) -> list[GenerateReply]:
  with Flight(served, requests) as flight:
    return flight.replies()


def tokens(folder: pathlib.Path, *texts: str) -> list[int]:
  """The ids of texts that are one token each."""
  tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
  return [tokenizer.token_to_id(text) for text in texts]


def started(kind: str, folder: pathlib.Path, scratch: pathlib.Path, **changes) -> Served:
  """A server of a random tiny model in `folder`, which is made if missing."""
  if not (folder / 'config.json').exists():
    tiny.build_model_folder(folder, seed=3)
  config, params = weights.load_hf(folder)
  log, pid = scratch / 'server.log', os.getpid()
  if kind == 'embedded':
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK}
    process = embedded.launch(
      embedded_options(folder, eos_token_ids=(tokens(folder, '<|im_end|>')[0],), **changes),
      env=environment,
      log=log,
      deadline_s=patience.seconds(300),
      parent_pid=pid,
    )
  else:
    process = sglang.launch(
      sglang_options(folder, **changes),
      env=os.environ,
      log=log,
      deadline_s=patience.seconds(900),
      parent_pid=pid,
    )
  return Served(kind, process, folder, config, params, scratch)


def banned(served):
  """What a policy must not sample: the ids that stand for pictures."""
  config = served.config
  return (config.image_id, config.video_id, config.vision_start_id, config.vision_end_id)


def long_requests(served, number, **changes):
  return [
    request(
      served.with_image(10 + i, 3, 70),
      (frame(70),),
      **{'seed': 40 + i, 'max_new_tokens': LONG, 'banned_ids': banned(served), **changes},
    )
    for i in range(number)
  ]


def caught(served, requests):
  """The requests under way, at least one of them decoding."""
  flight = Flight(served, requests)
  patience.until(lambda: served.running() > 0 or all(flight.done))
  return flight
