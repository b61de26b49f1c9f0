"""The embedded engine against transformers' generate: the same weights, prompts, pixels and
lengths, in one process.

Both get the same cores and take turns, so that what else the machine does falls on both alike.
"""

import contextlib
import dataclasses
import os
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psutil

from experiments.bench.recipe import BenchRecipe
from paravt_jax import seeds
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.options import extended
from paravt_jax.serving.embedded import server
from paravt_jax.serving.embedded.engine import Engine, Job
from paravt_jax.serving.embedded.images import cut
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.embedded.prompts import expand
from paravt_jax.serving.protocol import GenerateReply, GenerateRequest, parse_generate
from paravt_jax.video import patches

_SIDE = 32  # of a frame: one merged token
_LOOK_S = 0.5  # at the cores, before the idlest are chosen


@dataclasses.dataclass(frozen=True, eq=False)
class Question:
  """A prompt: unexpanded ids and its frames, uint8[32, 32, 3] each."""

  ids: list[int]
  frames: tuple[np.ndarray, ...]


def question(tok: ChatTokenizer, frames: int, words: int, *address: Any) -> Question:
  """A prompt shaped like those of rollouts, a time stamp before every frame, then `words` tokens;
  all of it random by `address`.
  """
  rng = seeds.rng(*address)
  ids: list[int] = []
  for second in range(frames):
    ids += [
      *map(int, tok.encode(f'<{second}.0 seconds>', trusted=True)),
      tok.vision_start,
      tok.image_pad,
      tok.vision_end,
    ]
  ids += [int(token) for token in rng.integers(200, 500, words)]
  return Question(
    ids, tuple(rng.integers(0, 256, (_SIDE, _SIDE, 3), np.uint8) for _ in range(frames))
  )


@contextlib.contextmanager
def limit_cores(threads: int) -> Iterator[tuple[int, ...]]:
  """This thread, and what it starts meanwhile, runs on the `threads` idlest of its cores (where the
  system can say so).
  """
  if not hasattr(os, 'sched_setaffinity'):
    yield ()
    return
  before = os.sched_getaffinity(0)
  busy = psutil.cpu_percent(_LOOK_S, percpu=True)
  chosen = tuple(sorted(before, key=lambda core: busy[core] if core < len(busy) else 0.0)[:threads])
  os.sched_setaffinity(0, chosen)
  try:
    yield chosen
  finally:
    os.sched_setaffinity(0, before)


