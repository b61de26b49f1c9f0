"""Rollout servers: memory of a device that they take, and the seconds of a step's rollouts."""

import dataclasses

from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.plan import flops
from paravt_jax.orchestrator.plan.accelerators import GIB, Accelerator
from paravt_jax.orchestrator.plan.job import BYTES
from paravt_jax.orchestrator.plan.shapes import Shape, rollout_tokens
from paravt_jax.orchestrator.server_options import EmbeddedOptions, ServersOptions

# A server's arrays beside weights and caches: activations of a prefill, workspaces, graphs.
RESERVE_GIB = 3.0
# How much slower than its roofline a server decodes: scheduling, sampling, HTTP.
SLOWER = 4.0


@dataclasses.dataclass(frozen=True)
class Share:
  """What one server takes of each of its devices, in bytes."""

  weights: int
  cache: int  # keys and values, pages, image features
  reserve: int

  @property
  def total(self) -> int:
    """Returns the sum of the parts."""
    return self.weights + self.cache + self.reserve


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """What servers write for one step."""

  prompts: int
  episodes: int
  opening: int  # tokens of a prompt
  subagent: int  # tokens of a sub-agent's prompt
  shape: Shape


def cache_bytes(model: Config, dtype: str) -> int:
  """Returns the bytes of one token's keys and values."""
  text = model.text
  return 2 * text.layers * text.kv_heads * text.head_dim * BYTES[dtype]


def share_of(
  section: ServersOptions, model: Config, parameters: int, platform: str
) -> Share | None:
  """Returns the share of a server that the run starts, None for servers by URL.

  Args:
    platform: of the devices: 'cpu', 'cuda' or 'tpu'.
  """
  if section.kind == 'url':
    return None
  if section.kind == 'sglang':
    options, wide = section.sglang, section.sglang.tensor_parallel
    token = cache_bytes(model, options.dtype)
    cache = options.max_total_tokens * token // min(wide, model.text.kv_heads)
    cache += options.vision_cache_mb << 20
    return Share(parameters * BYTES[options.dtype] // wide, cache, _reserve(model))
  options, wide = section.embedded, section.embedded.tensor_parallel
  cache = _embedded_cache(options, model, platform)
  return Share(parameters * BYTES[options.dtype] // wide, cache, _reserve(model))


def _reserve(model: Config) -> int:
  """The reserve of a published size, less for a smaller model."""
  return int(min(RESERVE_GIB, model.text.width / 1000) * GIB)


def _embedded_cache(options: EmbeddedOptions, model: Config, platform: str) -> int:
  """Pages of keys and values, image features, and the columns of slots where they have any."""
  tokens = (options.pages + 1) * options.chunk_tokens
  if options.form(model.text.head_dim, platform) == 'slots':
    tokens += sum((context + options.decode_steps) * slots for context, slots in options.lanes)
  merged = options.max_image_patches // model.vision.merge**2
  levels = 1 + len(model.vision.taps)
  images = (options.image_slots + 1) * merged * levels * model.text.width
  # keys and values are split by heads, features are whole on every device
  split = tokens * cache_bytes(model, options.dtype) // options.tensor_parallel
  return split + images * BYTES[options.dtype]


def seconds_of(
  rollouts: Rollouts, model: Config, parameters: int, accelerator: Accelerator, servers: int
) -> tuple[float, float]:
  """Returns the range of seconds in which servers write the rollouts of one step.

  The prompt is computed once per group. Tokens are decoded for all episodes at once; each step
  reads the weights and the keys and values of all contexts. low is that roofline, high is SLOWER
  times as long.
  """
  shape, count = rollouts.shape, max(servers, 1)
  behind, written = rollout_tokens(shape)
  looks = rollouts.episodes * shape.calls
  tokens = rollouts.prompts * rollouts.opening + looks * rollouts.subagent
  tokens += rollouts.episodes * (behind - written)
  prefill = 2.0 * flops.text_weights(model.text) * tokens / accelerator.flops('bfloat16') / count
  # an episode waits for its own thoughts, then its sub-agents at once, then its answer
  steps = written + (shape.summary if shape.calls else 0)
  context = rollouts.opening + behind
  kept = (rollouts.episodes * context * cache_bytes(model, 'bfloat16')) / count
  decode = steps * (2.0 * parameters + kept) / accelerator.hbm_bytes
  low = prefill + decode
  return low, low * SLOWER
