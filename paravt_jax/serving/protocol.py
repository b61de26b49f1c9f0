"""SGLang's native HTTP, as both servers speak it: what `/generate` takes and gives, and how images travel.

Ids are sent verbatim, with ONE unexpanded `<|image_pad|>` per image; the reply's ids include the stop token.
"""

import base64
import binascii
import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from paravt_jax.errors import RolloutError

BANNED_BIAS = -1e9           # as logit_bias; far below any logit, finite because JSON has no infinity
FIRST_VERSION = 'default'    # SGLang's name for weights that were never updated; ours is version 0

FINISH_REASONS = ('stop', 'length', 'abort')
_SAMPLING_KEYS = frozenset({'temperature', 'top_p', 'top_k', 'max_new_tokens', 'stop_token_ids', 'logit_bias', 'sampling_seed',
                            'ignore_eos', 'skip_special_tokens', 'spaces_between_special_tokens', 'n'})
_REQUEST_KEYS = frozenset({'rid', 'input_ids', 'image_data', 'sampling_params', 'return_logprob', 'logprob_start_len', 'stream',
                           'return_text_in_logprobs', 'top_logprobs_num'})


class RequestError(RolloutError):
  """A request that no server should run; answered with status 400 and this text."""


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
  """One context to continue.

  input_ids: unexpanded ids. images: uint8[H, W, 3] each, one per image pad, in order; sides multiples of 32.
  temperature 0 is greedy; top_p 1 and top_k -1 are off. banned_ids are never sampled; seed makes the result repeatable.
  """
  rid: str
  input_ids: list[int]
  images: tuple[np.ndarray, ...]
  temperature: float
  top_p: float
  top_k: int
  max_new_tokens: int
  stop_token_ids: tuple[int, ...]
  banned_ids: tuple[int, ...]
  seed: int
  ignore_eos: bool

  def to_json(self, encoded_images: list[str] | None = None) -> dict[str, Any]:
    """The body of POST /generate. `encoded_images` (from `encode_image`) spares encoding the same frames again."""
    images = [encode_image(image) for image in self.images] if encoded_images is None else encoded_images
    body = {
        'rid': self.rid,
        'input_ids': [int(token) for token in self.input_ids],
        'return_logprob': True,
        'sampling_params': {
            'temperature': float(self.temperature), 'top_p': float(self.top_p), 'top_k': int(self.top_k),
            'max_new_tokens': int(self.max_new_tokens), 'stop_token_ids': [int(token) for token in self.stop_token_ids],
            'logit_bias': {str(int(token)): BANNED_BIAS for token in self.banned_ids},
            'sampling_seed': int(self.seed), 'ignore_eos': bool(self.ignore_eos),
        },
    }
    if images:
      body['image_data'] = list(images)
    return body


