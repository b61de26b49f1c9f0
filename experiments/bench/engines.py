"""Engines that suite `gaps` compares: each answers requests on the same weights in its own way.

The learner and transformers run in this process, a whole forward pass per token. The servers are
asked over HTTP, several requests at once, as in a run.
"""

import asyncio
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orjson

from experiments.bench import drive
from paravt_jax import packing, seeds
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.serving.protocol import GenerateReply, GenerateRequest, encode_image
from paravt_jax.video import patches

# int[T] expanded ids, and their images -> float32[T, V] log-probs after each id at temperature 1
Forward = Callable[[np.ndarray, tuple[np.ndarray, ...]], np.ndarray]
Answer = Callable[[Sequence[GenerateRequest]], list[GenerateReply]]


class Capacity(NamedTuple):
  """What one compiled program of `learner` holds."""

  tokens: int
  images: int


def learner(config: Config, params: Any, dtype: str, backend: str, capacity: Capacity) -> Forward:
  """Returns the learner's forward pass: hidden states in `dtype`, logits in float32."""
  run = jax.jit(
    functools.partial(_logprobs, config, dtype=jnp.dtype(dtype), backend=backend),
  )
  # by default GPUs and TPUs multiply float32 in fewer bits
  precision = 'highest' if dtype == 'float32' else 'default'

  def forward(ids: np.ndarray, images: tuple[np.ndarray, ...]) -> np.ndarray:
    # ids and images are filled up, so that one program serves all; later ids change nothing
    filled = np.concatenate([ids, np.zeros(capacity.tokens - len(ids), ids.dtype)])
    inputs = model.single_inputs(config, filled, images)
    free = capacity.images - len(images)
    inputs = inputs._replace(
      patches_BNXPC=np.pad(inputs.patches_BNXPC, ((0, 0), (0, free), (0, 0), (0, 0), (0, 0))),
      grids_BN2=np.pad(inputs.grids_BN2, ((0, 0), (0, free), (0, 0))),
    )
    with jax.default_matmul_precision(precision):
      return np.asarray(run(params, inputs))[: len(ids)]

  return forward


def _logprobs(config, params, inputs, *, dtype, backend) -> jax.Array:
  x_BTD = model.hidden(
    config, params, inputs, dtype=dtype, remat='none', freeze_vision=True, backend=backend
  )
  head_DV = model.head(params, config).astype(dtype)
  logits_TV = jnp.einsum('TD,DV->TV', x_BTD[0], head_DV, preferred_element_type=jnp.float32)
  return jax.nn.log_softmax(logits_TV)


def transformers(folder: str, dtype: str, threads: int) -> Forward:
  """Returns the forward pass of transformers on some threads of the CPU."""
  # heavy, and an extra of the package: only the benches need it
  import torch
  from transformers import Qwen3VLForConditionalGeneration

  torch.set_num_threads(threads)
  loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=getattr(torch, dtype))
  theirs: Any = loaded.eval()  # the stub lacks `__call__`

  def forward(ids: np.ndarray, images: tuple[np.ndarray, ...]) -> np.ndarray:
    given = torch.tensor(ids)[None].long()
    found = [patches.patchify(image) for image in images]
    extra = {}
    if found:
      pixels = np.concatenate([rows for rows, _ in found]).astype(np.float32) / 127.5 - 1
      # an image stands for both frames of a pair
      pairs = torch.from_numpy(pixels).reshape(len(pixels), 3, 1, -1).expand(-1, -1, 2, -1)
      extra['pixel_values'] = pairs.reshape(len(pixels), -1)
      extra['image_grid_thw'] = torch.tensor([[1, *grid] for _, grid in found])
    kinds = (given == theirs.config.image_token_id).int()
    with torch.inference_mode():
      out = theirs(input_ids=given, mm_token_type_ids=kinds, use_cache=False, **extra).logits[0]
    return torch.log_softmax(out.float(), -1).numpy()

  return forward


def expanded(request: GenerateRequest, image_id: int) -> np.ndarray:
  """int32[n]: the request's ids, one placeholder per merged token."""
  sample = packing.Sample(np.asarray(request.input_ids, np.int32), request.images, {})
  return packing.expand(sample, image_id).ids


def allowed(logprobs: np.ndarray, request: GenerateRequest) -> np.ndarray:
  """Log-probs [..., V] of what may be sampled, at the request's temperature (greedy: at 1)."""
  found = np.array(logprobs, np.float64) / (request.temperature or 1.0)
  found[..., list(request.banned_ids)] = -np.inf
  return found - np.logaddexp.reduce(found, axis=-1, keepdims=True)


def local(forward: Forward, image_id: int) -> Answer:
  """Returns an engine that samples by a forward pass per token."""

  def one(request: GenerateRequest) -> GenerateReply:
    ids, rng = expanded(request, image_id), seeds.rng(request.seed, 'gaps', request.rid)
    chosen: list[int] = []
    logprobs: list[float] = []
    for _ in range(request.max_new_tokens):
      last_V = allowed(forward(ids, request.images)[-1], request)
      noise_V = rng.gumbel(size=last_V.shape) if request.temperature else 0.0
      chosen.append(int((last_V + noise_V).argmax()))
      logprobs.append(float(last_V[chosen[-1]]))
      ids = np.append(ids, np.int32(chosen[-1]))
    return GenerateReply(chosen, logprobs, 'length', len(ids), 0, 0, [(0, 0, len(chosen))])

  return lambda requests: list(map(one, requests))


def served(url: str, concurrency: int) -> Answer:
  """Returns a running server as an engine."""

  async def ask(requests: Sequence[GenerateRequest]) -> list[GenerateReply]:
    async with drive.session(url) as http:
      bodies = [
        orjson.dumps(one.to_json([encode_image(frame) for frame in one.images])) for one in requests
      ]
      return (await drive.timed(http, bodies, concurrency))[1]

  return lambda requests: asyncio.run(ask(requests))


def rows(forward: Forward, requests: Sequence[GenerateRequest], image_id: int) -> np.ndarray:
  """float64[requests, V]: log-probs of the first token that follows each request."""
  return np.stack(
    [allowed(forward(expanded(one, image_id), one.images)[-1], one) for one in requests]
  )


def gaps(replies: Sequence[GenerateReply], rows_RV: np.ndarray) -> np.ndarray:
  """float64[replies]: |log-prob - that of `rows`| of the first token of each reply, in nats."""
  found = [
    abs(reply.logprobs[0] - row_V[reply.output_ids[0]]) for reply, row_V in zip(replies, rows_RV)
  ]
  return np.array(found)
