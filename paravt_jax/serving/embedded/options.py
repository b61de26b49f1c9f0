"""Options of the embedded server. Recipes have the numbers, this module the limits."""

import dataclasses
import json
from typing import Annotated

from paravt_jax.errors import ConfigError
from paravt_jax.options import COUNT, DTYPE, LANES, Options, multiple_of, one_of
from paravt_jax.serving.embedded import layouts


@dataclasses.dataclass(frozen=True)
class EngineOptions(Options):
  """Sizes of the embedded server's engine."""

  dtype: Annotated[str, DTYPE]  # of weights, cache and products
  # (context tokens, slots) each, smallest context first. A request goes to the first lane that
  # holds its prompt and new tokens. Lanes of one shape share their requests: empty ones cost
  # nothing, the others run side by side, and which one a request gets does not change its result.
  lanes: Annotated[tuple[tuple[int, int], ...], LANES]
  # how keys and values lie, and what attends over them (layouts.py). auto: slots on a CPU, ragged
  # on a TPU, triton on a GPU, and pages where a kernel does not take the model
  attention: Annotated[str, one_of('auto', *layouts.FORMS)]
  chunk_tokens: Annotated[int, COUNT]  # prompt tokens of a page; contexts are multiples of it
  prefill_rows: Annotated[int, COUNT]  # chunks per prefill call
  # chunks that may be held: of the prefix cache, and without slots of running contexts too
  pages: Annotated[int, COUNT]
  decode_steps: Annotated[int, COUNT]  # tokens per dispatch
  image_batch: Annotated[int, COUNT]  # images per call of the vision tower
  image_slots: Annotated[int, COUNT]  # images whose features are kept
  # images whose pixels are kept, in MiB: requests may name them instead of sending them again
  image_cache_mb: Annotated[int, COUNT]
  max_image_patches: Annotated[int, multiple_of(4)]  # 16x16 patches of the largest image
  bias_rows: Annotated[int, COUNT]  # distinct logit_bias objects in use at once
  max_stop_ids: Annotated[int, COUNT]  # stop ids of one request
  max_body_mb: Annotated[int, COUNT]  # of a request, in MiB
  tensor_parallel: Annotated[int, COUNT]  # devices that share the model: heads, units, vocabulary

  def form(self, head_dim: int, platform: str) -> str:
    """Returns the form of keys and values (layouts.FORMS) on the devices of a platform.

    Args:
      head_dim: width of the model's heads.
      platform: 'cpu', 'gpu', 'cuda' or 'tpu'.

    Raises:
      ConfigError: it is a kernel that does not take the model, or of other devices.
    """
    if self.attention == 'auto':
      return layouts.choose(platform, self.dtype, self.chunk_tokens, head_dim)
    what = layouts.unmet(self.attention, platform, self.dtype, self.chunk_tokens, head_dim)
    if what:
      raise ConfigError(
        f'server.embedded.attention={self.attention!r}: its kernel wants {what}; take auto, slots '
        'or pages'
      )
    return self.attention

  @classmethod
  def published(cls) -> 'EngineOptions':
    """Returns sizes for the 8B model on one 80 GB device."""
    return EngineOptions(
      dtype='bfloat16',
      lanes=((8192, 32), (32768, 16)),
      attention='auto',
      chunk_tokens=256,
      prefill_rows=4,
      pages=1280,
      decode_steps=4,
      image_batch=64,
      image_slots=4096,
      image_cache_mb=1024,
      max_image_patches=196,
      bias_rows=4,
      max_stop_ids=4,
      max_body_mb=256,
      tensor_parallel=1,
    )


@dataclasses.dataclass(frozen=True)
class ServerOptions(EngineOptions):
  """All that one embedded server is started with."""

  model_path: str  # a Hugging Face folder
  host: str  # where it listens
  port: int  # 0: a free one
  port_file: str | None  # gets the port
  # that requests must bring; a process gets it on its stdin, never on its command line
  api_key: str | None = dataclasses.field(repr=False)
  served_name: str  # the model's name behind the OpenAI protocol
  think_prefix: str  # the beginning of each turn behind the OpenAI protocol; '' for none
  eos_token_ids: tuple[int, ...]  # that end a reply
  compile_cache: str | None  # folder of compiled programs
  parent_pid: int | None  # the server ends when this process does

  def __post_init__(self) -> None:
    super().__post_init__()
    _check(self)

  @classmethod
  def from_json(cls, text: str) -> 'ServerOptions':
    """Reads the output of `to_json`.

    Raises:
      ConfigError: not a JSON object, an unknown or missing name, or a forbidden value.
    """
    try:
      given = json.loads(text)
    except json.JSONDecodeError as error:
      raise ConfigError(
        f'--options: got no JSON ({error}), wanted an object of ServerOptions'
      ) from error
    names = [field.name for field in dataclasses.fields(cls)]
    wrong = sorted(set(given) ^ set(names))
    if wrong:
      raise ConfigError(
        f'--options: {wrong[0]!r} is {"unknown" if wrong[0] in given else "missing"}; wanted '
        f'exactly {names}'
      )
    given['lanes'] = tuple(tuple(lane) for lane in given['lanes'])
    given['eos_token_ids'] = tuple(given['eos_token_ids'])
    return cls(**given)

  def to_json(self) -> str:
    """Returns the text for `--options`: everything but the key, which is None there."""
    return json.dumps(dataclasses.asdict(self) | {'api_key': None})

  @property
  def context(self) -> int:
    """Returns the tokens of the largest lane."""
    return self.lanes[-1][0]


def _check(options: ServerOptions) -> None:
  if list(options.lanes) != sorted(options.lanes):
    options.refuse('lanes', '(context, slots) pairs, smallest context first')
  if any(context % options.chunk_tokens for context, _ in options.lanes):
    contexts = f'contexts that are multiples of chunk_tokens ({options.chunk_tokens})'
    options.refuse('lanes', contexts)
  # without slots' own columns, a slot has a copy of its context's last page
  least = options.context // options.chunk_tokens + 1
  if options.pages < least:
    options.refuse('pages', f'at least {least}, one full context and one more')
  if not 0 <= options.port < 65536:
    options.refuse('port', '0..65535, 0 picks a free one')
