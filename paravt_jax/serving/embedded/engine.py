"""Continuous batching.

A request passes these stages: it waits, is staged (its pages are found or computed), is admitted to
a slot, is decoded, and is answered.

One thread runs `Engine.run` and owns all state. Other threads only `submit` jobs and `call`
functions, which the engine runs between dispatches. The device runs programs in submission order.
So a program may use a page once the program that fills it is queued.
"""

import concurrent.futures
import queue
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.serving.embedded import batches, compiled, layouts, programs
from paravt_jax.serving.embedded.cache import Pool
from paravt_jax.serving.embedded.jobs import COUNTS, Block, Chunk, Job, Lane
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.embedded.prompts import Prompt, extend


class Engine:
  """Runs the continuous batching that the module describes.

  `version` is the version of the current weights. `counts` are sums since the start.
  """

  def __init__(
    self,
    config: Config,
    params: Any,
    version: int,
    options: ServerOptions,
    devices: Sequence[Any] | None = None,
    layout: layouts.Layout | None = None,
  ):
    """Puts the model on its devices and compiles all programs.

    Args:
      params: as `weights.load_hf` returns them.
      version: of these weights.
      devices: see `programs.place_on`.
      layout: instead of the one that `options.attention` names, for tests.
    """
    self.options = options
    self.config = config
    self.version = version
    if layout is None:
      layout = layouts.layout_of(options.form(config.text.head_dim, jax.default_backend()))
    place = programs.place_on(config, options.tensor_parallel, devices)
    self.shapes = s = programs.shapes_of(config, options, place, layout)
    self.params = programs.prepare(config, params, options.dtype, s.place)
    shapes = tuple(dict.fromkeys(options.lanes))
    self.programs = compiled.Programs(s, self.params, shapes)
    self.pages = Pool(options.pages)
    self.features = Pool(options.image_slots)
    self.biases = Pool(options.bias_rows)
    self._page_store, self._feature_store = programs.new_pool(s), programs.new_features(s)
    self._bias_rows = np.zeros((options.bias_rows, config.text.vocab), np.float32)
    self._bias_table = self._on_devices(self._bias_rows)
    self.lanes = [Lane(s, *shape, options.lanes.count(shape)) for shape in shapes]
    self._lane_of = [self.lanes[shapes.index(shape)] for shape in options.lanes]
    # One after the other on a mesh, where collectives of two programs must not meet, and where
    # all blocks write to the same pages.
    alone = options.tensor_parallel > 1 or s.layout.paged
    threads = 1 if alone else len(options.lanes)
    self._threads = concurrent.futures.ThreadPoolExecutor(threads, 'decode')
    self.waiting: deque[Job] = deque()
    self.paused = False
    self.counts = dict.fromkeys(COUNTS, 0)
    self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    self._chunks: deque[Chunk] = deque()
    self._images: dict[bytes, Any] = {}  # images that wait for the vision tower
    # page key -> number of the chunk, for pages that are not computed yet
    self._tickets: dict[bytes, int] = {}
    self._queued = self._computed = 0
    self._weights = 0  # times that they were changed
    self._reserved = 0  # pages that were reserved for new tokens
    self._update: Callable[[], None] | None = None
    self._stopping = False

  def _on_devices(self, table: np.ndarray) -> jax.Array:
    """Returns a copy of a host table, whole on every device."""
    place = self.shapes.sharding(table.shape)
    return jnp.array(table) if place is None else jax.device_put(table.copy(), place)

  def warm_up(self) -> None:
    """Runs every program once, so that the first request is not slower. Call it before `run`."""
    self._page_store = self.programs.prefill(
      self.params,
      self._page_store,
      self._feature_store,
      *batches.of_chunks(self.shapes, [], self.features.place),
    )
    for number, lane in enumerate(self.lanes):
      rows = programs.admission(self.shapes, lane.context // self.shapes.chunk)
      for block in lane.blocks:
        self._page_store = self.programs.admit(number, block, self._page_store, rows, 0)
        keep_S = np.zeros(block.slots, bool)
        self._page_store, *_ = self.programs.decode(
          number, self.params, block, self._page_store, self._bias_table, keep_S
        )
    jax.block_until_ready([block.state for lane in self.lanes for block in lane.blocks])

  # Called from other threads.

  def submit(self, job: Job) -> None:
    """Puts a job in the queue."""
    self._inbox.put(lambda: self._enter(job))

  def call(self, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
    """Runs `function` on the engine's thread between dispatches and hands its result to `done`."""
    self._inbox.put(lambda: done(function()))

  def run(self) -> None:
    """Runs the engine loop. Returns after `stop`."""
    while not self._stopping:
      self._take(block=not self._busy())
      if self._update is not None and (self.paused or not self._running()):
        self._apply(self._update)
      if self.paused or self._stopping:
        continue
      if self._update is None:
        self._stage()
        self._compute_chunks()
        self._admit()
      self._decode()

  def _take(self, block: bool) -> None:
    if block:
      self._inbox.get()()
    while not self._inbox.empty():
      self._inbox.get()()

  def _busy(self) -> bool:
    if self._update is not None:
      return True
    return not self.paused and bool(
      self.waiting or any(lane.running or lane.staged for lane in self.lanes)
    )

  def _running(self) -> bool:
    return any(lane.running for lane in self.lanes)

  # Commands: pass them through `call`.

  def stop(self) -> None:
    """Aborts everything and ends `run`."""
    self.abort(lambda job: True, 'server stops')
    self._stopping = True

  def pause(self, mode: str) -> None:
    """Stops sampling.

    'retract' returns all requests to the queue with their tokens. 'abort' answers all of them.
    'in_place' keeps their caches, which mix old keys with new weights after an update.
    """
    self.paused = True
    if mode == 'abort':
      self.abort(lambda job: True, 'pause_generation')
      self._unstage()
    elif mode == 'retract':
      self._retract()

  def resume(self) -> None:
    """Resumes sampling after `pause`."""
    self.paused = False

  def abort(self, which: Callable[[Job], bool], message: str) -> int:
    """Answers the selected jobs with their tokens so far. Returns the number of jobs."""
    chosen = [job for job in self.waiting if which(job)]
    self.waiting = deque(job for job in self.waiting if not which(job))
    for lane in self.lanes:
      for block in lane.blocks:
        for slot, job in list(block.running.items()):
          if which(job):
            chosen.append(self._leave(block, slot))
      for job in lane.staged:
        if which(job) and not job.aborted:
          job.aborted = True  # it leaves the queue once its chunks are computed
          chosen.append(job)
    for job in chosen:
      self._finish(job, {'type': 'abort', 'message': message})
    self.counts['aborted'] += len(chosen)
    return len(chosen)

  def flush(self) -> bool:
    """Drops all pages and image features. Returns False and drops nothing if any job runs or is
    staged.
    """
    if self._running() or any(lane.staged for lane in self.lanes):
      return False
    self.pages.clear()
    self.features.clear()
    return True

  def update(self, params: Any, version: int, done: Callable[[], None]) -> None:
    """Swaps the weights once no job runs (immediately while paused).

    Pages and image features of the old weights are dropped.
    """

    def apply() -> None:
      self.params, self.version = params, version
      self.counts['updates'] += 1
      done()

    self._update = apply

  def _apply(self, update: Callable[[], None]) -> None:
    self._update = None
    self._unstage()
    # No request finds pages of the old weights again. Paused jobs may still hold some.
    self._weights += 1
    self.pages.drop_idle()
    self.features.clear()
    if not self._running():
      # What is masked is multiplied by 0, and weights that were not finite left NaN in the pages.
      blocks = [lane.blocks for lane in self.lanes]
      self._page_store = self.programs.clear(self._page_store, blocks)
    update()

  def _retract(self) -> None:
    back = [
      self._leave(block, slot)
      for lane in self.lanes
      for block in lane.blocks
      for slot in sorted(block.running)
    ]
    for job in back:
      job.context = extend(job.prompt, job.ids, self.options.chunk_tokens)
      job.retractions += 1
    self.counts['retractions'] += len(back)
    self._unstage()
    self.waiting.extendleft(reversed(back))

  def _unstage(self) -> None:
    """Returns staged jobs to the front of the queue.

    It computes their pending chunks first, so that all their pages are complete.
    """
    self._compute_chunks(everything=True)
    for lane in self.lanes:
      for job in reversed(lane.staged):
        self._release_pages(job)
        self._release_bias(job)
        if not job.aborted:
          self.waiting.appendleft(job)
      lane.staged.clear()

  # One round of work.

  def _enter(self, job: Job) -> None:
    self.counts['requests'] += 1
    self.counts['prompt_tokens'] += len(job.prompt)
    self.waiting.append(job)

  def _stage(self) -> None:
    """Finds or reserves pages for waiting jobs, first come first served.

    A lane stages at most its free slots plus one lane's worth of jobs.
    """
    later: deque[Job] = deque()
    while self.waiting:
      job = self.waiting.popleft()
      lane = self._lane_of[job.lane]
      if len(lane.staged) >= lane.free + lane.slots:
        later.append(job)
      elif self._stage_one(job):
        lane.staged.append(job)
      else:
        later.append(job)  # out of pages or features: later jobs do not overtake
        break
    self.waiting = later + self.waiting

  def _stage_one(self, job: Job) -> bool:
    context, bias = job.context, job.request.logit_bias
    keys, new_pages = [(self._weights, key) for key in context.keys], self._new_pages(job)
    # Check all three caches before reserving anything, so that a failure needs no rollback.
    fresh = [i for i, key in enumerate(keys) if key not in self.pages]
    digests = {i: self._digests(context, i) for i in fresh}
    needed = set().union(*digests.values()) if digests else set()
    if not (
      self.pages.fits(keys, new_pages)
      and self.features.fits(list(needed))
      and self.biases.fits([bias])
    ):
      return False
    row, new_bias = self.biases.acquire(bias)
    if new_bias:
      self._write_bias(row, bias)
    # Pages of known chunks are shared; the others are queued for prefill.
    job.held = keys + [('new', self._reserved + n) for n in range(new_pages)]
    self._reserved += new_pages
    job.table = np.array([self.pages.acquire(key)[0] for key in job.held], np.int32)
    size = self.options.chunk_tokens
    for i in fresh:
      self._queued += 1
      self._tickets[context.keys[i]] = self._queued
      self._chunks.append(Chunk(context, job.table, i, size, context.keys[i], digests[i]))
      self._hold_features(context, digests[i])
    # The job can be admitted once the last chunk it waits for has been computed.
    job.ticket = max((self._tickets.get(key, 0) for key in context.keys), default=0)
    if job.cached is None:
      job.cached = len(context) - sum(min(size, len(context) - i * size) for i in fresh)
      self.counts['cached_tokens'] += job.cached
    return True

  def _new_pages(self, job: Job) -> int:
    """Returns how many pages a slot needs for itself: the last of its context, and new tokens."""
    if not self.programs.paged:
      return 0
    tokens, chunk = len(job.context), self.options.chunk_tokens
    end = tokens + job.request.max_new_tokens - len(job.ids)
    return -(-end // chunk) - tokens // chunk

  def _digests(self, context: Prompt, index: int) -> frozenset[bytes]:
    chunk = self.options.chunk_tokens
    seen = np.unique(context.image_T[index * chunk : (index + 1) * chunk]) if context.images else ()
    return frozenset(context.images[i].digest for i in seen if i >= 0)

  def _hold_features(self, context: Prompt, digests: frozenset[bytes]) -> None:
    images = {image.digest: image for image in context.images} if digests else {}
    for digest in sorted(digests):
      _, new = self.features.acquire(digest)
      if new:
        self._images[digest] = images[digest]

  def _write_bias(self, row: int, bias: tuple[tuple[int, float], ...]) -> None:
    self._bias_rows[row] = 0
    for token, value in bias:
      self._bias_rows[row, token] = value
    self._bias_table = self._on_devices(self._bias_rows)

  def _compute_chunks(self, everything: bool = False) -> None:
    """Prefills full batches of chunks, and a partial batch only if a free slot waits for it."""
    rows = self.options.prefill_rows
    while self._chunks and (everything or len(self._chunks) >= rows or self._starving()):
      if len(self._chunks) < rows and not everything and self._gather():
        continue
      self._encode_images()
      batch = [self._chunks.popleft() for _ in range(min(rows, len(self._chunks)))]
      arrays = batches.of_chunks(self.shapes, batch, self.features.place)
      self._page_store = self.programs.prefill(
        self.params, self._page_store, self._feature_store, *arrays
      )
      self._computed += len(batch)
      self.counts['prefill_calls'] += 1
      self.counts['prefilled_tokens'] += sum(map(len, batch))
      for chunk in batch:
        self._tickets.pop(chunk.key)
        for digest in chunk.digests:
          self.features.release(digest)

  def _gather(self) -> bool:
    """Stages jobs that arrived while the device was busy, before a partial prefill call.

    Returns whether any job arrived.
    """
    jax.block_until_ready(self._page_store['tail'])
    if self._inbox.empty():
      return False
    self._take(block=False)
    if not self.paused and self._update is None and not self._stopping:
      self._stage()
    return True

  def _starving(self) -> bool:
    return any(
      lane.free and lane.staged and lane.staged[0].ticket > self._computed for lane in self.lanes
    )

  def _encode_images(self) -> None:
    while self._images:
      images = [self._images.pop(one) for one in list(self._images)[: self.shapes.image_batch]]
      self._feature_store = self.programs.encode(
        self.params,
        self._feature_store,
        *batches.of_images(self.shapes, images, self.features.place),
      )
      self.counts['images_encoded'] += len(images)

  def _admit(self) -> None:
    """Fills free slots with staged jobs whose pages are computed, in order.

    The first block with a free slot is filled first, so that few blocks run.
    """
    for number, lane in enumerate(self.lanes):
      for block in lane.blocks:
        while batch := self._next_batch(lane, block):
          rows = batches.of_jobs(self.shapes, lane, batch, self._bias_row)
          self._page_store = self.programs.admit(number, block, self._page_store, rows, len(batch))

  def _next_batch(self, lane: Lane, block: Block) -> list[tuple[int, Job]]:
    """Returns (slot, job) pairs to admit to a block. Empty if it is full or no job is ready."""
    batch = []
    while (
      block.free
      and lane.staged
      and lane.staged[0].ticket <= self._computed
      and len(batch) < programs.ADMIT_ROWS
    ):
      job = lane.staged.popleft()
      if job.aborted:
        self._release_pages(job)
        self._release_bias(job)
        continue
      if not self.programs.paged:
        self._release_pages(job)  # the copy is ordered before anything that reuses a page
      slot = block.free.pop()
      block.running[slot] = job
      batch.append((slot, job))
    return batch

  def _decode(self) -> None:
    """Runs one decode dispatch on every block with running jobs, then collects their tokens."""
    running = [
      (number, block)
      for number, lane in enumerate(self.lanes)
      for block in lane.blocks
      if block.running
    ]
    self.counts['decode_calls'] += len(running)
    dispatch = map if len(running) < 2 else self._threads.map
    for (_, block), (tokens, logprobs) in zip(running, list(dispatch(self._dispatch, running))):
      self._collect(block, tokens, logprobs)

  def _dispatch(self, one: tuple[int, Block]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes a block. Returns (tokens, log-probs) [steps, S] on the host.

    It runs in a thread per block, because XLA's CPU client serializes the calls of one thread.
    """
    number, block = one
    keep_S = np.zeros(block.slots, bool)
    keep_S[list(block.running)] = True
    pool, tokens, logprobs = self.programs.decode(
      number, self.params, block, self._page_store, self._bias_table, keep_S
    )
    if self.programs.paged:  # else blocks run side by side, and none changes the pool
      self._page_store = pool
    return tokens, logprobs

  def _collect(self, block: Block, tokens: np.ndarray, logprobs: np.ndarray) -> None:
    # tokens: int[steps, S], with -1 after a slot's last token.
    sampled = (tokens >= 0).sum(0)
    for slot, job in list(block.running.items()):
      n = int(sampled[slot])
      job.add(tokens[:n, slot].tolist(), logprobs[:n, slot].tolist(), self.version)
      self.counts['sampled_tokens'] += n
      if n and (job.ids[-1] in job.stops or len(job.ids) >= job.request.max_new_tokens):
        self._leave(block, slot)
        if job.ids[-1] in job.stops:
          self._finish(job, {'type': 'stop', 'matched': job.ids[-1]})
        else:
          self._finish(job, {'type': 'length', 'length': job.request.max_new_tokens})
      elif n and job.request.stream:
        job.answer(job.reply('', self.version), None)

  def _leave(self, block: Block, slot: int) -> Job:
    """Empties a slot and releases what its job holds."""
    job = block.leave(slot)
    self._release_bias(job)
    if self.programs.paged:
      self._release_pages(job)
    return job

  def _release_pages(self, job: Job) -> None:
    for key in reversed(job.held):  # evict the ends of contexts before their beginnings
      if key[0] == 'new':
        self.pages.discard(key)
      else:
        self.pages.release(key)
    job.held = []

  def _bias_row(self, job: Job) -> int:
    return self.biases.place(job.request.logit_bias)

  def _release_bias(self, job: Job) -> None:
    self.biases.release(job.request.logit_bias)

  def _finish(self, job: Job, reason: dict[str, Any]) -> None:
    job.answer(job.reply(reason['type'], self.version), reason)
