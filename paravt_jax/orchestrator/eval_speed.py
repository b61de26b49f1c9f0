"""Measures how fast an evaluation ran, and how full the servers' batches were."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from paravt_jax.errors import RolloutError
from paravt_jax.eval.results import Outcome
from paravt_jax.rollout.control import Control

EVERY_S = 0.25


@dataclasses.dataclass
class Load:
  """Sums over what servers reported: polls, and requests that were decoding or waiting.

  By server it also has the tokens that were sampled and the decode steps since the first poll.
  """

  polls: int = 0
  running: int = 0
  waiting: int = 0
  tokens: dict[str, list[int]] = dataclasses.field(default_factory=dict)
  steps: dict[str, list[int]] = dataclasses.field(default_factory=dict)

  @property
  def batch(self) -> float | None:
    """Returns the mean number of requests that a server decoded at once, over its steps.

    None if the servers do not report it.
    """
    made, steps = (
      sum(now - first for first, now in found.values()) for found in (self.tokens, self.steps)
    )
    return made / steps if steps else None

  def add_poll(self, url: str, info: Mapping[str, Any]) -> None:
    """Adds a reply to /get_server_info."""
    if not isinstance(info.get('running'), list):
      return
    self.polls += 1
    self.running += sum(info['running'])
    self.waiting += int(info.get('waiting', 0))
    counts, each = info.get('counts', {}), info.get('options', {}).get('decode_steps', 1)
    for found, now in (
      (self.tokens, counts.get('sampled_tokens', 0)),
      (self.steps, counts.get('decode_calls', 0) * each),
    ):
      found.setdefault(url, [now, now])[1] = now


@contextlib.asynccontextmanager
async def poll_load(control: Control | None, urls: Sequence[str]) -> AsyncIterator[Load]:
  """Polls the servers while the body runs, and when it begins and ends.

  A server that does not report its load is not counted.
  """
  load = Load()
  if control is None:
    yield load
    return
  await ask(control, urls, load)
  task = asyncio.create_task(_poll(control, urls, load))
  try:
    yield load
  finally:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def ask(control: Control | None, urls: Sequence[str], load: Load) -> None:
  """Polls every server once. Does nothing without servers."""
  if control is None:
    return
  for url in urls:
    try:
      load.add_poll(url, await control.json('GET', f'{url}/get_server_info'))
    except RolloutError:  # the fleet detects a lost server
      continue


async def _poll(control: Control, urls: Sequence[str], load: Load) -> None:
  while True:
    await asyncio.sleep(EVERY_S)
    await ask(control, urls, load)


def describe(speed: Mapping[str, Any]) -> str:
  """Formats `Speed.found` as one line."""
  filled = (
    ''
    if speed['server_batch'] is None
    else f', {speed["server_batch"]:.1f} of them in a block that decodes'
  )
  frames = ', '.join(f'{count} {name}' for name, count in speed['frames'].items()) or 'none'
  return (
    f'{speed["samples"]} samples in {speed["seconds"]:.0f} s, '
    f'{speed["samples_per_second"]:.1f}/s; {speed["tokens_per_second"]:.0f} '
    f'tokens/s sampled; {speed["in_flight"]:.0f} samples in flight{filled}; clips of frames: '
    f'{frames}'
  )


class Speed:
  """Sums over the samples that this process finished."""

  def __init__(self):
    self._start, self._samples = time.monotonic(), 0
    self._tokens = {'prompt': 0, 'sampled': 0}
    self._seconds: dict[str, float] = {}

  def add(self, outcome: Outcome) -> None:
    """Adds a sample to the counts."""
    self._samples += 1
    for name in self._tokens:
      self._tokens[name] += outcome.tokens[name]
    for name, seconds in outcome.seconds.items():
      self._seconds[name] = self._seconds.get(name, 0.0) + seconds

  def found(self, load: Load, frames: Mapping[str, int]) -> dict[str, Any]:
    """Returns the speed of the evaluation by name.

    samples, seconds, samples_per_second, tokens_per_second (sampled tokens),
    prompt_tokens_per_second: totals and rates.
    stages: mean seconds of a sample in each stage.
    in_flight: mean number of samples at a time.
    server_running, server_waiting: mean number of requests that decode and that wait.
    server_batch: mean number of requests that a server decoded at once. None if servers do not
    report it.
    frames: how often decoded frames were found in memory, shared with another sample, or decoded.
    """
    seconds = max(time.monotonic() - self._start, 1e-9)

    def mean(total: float, count: float) -> float | None:
      return round(total / count, 4) if count else None

    return {
      'samples': self._samples,
      'seconds': round(seconds, 3),
      'samples_per_second': mean(self._samples, seconds),
      'tokens_per_second': mean(self._tokens['sampled'], seconds),
      'prompt_tokens_per_second': mean(self._tokens['prompt'], seconds),
      'stages': {name: mean(total, self._samples) for name, total in self._seconds.items()},
      'in_flight': mean(self._seconds.get('wall', 0.0), seconds),
      'server_running': mean(load.running, load.polls),
      'server_waiting': mean(load.waiting, load.polls),
      'server_batch': None if load.batch is None else round(load.batch, 3),
      'frames': dict(sorted(frames.items())),
    }
