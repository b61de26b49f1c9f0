"""Measures what calls of one turn cost together: several crops against a single one.

Real videos, decoded by real workers; the rollout server is scripted and answers at once, or after a
latency, so that the agent, its client and the decoders are what is measured.
"""

import asyncio
import dataclasses
import json
import pathlib
import statistics
import time

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import RolloutError
from paravt_jax.options import extended
from paravt_jax.rollout.agent import Agent, AgentOptions, CallDone, CallStarted, Event
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import Address, ContextOptions, Sampler
from paravt_jax.rollout.subagent import SubagentOptions, Subagents
from paravt_jax.testing import films, stack, tiny
from paravt_jax.testing.scripted import Reply, Request, ScriptedServer
from paravt_jax.types import ResultStatus, Task
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore

_FPS = 24  # of `films.write`
_WINDOW_S = 4.0  # of a crop
_OVERVIEW = 4  # frames
_CONTEXT = 1 << 15  # tokens


@dataclasses.dataclass(frozen=True)
class CropCase:
  """What is measured."""

  crops: int  # calls of the turn that is compared with a single call
  workers: int  # decoding processes
  repeats: int  # turns of each kind; the median counts
  size: tuple[int, int]  # height and width of the video, even numbers
  latency_s: float  # of each reply of the server to a sub-agent
  deadline_s: float  # of a decode, a request and a call


def parallel_crops(folder: pathlib.Path, case: CropCase) -> dict[str, float]:
  """Returns the seconds of one crop and of several in one turn, and their ratio.

  The time is from the start of a turn's first call to the end of its last. No window is decoded
  twice, so no cache helps.

  Args:
    folder: gets the video.
    case: what is measured.

  Returns:
    one_seconds, several_seconds: medians; time_ratio: several_seconds / one_seconds.

  Raises:
    RolloutError: the episodes did not run the crops that they were told to.
  """
  windows = (case.crops + 1) * case.repeats
  frames = round(windows * _WINDOW_S * _FPS)
  video = films.write(folder / 'crops.mp4', 'libx264', frames, size=case.size)
  return asyncio.run(_measure(str(video), case))


async def _measure(video: str, case: CropCase) -> dict[str, float]:
  tok = ChatTokenizer(json.loads(tiny.make_tokenizer([], []).to_str()), 'tiny')
  turn: list[str] = []  # the calls that the main agent writes next

  def script(request: Request) -> Reply:
    text = tok.decode(request.input_ids)
    if 'These frames show' in text:
      return _reply(tok, 'seen', case.latency_s)
    answered = '<tool_response>' in text.rpartition('<|im_start|>assistant')[0]
    return _reply(tok, '</think><answer>A</answer>' if answered else '</think>' + ''.join(turn), 0)

  task = Task('crops', (video,), 'What happens?', 'oe', 'A')
  options = extended(ContextOptions, stack.context_options(), context=_CONTEXT, max_pixels=50176)
  with (
    ScriptedServer(script) as server,
    DecodePool(case.workers, case.deadline_s, 'pyav') as pool,
  ):
    store = FrameStore(None, pool, 1 << 28)
    client_options = stack.client_options(case.deadline_s)
    router = Router((server.url,))
    async with Client(client_options, tok.vocab_size, router, image_id=tok.image_pad) as client:
      sampler = Sampler(client, tok, options)
      agent_options = AgentOptions.published().replace(max_parallel=case.crops)
      limits = SubagentOptions.published().replace(deadline_s=case.deadline_s)
      agent = Agent(sampler, Subagents(sampler, store, limits), store, agent_options)
      opening = await agent.open(task, _OVERVIEW)
      # every worker has opened the video before the first measured turn
      await asyncio.gather(*(pool.probe(video) for _ in range(2 * case.workers)))
      seconds: dict[int, list[float]] = {1: [], case.crops: []}
      first = 0
      for number in range(case.repeats):
        for count, found in seconds.items():
          turn[:] = [_call((first + n) * _WINDOW_S) for n in range(count)]
          first += count
          clock = _Clock()
          watched = agent.with_watch(clock.see)
          episode = await watched.run(task, opening, Address(0, str(count), 0, number))
          statuses = [result.status for result in episode.results]
          if statuses != [ResultStatus.EXECUTED] * count:
            raise RolloutError(
              f'{count} crops of {video}: got {statuses} {episode.error}, wanted them executed; '
              'raise the deadline'
            )
          found.append(clock.ended - clock.started)
  one, several = (statistics.median(found) for found in seconds.values())
  return {'one_seconds': one, 'several_seconds': several, 'time_ratio': several / one}


class _Clock:
  """Times the calls of an episode."""

  def __init__(self) -> None:
    self.started = self.ended = 0.0

  def see(self, event: Event) -> None:
    if isinstance(event, CallStarted):
      self.started = self.started or time.monotonic()
    elif isinstance(event, CallDone):
      self.ended = time.monotonic()


def _call(start: float) -> str:
  arguments = {'start_time': start, 'end_time': start + _WINDOW_S - 0.5}
  return f'<tool_call>{json.dumps({"name": "crop_video", "arguments": arguments})}</tool_call>'


def _reply(tok: ChatTokenizer, text: str, delay: float) -> Reply:
  return Reply([*tok.encode(text, trusted=True).tolist(), tok.im_end], delay=delay)
