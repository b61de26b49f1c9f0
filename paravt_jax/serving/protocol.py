"""SGLang's native HTTP protocol, which both servers use: `/generate`, its replies, and images.

Ids are sent unchanged, with ONE unexpanded `<|image_pad|>` per image. The reply's ids include the
stop token.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from paravt_jax.errors import RolloutError
from paravt_jax.serving import fields, images
from paravt_jax.serving.fields import RequestError
from paravt_jax.video import image_files, patches

BANNED_BIAS = -1e9  # as logit_bias: far below any logit, and finite because JSON has no infinity
FIRST_VERSION = 'default'  # SGLang's name for weights that were never updated; here version 0
LEAST_TEMPERATURE = (
  1e-6  # Below it SGLang is greedy, and so are we: logits / temperature must fit float32.
)

_MOST_PATCHES = 1 << 18  # 8192x8192; servers may have a lower limit
_MOST_PIXELS = 1 << 24  # of an image that is resized: 4096x4096
# What Pillow raises for a header of far too many pixels.
_BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)

FINISH_REASONS = ('stop', 'length', 'abort')
_SAMPLING_KEYS = frozenset(
  {
    'temperature',
    'top_p',
    'top_k',
    'max_new_tokens',
    'stop_token_ids',
    'logit_bias',
    'sampling_seed',
    'ignore_eos',
    'skip_special_tokens',
    'spaces_between_special_tokens',
    'n',
  }
)
_REQUEST_KEYS = frozenset(
  {
    'rid',
    'input_ids',
    'image_data',
    'sampling_params',
    'return_logprob',
    'logprob_start_len',
    'stream',
    'return_text_in_logprobs',
    'top_logprobs_num',
  }
)


@dataclasses.dataclass(frozen=True)
class GenerateRequest:
  """One context to continue by sampling."""

  rid: str  # unique among running requests
  input_ids: list[int]  # unexpanded
  # uint8[H, W, 3] each, one per image pad, in order; sides multiples of 32
  images: tuple[np.ndarray, ...]
  temperature: float  # 0 is greedy
  top_p: float  # 1 is off
  top_k: int  # -1 is off
  max_new_tokens: int
  stop_token_ids: tuple[int, ...]  # end the reply and belong to it
  banned_ids: tuple[int, ...]  # are never sampled
  seed: int  # makes the result repeatable
  ignore_eos: bool  # whether the server's end-of-text ids do not end the reply

  def to_json(self, encoded_images: Sequence[object] | None = None) -> dict[str, Any]:
    """Returns the body of POST /generate.

    `encoded_images` (from `encode_image`) avoids encoding the same frames again. Entries may also
    be names by content, see `serving.images`.
    """
    image_data = (
      [encode_image(image) for image in self.images] if encoded_images is None else encoded_images
    )
    body = {
      'rid': self.rid,
      'input_ids': [int(token) for token in self.input_ids],
      'return_logprob': True,
      'sampling_params': {
        'temperature': float(self.temperature),
        'top_p': float(self.top_p),
        'top_k': int(self.top_k),
        'max_new_tokens': int(self.max_new_tokens),
        'stop_token_ids': [int(token) for token in self.stop_token_ids],
        'logit_bias': {str(int(token)): BANNED_BIAS for token in self.banned_ids},
        'sampling_seed': int(self.seed),
        'ignore_eos': bool(self.ignore_eos),
      },
    }
    if image_data:
      body['image_data'] = list(image_data)
    return body


@dataclasses.dataclass(frozen=True)
class GenerateReply:
  """The sampled tokens of one request."""

  output_ids: list[int]  # n ids, stop token included
  logprobs: list[float]  # n floats: of logits / temperature, with banned ids masked
  finish: str  # stop | length | abort
  prompt_tokens: int  # images expanded
  cached_tokens: int  # of the prompt, read from the cache
  image_tokens: int  # of the prompt, from images
  weight_versions: list[tuple[int, int, int]]  # (version, start, end) spans over the ids, in order
  retractions: int = 0  # how often an update interrupted it

  @classmethod
  def from_json(cls, reply: Mapping[str, Any]) -> 'GenerateReply':
    """Reads a reply of either server.

    Raises:
      RolloutError: a field is missing, or ids and log-probs differ in number.
    """
    try:
      meta = reply['meta_info']
      ids = [int(token) for token in reply['output_ids']]
      logprobs = [float(entry[0]) for entry in meta.get('output_token_logprobs') or ()]
      finish = meta['finish_reason']['type']
      # (version, start, end) spans over the ids; one span if no update interrupted the request.
      whole = {'version': meta.get('weight_version', FIRST_VERSION), 'start': 0, 'end': len(ids)}
      spans = meta.get('weight_versions') or [whole]
      versions = [
        (version_number(s['version']), int(s['start']), int(s['end']))
        for s in spans
        if s['end'] > s['start']
      ]
      counts = [
        int(meta.get(name) or 0)
        for name in ('prompt_tokens', 'cached_tokens', 'image_tokens', 'num_retractions')
      ]
    # a part of another type has no .get; no integer is as large as infinity, which 1e400 is read as
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
      raise RolloutError(
        f'server reply: got {str(reply)[:200]!r}, wanted output_ids and meta_info as SGLang '
        '0.5.21 sends them '
        f'({type(error).__name__}: {error})'
      ) from error
    if len(logprobs) != len(ids):
      raise RolloutError(
        f'server reply: got {len(ids)} ids but {len(logprobs)} log-probs; send return_logprob=true'
      )
    return cls(ids, logprobs, finish, counts[0], counts[1], counts[2], versions, counts[3])

  def to_json(self, rid: str, reason: Mapping[str, Any] | None, latency: float) -> dict[str, Any]:
    """Returns the body of a server's reply.

    `reason` is SGLang's finish_reason object, or None if more tokens follow. Latency is in seconds.
    """
    return {
      'text': '',
      'output_ids': self.output_ids,
      'meta_info': {
        'id': rid,
        'finish_reason': None if reason is None else dict(reason),
        'prompt_tokens': self.prompt_tokens,
        'completion_tokens': len(self.output_ids),
        'cached_tokens': self.cached_tokens,
        'image_tokens': self.image_tokens,
        'weight_version': str(self.weight_versions[-1][0])
        if self.weight_versions
        else FIRST_VERSION,
        'weight_versions': [
          {'version': str(v), 'start': start, 'end': end} for v, start, end in self.weight_versions
        ],
        'num_retractions': self.retractions,
        'output_token_logprobs': [
          [logprob, token, None] for logprob, token in zip(self.logprobs, self.output_ids)
        ],
        'e2e_latency': latency,
      },
    }

  def versions(self) -> np.ndarray:
    """Returns int32[n]: the weight version that sampled each token."""
    versions_T = np.zeros(len(self.output_ids), np.int32)
    for version, start, end in self.weight_versions:
      versions_T[start:end] = version
    return versions_T


def version_number(text: str | int) -> int:
  """Returns a weight version as a number. SGLang's 'default' (never updated) is 0.

  Raises ValueError for anything else.
  """
  return 0 if text == FIRST_VERSION else fields.version('weight_version', text)


def encode_image(image: np.ndarray) -> str:
  """Encodes uint8[H, W, 3] as base64 PNG. It is lossless, so the server sees the learner's exact
  pixels.
  """
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(buffer, 'PNG', compress_level=1)
  return base64.b64encode(buffer.getvalue()).decode('ascii')


def decode_image(text: str, max_patches: int = _MOST_PATCHES) -> np.ndarray:
  """Decodes base64 PNG or JPEG (with or without a data: header) to uint8[H, W, 3].

  `image_files.rgb` converts any color mode.

  Raises:
    RequestError: the text is not base64, or not a still PNG or JPEG, or it is incomplete. Also if a
    side is not a multiple of 32 (nothing is resized here), or if the image has more than
    `max_patches` patches of 16x16. The size is read from the header before anything is decoded.
  """

  def check(image: Image.Image) -> None:
    images.check_size('image_data', image.height, image.width, max_patches)

  return _decoded('image_data', text, check)


def decode_and_resize(where: str, text: str, max_patches: int) -> np.ndarray:
  """Decodes an image of any size, and resizes it by the rule for frames (`patches.target_size`).

  An image of `decode_image` comes back as it is.

  Raises:
    RequestError: the text is no image, or the image has more than 4096x4096 pixels.
  """

  def check(image: Image.Image) -> None:
    if image.width * image.height > _MOST_PIXELS or not image.width * image.height:
      raise RequestError(
        f'{where}: got an image of {image.height}x{image.width}, wanted at most {_MOST_PIXELS} '
        'pixels; send it smaller'
      )

  pixels = _decoded(where, text, check)
  height, width, _ = pixels.shape
  most = max_patches * patches.PATCH**2
  size = patches.target_size(height, width, patches.SIDE**2, most)
  return patches.resize(pixels[None], size)[0]


def _decoded(where: str, text: str, check: Callable[[Image.Image], None]) -> np.ndarray:
  payload = text.partition(',')[2] if text.startswith('data:') else text
  try:
    with Image.open(
      io.BytesIO(base64.b64decode(payload, validate=True)), formats=('PNG', 'JPEG')
    ) as image:
      frames = getattr(image, 'n_frames', 1)
      if image.format == 'PNG' and frames > 1:
        raise RequestError(f'{where}: got an animated PNG of {frames} images, wanted a still one')
      check(image)
      return image_files.rgb(image)
  except _BOMB as error:
    raise RequestError(
      f'{where}: got an image of more than {Image.MAX_IMAGE_PIXELS} pixels; send it smaller'
    ) from error
  except image_files.FAULTS as error:
    raise RequestError(
      f'{where}: {text[:24]!r}... is not a base64 PNG or JPEG ({type(error).__name__})'
    ) from error


@dataclasses.dataclass(frozen=True)
class ParsedGenerate:
  """A `/generate` body that passed the checks."""

  rid: str | None  # None where the body has none
  input_ids: list[int]
  image_data: list[str]  # base64 images, or names by content
  temperature: float
  top_p: float
  top_k: int
  max_new_tokens: int
  stop_token_ids: tuple[int, ...]
  logit_bias: tuple[tuple[int, float], ...]  # (id, nats); an id at BANNED_BIAS or less is banned
  seed: int | None  # None where the body has none
  ignore_eos: bool
  return_logprob: bool
  stream: bool


def parse_generate(body: Any, vocab_size: int) -> ParsedGenerate:
  """Checks a `/generate` body and fills in SGLang's defaults.

  Raises:
    RequestError: an unknown key, a wrong type, or a value out of range. One line names it.
  """
  if not isinstance(body, dict):
    raise RequestError(f'/generate: got {fields.short_repr(body)}, wanted a JSON object')
  fields.refuse_unknown('/generate', body, _REQUEST_KEYS)
  params = fields.section('sampling_params', body.get('sampling_params'))
  fields.refuse_unknown('sampling_params', params, _SAMPLING_KEYS)
  _refuse_unserved(body, params)
  input_ids = fields.ids('input_ids', body.get('input_ids'), vocab_size)
  if not input_ids:
    raise RequestError('input_ids: got no ids, wanted at least one')
  temperature = fields.number('temperature', params.get('temperature', 1.0), 0.0, 100.0)
  seed, rid = params.get('sampling_seed'), body.get('rid')
  # Missing fields get SGLang's defaults.
  return ParsedGenerate(
    rid=None if rid is None else fields.request_id('rid', rid),
    input_ids=input_ids,
    image_data=fields.texts('image_data', body.get('image_data')),
    temperature=temperature if temperature >= LEAST_TEMPERATURE else 0.0,
    top_p=fields.number('top_p', params.get('top_p', 1.0), 1e-6, 1.0),
    top_k=fields.whole('top_k', params.get('top_k', -1), -1, 2**31 - 1),
    max_new_tokens=fields.whole('max_new_tokens', params.get('max_new_tokens', 128), 1, 2**31 - 1),
    stop_token_ids=tuple(
      fields.ids('stop_token_ids', _value_or(params, 'stop_token_ids', []), vocab_size)
    ),
    logit_bias=fields.biases('logit_bias', params.get('logit_bias'), vocab_size),
    seed=None if seed is None else fields.whole('sampling_seed', seed, 0, 2**63 - 1),
    ignore_eos=fields.flag('ignore_eos', _value_or(params, 'ignore_eos', False)),
    return_logprob=fields.flag('return_logprob', _value_or(body, 'return_logprob', False)),
    stream=fields.flag('stream', _value_or(body, 'stream', False)),
  )


def _value_or(values: Mapping[str, Any], name: str, default: Any) -> Any:
  """Returns a value, or the default if it is missing or null, as in SGLang."""
  value = values.get(name)
  return default if value is None else value


def _refuse_unserved(body: Mapping[str, Any], params: Mapping[str, Any]) -> None:
  """Checks fields without effect, and refuses fields that this server does not support.

  Unsupported are several samples of one request, and top log-probs of a token.
  """
  if fields.whole('n', params.get('n', 1), 0, 2**31 - 1) != 1:
    raise RequestError(
      f'n: got {params["n"]}, wanted 1: n > 1 is not served; send n requests (their prefix '
      'is shared)'
    )
  if fields.whole('top_logprobs_num', _value_or(body, 'top_logprobs_num', 0), 0, 2**31 - 1):
    raise RequestError(
      f'top_logprobs_num: got {body["top_logprobs_num"]}, wanted 0: only the log-probs of '
      'what was sampled are served'
    )
  fields.whole('logprob_start_len', _value_or(body, 'logprob_start_len', -1), -1, 2**31 - 1)
  fields.flag('return_text_in_logprobs', _value_or(body, 'return_text_in_logprobs', False))
  for name in ('skip_special_tokens', 'spaces_between_special_tokens'):
    fields.flag(name, _value_or(params, name, True))
