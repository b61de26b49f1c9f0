"""What the embedded server is started with. Numbers live in recipes; here is only what is
allowed.
"""

import dataclasses
import json
from typing import Any

from paravt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class ServerOptions:
  """All of it is given; nothing has a default.

  lanes: (context tokens, slots) each, smallest first; a request goes to the first that holds prompt
  + new tokens; the slots of a lane decode together. Lanes of the same shape share their requests:
  those that are empty cost nothing, the others run side by side, and which of them a request gets
  does not change its result. chunk_tokens: prompt tokens of a page; contexts are multiples of it.
  prefill_rows: chunks per prefill call. pages: budget of the prefix cache, in chunks. decode_steps:
  tokens per dispatch. image_batch: images per call of the vision tower; image_slots: images whose
  features are kept; max_image_patches: 16x16 patches of the largest image. bias_rows: distinct
  logit_bias objects in use at once. max_stop_ids: stop ids of one request. port 0 picks a free one;
  port_file gets the bound port. compile_cache: folder of compiled programs, null for none.
  parent_pid: the server ends when this process does, null for never.
  """

  model_path: str
  host: str
  port: int
  port_file: str | None
  api_key: str | None
  dtype: str
  eos_token_ids: tuple[int, ...]
  lanes: tuple[tuple[int, int], ...]
  chunk_tokens: int
  prefill_rows: int
  pages: int
  decode_steps: int
  image_batch: int
  image_slots: int
  max_image_patches: int
  bias_rows: int
  max_stop_ids: int
  max_body_mb: int
  compile_cache: str | None
  parent_pid: int | None

  def __post_init__(self):
    _check(self)

  @classmethod
  def from_json(cls, text: str) -> 'ServerOptions':
    """Reads what `to_json` wrote.

    Raises:
      ConfigError: no JSON object, an unknown or missing name, or a value that is not allowed.
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
    """The text for `--options`."""
    return json.dumps(dataclasses.asdict(self))

  @property
  def context(self) -> int:
    """Tokens of the largest lane."""
    return self.lanes[-1][0]


def _check(options: ServerOptions) -> None:
  for name in (
    'chunk_tokens',
    'prefill_rows',
    'pages',
    'decode_steps',
    'image_batch',
    'image_slots',
    'max_image_patches',
    'bias_rows',
    'max_stop_ids',
    'max_body_mb',
  ):
    value = getattr(options, name)
    if type(value) is not int or value < 1:
      raise ConfigError(f'server.{name}: got {value!r}, wanted a positive integer')
  if not options.lanes or list(options.lanes) != sorted(options.lanes):
    raise ConfigError(
      f'server.lanes: got {options.lanes}, wanted (context, slots) pairs, smallest context first'
    )
  for context, slots in options.lanes:
    if context < 1 or context % options.chunk_tokens or slots < 1:
      raise ConfigError(
        f'server.lanes: got ({context}, {slots}), wanted a context that is a multiple of '
        'chunk_tokens '
        f'({options.chunk_tokens}) and at least one slot'
      )
  claims: dict[str, tuple[Any, bool, str]] = {
    'pages': (
      options.pages,
      options.pages >= options.context // options.chunk_tokens,
      f'at least {options.context // options.chunk_tokens}, one full context',
    ),
    'dtype': (options.dtype, options.dtype in ('float32', 'bfloat16'), "'float32' or 'bfloat16'"),
    'max_image_patches': (
      options.max_image_patches,
      options.max_image_patches % 4 == 0,
      'a multiple of 4',
    ),
    'port': (
      options.port,
      type(options.port) is int and 0 <= options.port < 65536,
      '0..65535, 0 picks a free one',
    ),
  }
  for name, (value, holds, wanted) in claims.items():
    if not holds:
      raise ConfigError(f'server.{name}: got {value!r}, wanted {wanted}')
