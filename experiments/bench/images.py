"""Suite `images`: what one step of RL sends of its frames, inside its requests and by content."""

import asyncio
import math
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import psutil

from experiments.bench import servers
from experiments.bench.measuring import say, timed
from experiments.bench.recipe import BenchRecipe, ImagesBench
from paravt_jax import seeds
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.options import extended
from paravt_jax.orchestrator import parts
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.http import ClientOptions, ConnectionOptions
from paravt_jax.rollout.images import Images
from paravt_jax.rollout.router import Router
from paravt_jax.serving import images as by_content
from paravt_jax.serving.process import ServerProcess
from paravt_jax.serving.protocol import GenerateRequest, encode_image
from paravt_jax.video import patches

_SHARED = pathlib.Path('/dev/shm')  # memory that processes of one machine share, on Linux
_CHUNK = 256
_WORDS = 16  # of a prompt, beside its frames
Frames = tuple[np.ndarray, ...]


class CountingClient(Client):
  """Counts the bytes of all bodies that are sent, as 'sent_bytes'."""

  async def once(self, method: str, url: str, body: bytes | None = None, *rest: Any, **more: Any):
    """Sends a request once, as `Http.once`."""
    self.counts['sent_bytes'] += len(body or b'')
    return await super().once(method, url, body, *rest, **more)


class InsideRequests(Images):
  """Sends every frame in every request, as to a server that keeps none."""

  async def names(self, url: str, life: object, images: Sequence[np.ndarray]) -> None:
    """Returns None: the server is not asked."""


def suite(recipe: BenchRecipe) -> dict[str, Any]:
  """{'frames': ..., 'inside_requests': ..., 'by_content': ..., 'ratios'}; see configs/bench.py."""
  knobs = recipe.images
  folder = (
    pathlib.Path(recipe.model.folder) if recipe.model.folder else parts.tiny_model(recipe.seed)
  )
  tok = ChatTokenizer.load(folder)
  vocab = weights.read_config(folder).text.vocab
  video = film(knobs, recipe.seed)
  waves = list(step(knobs, recipe.seed, video))
  shown = [frame for wave in waves for frames in wave for frame in frames]
  different = list({id(frame): frame for frame in shown}.values())
  say(f'{len(shown)} frames in the requests of a step, {len(different)} different ones')
  found = {}
  for name in ('inside_requests', 'by_content'):
    say(f'{name}: {sum(map(len, waves))} requests of one new token')
    process = servers.embedded(recipe, folder, tok, **sizes(knobs, len(different)))
    try:
      found[name] = asyncio.run(_drive(process, tok, vocab, waves, name))
    finally:
      process.stop(servers.GRACE_S)
  one, other = found['inside_requests'], found['by_content']
  return {
    'shown_frames': len(shown),
    'different_frames': len(different),
    'requests': sum(map(len, waves)),
    **found,
    'sent_bytes_ratio': one['sent_bytes'] / other['sent_bytes'],
    'seconds_ratio': one['seconds'] / other['seconds'],
    'one_frame': _one_frame(different),
    'threads': recipe.threads,
  }


def film(knobs: ImagesBench, seed: int) -> tuple[Frames, Frames]:
  """Returns the overview, and one frame for each second of the video: gradients with grain."""
  y, x = np.mgrid[: knobs.side, : knobs.side][..., None].astype(np.float32)

  def frame(number: int) -> np.ndarray:
    rng = seeds.rng(seed, 'images', number)
    slow = 128 + 60 * np.sin(x / 30 + number) + 40 * np.cos(y / 17 + number)
    shade = slow + rng.uniform(-20, 20, 3)
    noise = rng.normal(0, knobs.grain, (knobs.side, knobs.side, 3))
    return np.clip(shade + noise, 0, 255).astype(np.uint8)

  overview = tuple(frame(-1 - number) for number in range(knobs.frames))
  return overview, tuple(frame(second) for second in range(knobs.seconds))


def step(knobs: ImagesBench, seed: int, video: tuple[Frames, Frames]) -> Iterator[list[Frames]]:
  """Yields waves of requests, each the frames that it shows: one turn of all rollouts, then the
  sub-agents of that turn.

  A crop begins at a whole second, anywhere in the video, and shows one frame a second.
  """
  overview, seconds = video
  for turn in range(knobs.turns):
    yield [overview] * knobs.rollouts
    rng = seeds.rng(seed, 'crops', turn)
    last = knobs.seconds - knobs.crop_frames
    starts = rng.integers(0, last + 1, knobs.rollouts * knobs.subagents)
    yield [seconds[start : start + knobs.crop_frames] for start in starts]