@dataclasses.dataclass(frozen=True)
class GenerateReply:
  """What was sampled. output_ids: n ids, stop token included; logprobs: n floats (of logits / temperature, banned ids masked).

  weight_versions: (version, start, end) spans over the n sampled tokens, in order, end exclusive. prompt_tokens counts images
  expanded; cached_tokens of them were not computed for this request; image_tokens of them stand for images.
  """
  output_ids: list[int]
  logprobs: list[float]
  finish: str
  prompt_tokens: int
  cached_tokens: int
  image_tokens: int
  weight_versions: list[tuple[int, int, int]]
  retractions: int = 0

  @classmethod
  def from_json(cls, reply: Mapping[str, Any]) -> 'GenerateReply':
    """Reads a reply of either server.

    Raises:
      RolloutError: a field is missing, or ids and log-probs disagree in number.
    """
    try:
      meta = reply['meta_info']
      ids = [int(token) for token in reply['output_ids']]
      logprobs = [float(entry[0]) for entry in meta.get('output_token_logprobs') or ()]
      finish = meta['finish_reason']['type']
      whole = {'version': meta.get('weight_version', FIRST_VERSION), 'start': 0, 'end': len(ids)}
      spans = meta.get('weight_versions') or [whole]
      versions = [(version_number(s['version']), int(s['start']), int(s['end'])) for s in spans if s['end'] > s['start']]
      counts = [int(meta.get(name) or 0) for name in ('prompt_tokens', 'cached_tokens', 'image_tokens', 'num_retractions')]
    except (KeyError, TypeError, ValueError, IndexError) as error:
      raise RolloutError(f'server reply: got {str(reply)[:200]!r}, wanted output_ids and meta_info as SGLang 0.5.21 sends them '
                         f'({type(error).__name__}: {error})') from error
    if len(logprobs) != len(ids):
      raise RolloutError(f'server reply: got {len(ids)} ids but {len(logprobs)} log-probs; send return_logprob=true')
    return cls(ids, logprobs, finish, counts[0], counts[1], counts[2], versions, counts[3])

  def to_json(self, rid: str, reason: Mapping[str, Any], latency: float) -> dict[str, Any]:
    """The body that a server answers. `reason` is SGLang's finish_reason object; latency in seconds."""
    return {
        'text': '',
        'output_ids': self.output_ids,
        'meta_info': {
            'id': rid,
            'finish_reason': dict(reason),
            'prompt_tokens': self.prompt_tokens,
            'completion_tokens': len(self.output_ids),
            'cached_tokens': self.cached_tokens,
            'image_tokens': self.image_tokens,
            'weight_version': str(self.weight_versions[-1][0]) if self.weight_versions else FIRST_VERSION,
            'weight_versions': [{'version': str(v), 'start': start, 'end': end} for v, start, end in self.weight_versions],
            'num_retractions': self.retractions,
            'output_token_logprobs': [[logprob, token, None] for logprob, token in zip(self.logprobs, self.output_ids)],
            'e2e_latency': latency,
        },
    }

  def versions(self) -> np.ndarray:
    """int32[n]: the weight version that sampled each token."""
    versions_T = np.zeros(len(self.output_ids), np.int32)
    for version, start, end in self.weight_versions:
      versions_T[start:end] = version
    return versions_T


def version_number(text: str | int) -> int:
  """A weight version as a number; SGLang's 'default' (never updated) is 0."""
  return 0 if text == FIRST_VERSION else int(text)


def encode_image(image: np.ndarray) -> str:
  """uint8[H, W, 3] as base64 PNG: lossless, so the server sees the learner's very pixels."""
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG', compress_level=1)
  return base64.b64encode(buffer.getvalue()).decode('ascii')


def decode_image(text: str) -> np.ndarray:
  """base64 PNG or JPEG (with or without a data: header) to uint8[H, W, 3].

  Raises:
    RequestError: not base64, not an image, or a side that is no multiple of 32 (nothing is resized here).
  """
  payload = text.partition(',')[2] if text.startswith('data:') else text
  try:
    with Image.open(io.BytesIO(base64.b64decode(payload, validate=True))) as picture:
      image = np.asarray(picture.convert('RGB'))
  except (binascii.Error, UnidentifiedImageError, OSError, ValueError) as error:
    raise RequestError(f'image_data: {text[:24]!r}... is not a base64 PNG or JPEG ({type(error).__name__})') from error
  height, width = image.shape[:2]
  if height % 32 or width % 32:
    raise RequestError(f'image_data: got an image of {height}x{width}, wanted sides that are multiples of 32; resize it first')
  return image


@dataclasses.dataclass(frozen=True)
class ParsedGenerate:
  """A `/generate` body that passed the checks; images are still text, logit_bias is general (`banned` when <= BANNED_BIAS)."""
  rid: str | None
  input_ids: list[int]
  image_data: list[str]
  temperature: float
  top_p: float
  top_k: int
  max_new_tokens: int
  stop_token_ids: tuple[int, ...]
  logit_bias: tuple[tuple[int, float], ...]
  seed: int | None
  ignore_eos: bool
  return_logprob: bool


