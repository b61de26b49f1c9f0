"""One episode of a protocol over a scripted server of ours."""

import asyncio

from paravt_jax.eval import protocols
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import Address, Sampler
from paravt_jax.testing.scripted import ScriptedServer
from tests.rollout.stack import AGENT, CLIENT, CONTEXT, SUBAGENT, TASK, TOK, Frames, play


def perform(
  protocol,
  *turns,
  dispatch='parallel',
  task=TASK,
  agent=AGENT,
  subagent=SUBAGENT,
  budget=4,
  **script,
):
  """(episode, texts of the requests in order, frames asked for): `turns` as in `stack.play`."""
  frames = Frames()

  async def run(server):
    async with Client(
      CLIENT, TOK.vocab_size, Router((server.url,)), image_id=TOK.image_pad
    ) as client:
      actor = protocols.agent(
        protocol, dispatch, Sampler(client, TOK, CONTEXT), frames, agent, subagent
      )
      return await actor.run(task, await actor.open(task, budget), Address(7, task.id, 0, 0))

  with ScriptedServer(play(*turns, **script)) as server:
    return asyncio.run(run(server)), server.requests, frames.asked


def text_of(request):
  """A request's prompt as text."""
  return TOK.decode(request.input_ids)
