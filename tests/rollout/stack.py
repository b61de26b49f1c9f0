"""A whole rollout stack over a scripted server: byte-level tokenizer, frames made up on the spot,
no video files.
"""

import asyncio
import dataclasses
import json

import numpy as np

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import MediaError
from paravt_jax.rollout.agent import Agent, AgentOptions
from paravt_jax.rollout.client import Client, ClientOptions
from paravt_jax.rollout.groups import GroupOptions
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import Address, ContextOptions, Sampler
from paravt_jax.rollout.subagent import SubagentOptions, Subagents
from paravt_jax.testing import tiny
from paravt_jax.testing.scripted import Reply, ScriptedServer
from paravt_jax.types import Clip, Task
from paravt_jax.video.readers import VideoInfo
from tests import patience

CLIENT = ClientOptions(
  api_key=None,
  connections=64,
  timeout_s=patience.seconds(60.0),
  ready_timeout_s=2.0,
  retries=1,
  backoff_s=0.01,
  image_cache=4096,
  image_folder='',
)
AGENT = AgentOptions(think_prefix='<think>\n', max_turns=3, max_parallel=5, max_new_tokens=512)
SUBAGENT = SubagentOptions(
  rate=1.0,
  min_frames=2,
  max_frames=16,
  see_question=True,
  max_new_tokens=256,
  summary_tokens=512,
  deadline_s=patience.seconds(60.0),
)
CONTEXT = ContextOptions(
  temperature=0.7, top_p=1.0, top_k=-1, context=16384, min_pixels=1024, max_pixels=50176
)
GROUP = GroupOptions(size=4, gating=True, budgets=(4, 8, 16, 32, 64), frames=64, seed=7)
TASK = Task('task-1', ('a.mp4',), 'What appears at 41?', 'oe', 'red')
LONG = 'I should look closer at it.</think>\n'

TOK = ChatTokenizer(json.loads(tiny.make_tokenizer([], []).to_str()), 'test')


def call(start, end, **more):
  """A well-formed crop_video block."""
  arguments = {'start_time': start, 'end_time': end, **more}
  return f'<tool_call>{json.dumps({"name": "crop_video", "arguments": arguments})}</tool_call>'


def sampled(text, *, closed=True, **reply):
  """A reply that writes `text`; structural tags are single tokens, as a policy would write them."""
  ids = TOK.encode(text, trusted=True).tolist()
  return Reply(
    ids=[*ids, TOK.im_end] if closed else ids, finish='stop' if closed else 'length', **reply
  )


def is_subagent(request):
  """Whether a request comes from a sub-agent: its prompt names its window."""
  return 'These frames show' in TOK.decode(request.input_ids)


def turn_of(request):
  """Which turn of the main agent a request asks for, from 0."""
  return TOK.decode(request.input_ids).count('<|im_start|>assistant') - 1


def play(*main, subagent='41 red'):
  """A script: the main agent's n-th turn is main[n] (text or outcome), every sub-agent answers
  `subagent` (text, outcome, function).
  """

  def script(request):
    if is_subagent(request):
      outcome = subagent(request) if callable(subagent) else subagent
    else:
      outcome = main[min(turn_of(request), len(main) - 1)]
    return sampled(outcome) if isinstance(outcome, str) else outcome

  return script


class Frames:
  """Stands in for a FrameStore: a 64-s video at 30 frames/s whose 32x32 frames hold their second as
  grey level.
  """

  def __init__(self, duration=64.0, fps=30.0, crop=None, size=32):
    self.duration = duration
    self.fps = fps
    self.crop = crop
    self.size = size
    self.asked = []

  async def probe(self, path):
    if path == 'missing.mp4':
      raise MediaError('missing.mp4: no such file', 'missing')
    return VideoInfo(self.duration, self.fps, round(self.duration * self.fps), 64, 64)

  async def frames(self, path, seconds, min_pixels, max_pixels):
    self.asked.append(tuple(seconds))
    if self.crop is not None and len(self.asked) > 1:
      await self.crop()
    seconds = np.floor(np.asarray(seconds) * self.fps) / self.fps
    levels = np.minimum(seconds, 255).astype(np.uint8)
    shape = (len(levels), self.size, self.size, 3)
    return Clip(np.broadcast_to(levels[:, None, None, None], shape).copy(), seconds, self.duration)


@dataclasses.dataclass
class ScriptedStack:
  """What one test uses."""

  agent: Agent
  client: Client
  frames: Frames
  server: ScriptedServer


def with_stack(
  script, use, *, frames=None, agent=AGENT, subagent=SUBAGENT, context=CONTEXT, client=CLIENT
):
  """Runs `await use(stack)` against a server that follows `script`; returns (its result, the
  server's requests).
  """
  frames = Frames() if frames is None else frames

  async def run(server):
    async with Client(client, TOK.vocab_size, Router((server.url,)), image_id=TOK.image_pad) as it:
      sampler = Sampler(it, TOK, context)
      return await use(
        ScriptedStack(
          Agent(sampler, Subagents(sampler, frames, subagent), frames, agent), it, frames, server
        )
      )

  with ScriptedServer(script) as server:
    return asyncio.run(run(server)), server.requests


def episode(script, *, task=TASK, budget=4, rollout=0, **options):
  """One episode and the requests it made."""

  async def use(stack):
    opening = await stack.agent.open(task, budget)
    return await stack.agent.run(task, opening, Address(7, task.id, 0, rollout))

  return with_stack(script, use, **options)