def parse_generate(body: Any, vocab_size: int) -> ParsedGenerate:
  """Checks a `/generate` body and fills SGLang's defaults.

  Raises:
    RequestError: an unknown key, a wrong type, or a value out of range, named in one line.
  """
  if not isinstance(body, dict):
    raise RequestError(f'/generate: got {type(body).__name__}, wanted a JSON object')
  _refuse_unknown('/generate', body, _REQUEST_KEYS)
  params = body.get('sampling_params') or {}
  if not isinstance(params, dict):
    raise RequestError(f'sampling_params: got {type(params).__name__}, wanted an object')
  _refuse_unknown('sampling_params', params, _SAMPLING_KEYS)
  if params.get('n', 1) != 1 or body.get('stream') or body.get('top_logprobs_num'):
    raise RequestError('/generate: n > 1, stream and top_logprobs_num are not served; send n requests (their prefix is shared)')
  ids = _ids('input_ids', body.get('input_ids'), vocab_size)
  if not ids:
    raise RequestError('input_ids: got no ids, wanted at least one')
  return ParsedGenerate(
      rid=_rid(body.get('rid')),
      input_ids=ids,
      image_data=_image_list(body.get('image_data')),
      temperature=_number('temperature', params.get('temperature', 1.0), 0.0, 100.0),
      top_p=_number('top_p', params.get('top_p', 1.0), 1e-6, 1.0),
      top_k=_whole('top_k', params.get('top_k', -1), -1, 2**31 - 1),
      max_new_tokens=_whole('max_new_tokens', params.get('max_new_tokens', 128), 1, 2**31 - 1),
      stop_token_ids=tuple(_ids('stop_token_ids', params.get('stop_token_ids') or [], vocab_size)),
      logit_bias=_biases(params.get('logit_bias') or {}, vocab_size),
      seed=None if params.get('sampling_seed') is None else _whole('sampling_seed', params['sampling_seed'], 0, 2**63 - 1),
      ignore_eos=bool(params.get('ignore_eos', False)),
      return_logprob=bool(body.get('return_logprob', False)))


def _refuse_unknown(where: str, got: Mapping[str, Any], known: frozenset[str]) -> None:
  unknown = sorted(set(got) - known)
  if unknown:
    raise RequestError(f'{where}: unknown key {unknown[0]!r}; wanted some of {sorted(known)}')


def _rid(value: Any) -> str | None:
  if value is not None and not isinstance(value, str):
    raise RequestError(f'rid: got {type(value).__name__}, wanted a string')
  return value


def _ids(name: str, value: Any, vocab_size: int) -> list[int]:
  if not isinstance(value, list) or not all(type(token) is int for token in value):
    raise RequestError(f'{name}: got {str(value)[:60]!r}, wanted one flat list of integers')
  if value and (min(value) < 0 or max(value) >= vocab_size):
    wrong = next(token for token in value if not 0 <= token < vocab_size)
    raise RequestError(f'{name}: got {wrong}, wanted ids in 0..{vocab_size - 1}')
  return value


def _image_list(value: Any) -> list[str]:
  images = [] if value is None else [value] if isinstance(value, str) else value
  if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
    raise RequestError('image_data: wanted a list of base64 strings')
  return images


def _number(name: str, value: Any, low: float, high: float) -> float:
  if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
    raise RequestError(f'{name}: got {value!r}, wanted a number in {low:g}..{high:g}')
  return float(value)


def _whole(name: str, value: Any, low: int, high: int) -> int:
  if type(value) is not int or not low <= value <= high:
    raise RequestError(f'{name}: got {value!r}, wanted an integer in {low}..{high}')
  return value


def _biases(value: Any, vocab_size: int) -> tuple[tuple[int, float], ...]:
  if not isinstance(value, dict):
    raise RequestError(f'logit_bias: got {type(value).__name__}, wanted an object of id to number')
  pairs = []
  for key, bias in value.items():
    if not key.isdecimal() or int(key) >= vocab_size or isinstance(bias, bool) or not isinstance(bias, (int, float)):
      raise RequestError(f'logit_bias: got {key!r}: {bias!r}, wanted an id in 0..{vocab_size - 1} and a number')
    pairs.append((int(key), float(bias)))
  return tuple(sorted(pairs))