def sizes(knobs: ImagesBench, different: int) -> dict[str, Any]:
  """Returns engine options that hold the step."""
  tokens = (knobs.side // patches.SIDE) ** 2
  short, long = (
    math.ceil((frames * (tokens + 2) + 2 * _WORDS) / _CHUNK) * _CHUNK
    for frames in (knobs.crop_frames, max(knobs.frames, knobs.crop_frames))
  )
  lanes = ((short, knobs.rollouts * knobs.subagents), (max(long, short + _CHUNK), knobs.rollouts))
  return {
    'lanes': lanes,
    'chunk_tokens': _CHUNK,
    'pages': 8 * max(long, short + _CHUNK) // _CHUNK + 64,
    'image_slots': different + 1,
    'image_cache_mb': 1 + different * knobs.side**2 * 3 // 2**20,
    'max_image_patches': (knobs.side // patches.PATCH) ** 2,
    'max_body_mb': 256,
  }


async def _drive(
  process: ServerProcess, tok: ChatTokenizer, vocab: int, waves: list[list[Frames]], name: str
) -> dict[str, Any]:
  options = extended(ClientOptions, ConnectionOptions.published(), api_key=None)
  client = CountingClient(options, vocab, Router((process.url,)), image_id=tok.image_pad)
  async with client:
    if name == 'inside_requests':
      client.images = InsideRequests(client, options.image_cache)
    server = psutil.Process(process.pid)
    before, own, start = server.cpu_times(), time.process_time(), time.perf_counter()
    for number, wave in enumerate(waves):
      requests = [_request(tok, frames, number, n) for n, frames in enumerate(wave)]
      await asyncio.gather(*(client.generate(one) for one in requests))
    seconds, own, after = (
      time.perf_counter() - start,
      time.process_time() - own,
      server.cpu_times(),
    )
    counts = {name: client.counts[name] for name in ('sent_bytes', 'image_bytes', 'images_sent')}
    upload = await _upload(client, process.url, waves[0][0]) if name == 'by_content' else {}
    return (
      counts
      | upload
      | {
        'seconds': seconds,
        'client_cpu_seconds': own,
        'server_cpu_seconds': after.user + after.system - before.user - before.system,
      }
    )


async def _upload(client: CountingClient, url: str, frames: Frames) -> dict[str, float]:
  """{'upload_one_frame_seconds': ...}, while the server does nothing else."""
  named = dict(zip(await client.images.names(url, 'upload', frames) or (), frames))
  start = time.perf_counter()
  await client.images.send(url, 'upload', named)
  return {'upload_one_frame_seconds': (time.perf_counter() - start) / len(frames)}


def _request(tok: ChatTokenizer, frames: Frames, wave: int, number: int) -> GenerateRequest:
  image = [tok.vision_start, tok.image_pad, tok.vision_end]
  words = seeds.rng('words', wave, number).integers(200, 500, _WORDS)
  ids = image * len(frames) + [int(word) for word in words]
  return GenerateRequest(
    f'{wave}-{number}', ids, frames, 0.0, 1.0, -1, 1, (), tuple(tok.vision_ids), number, True
  )


def _one_frame(frames: Sequence[np.ndarray]) -> dict[str, Any]:
  """The parts of the way of a frame, each a mean over some: what each costs in this process."""
  some = frames[:32]
  one = some[0]
  figures: dict[str, Any] = {
    'pixels_bytes': one.nbytes,
    'png_base64_bytes': len(encode_image(one)),
    'encode_png_seconds': timed(lambda: [encode_image(frame) for frame in some]) / len(some),
    'name_seconds': timed(lambda: [by_content.content_name(frame) for frame in some]) / len(some),
    'shared_memory_seconds': None,
  }
  if _SHARED.is_dir():
    with tempfile.TemporaryDirectory(dir=_SHARED) as folder:
      file = pathlib.Path(folder) / 'frames.npy'

      def through() -> None:
        file.write_bytes(by_content.pack(np.stack(some)))
        by_content.unpack(file.read_bytes(), 1 << 18)

      figures['shared_memory_seconds'] = timed(through) / len(some)
  return figures