def measure(recipe: BenchRecipe, folder: pathlib.Path, tok: ChatTokenizer) -> dict[str, Any]:
  """Tokens per second of both, the better of their turns, prefill and image encoding included, and
  the ratio.

  The prompts are those of groups, as in rollouts; transformers cannot share a prompt, so its speed
  is that of distinct ones too. It runs on all threads and on one, and the faster counts. Beside it:
  our speed on distinct prompts.
  """
  knobs = recipe.generate

  def made(*at: int) -> Question:
    return question(tok, knobs.frames, knobs.words, recipe.seed, 'generate', *at)

  groups = lambda turn, group: [made(group, turn, n) for n in range(-(-knobs.batch // group))]
  asked = lambda turn, group: [one for one in groups(turn, group) for _ in range(group)][
    : knobs.batch
  ]
  seconds: dict[str, list[float]] = {
    'embedded': [],
    'embedded_distinct': [],
    'transformers': [],
    'transformers_one_thread': [],
  }
  with limit_cores(recipe.threads) as cores, _engine(recipe, folder) as engine:
    theirs = _transformers(folder)
    ours = lambda prompts, temperature: _ours(engine, prompts, knobs.new_tokens, temperature)
    first, _ = ours(asked(0, knobs.group), 0.0)  # greedy: both warm up, and must say the same
    same = (
      first[:, 0] == theirs(asked(0, knobs.group), knobs.new_tokens, 0.0, recipe.threads)[0][:, 0]
    )
    for turn in range(1, knobs.repeats + 1):
      prompts, rest = asked(turn, knobs.group), (knobs.new_tokens, knobs.temperature)
      seconds['transformers'].append(theirs(prompts, *rest, recipe.threads)[1])
      seconds['embedded'].append(ours(prompts, knobs.temperature)[1])
      seconds['transformers_one_thread'].append(theirs(prompts, *rest, 1)[1])
      seconds['embedded_distinct'].append(ours(asked(turn, 1), knobs.temperature)[1])
  speed = {name: knobs.batch * knobs.new_tokens / min(taken) for name, taken in seconds.items()}
  best = max(
    speed['transformers'], speed['transformers_one_thread']
  )  # more threads may be slower on a busy machine
  return {
    'tokens_per_second_ratio': speed['embedded'] / best,
    'distinct_prompts_ratio': speed['embedded_distinct'] / best,
    **{f'{name}_tokens_per_second': value for name, value in speed.items()},
    'greedy_agreement': float(np.mean(same)),
    'batch': knobs.batch,
    'new_tokens': knobs.new_tokens,
    'threads': len(cores) or recipe.threads,
  }


@contextlib.contextmanager
def _engine(recipe: BenchRecipe, folder: pathlib.Path) -> Iterator[Engine]:
  """A running engine on the server's recipe."""
  options = extended(
    ServerOptions,
    recipe.server.embedded,
    lanes=recipe.generate.lanes,
    decode_steps=recipe.generate.decode_steps,
    model_path=str(folder),
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key=None,
    served_name='bench',
    think_prefix='',
    eos_token_ids=(),
    compile_cache=None,
    parent_pid=None,
  )
  engine = server.build(options)
  life = threading.Thread(target=engine.run, daemon=True)
  life.start()
  try:
    yield engine
  finally:
    engine.call(engine.stop, lambda _: None)
    life.join()


def _ours(
  engine: Engine, asked: list[Question], new_tokens: int, temperature: float
) -> tuple[np.ndarray, float]:
  """(int[batch, new] ids, seconds): frames as arrays in, ids and log-probs out; no HTTP."""
  done: queue.SimpleQueue[tuple[int, GenerateReply]] = queue.SimpleQueue()
  start = time.perf_counter()
  decoded = {one: tuple(map(cut, one.frames)) for one in dict.fromkeys(asked)}  # once per group
  for n, one in enumerate(asked):
    images = decoded[one]
    prompt = expand(one.ids, images, engine.config.image_id, engine.options.chunk_tokens)
    body = GenerateRequest(
      str(n), one.ids, (), temperature, 1.0, -1, new_tokens, (), (), n, True
    ).to_json([])
    parsed = parse_generate(body, engine.config.text.vocab)
    lane = next(
      i
      for i, (context, _) in enumerate(engine.options.lanes)
      if len(prompt) + new_tokens <= context
    )
    engine.submit(
      Job(
        str(n),
        prompt,
        prompt,
        lane,
        parsed,
        n,
        frozenset(),
        lambda reply, _, n=n: done.put((n, reply)),
      )
    )
  replies = dict(done.get() for _ in asked)
  seconds = time.perf_counter() - start
  return np.array([replies[n].output_ids for n in range(len(asked))]), seconds


def _transformers(
  folder: pathlib.Path,
) -> Callable[[list[Question], int, float, int], tuple[np.ndarray, float]]:
  """generate(questions, new tokens, temperature, threads) -> (int[batch, new] ids, seconds); pixel
  values are passed directly.
  """
  # here and not above: the other suites need neither, and both take seconds to load
  import torch
  from transformers import Qwen3VLForConditionalGeneration
  from transformers.utils import logging

  logging.disable_progress_bar()
  loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
  model: Any = loaded.eval()  # the stub lacks `generate`

  def generate(
    asked: list[Question], new_tokens: int, temperature: float, threads: int
  ) -> tuple[np.ndarray, float]:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    ids = torch.tensor([one.ids for one in asked])
    found = [patches.patchify(frame) for one in asked for frame in one.frames]
    pixels = np.concatenate([rows for rows, _ in found]).astype(np.float32) / 127.5 - 1
    rows = (
      torch.from_numpy(pixels)
      .reshape(len(pixels), 3, 1, -1)
      .expand(-1, -1, 2, -1)
      .reshape(len(pixels), -1)
    )
    how = (
      {'do_sample': True, 'temperature': temperature, 'top_k': 0, 'top_p': 1.0}
      if temperature
      else {'do_sample': False}
    )
    with torch.inference_mode():
      out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == model.config.image_token_id).int(),
        pixel_values=rows, image_grid_thw=torch.tensor([[1, *grid] for _, grid in found]), max_new_tokens=new_tokens,
        min_new_tokens=new_tokens, **how)  # fmt: skip
    return out[:, ids.shape[1] :].numpy(), time.perf_counter() - start

  return generate
