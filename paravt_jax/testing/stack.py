"""A whole running stack on the tiny model, for tests and tutorials: one call starts it, and leaving
the block ends it.

    async with stack(folder, env=os.environ, timeout_s=300.0) as it:
      group = await run_group(it.agent, Prompt(task, 0), reward, options)
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import AsyncIterator, Mapping

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.rollout.agent import Agent, AgentOptions
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import ContextOptions, Sampler
from paravt_jax.rollout.subagent import SubagentOptions, Subagents
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.testing import tiny
from paravt_jax.testing.scripted import Script, ScriptedServer
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore

CONTEXT = 512  # tokens of a context, images expanded
_GRACE_S = 5.0  # between asking the server to end and killing it
_CACHE_BYTES = 2**24  # of decoded frames


@dataclasses.dataclass(frozen=True)
class Stack:
  """What is running, from the model folder to the agent."""

  folder: pathlib.Path  # of the model, as Hugging Face lays it out
  config: Config
  tok: ChatTokenizer
  url: str  # of the server
  client: Client
  control: Control
  frames: FrameStore  # over real decoding workers
  sampler: Sampler
  agent: Agent


@contextlib.asynccontextmanager
async def stack(
  folder: pathlib.Path,
  *,
  env: Mapping[str, str],
  timeout_s: float,
  script: Script | None = None,
  sampler: type[Sampler] = Sampler,
  max_turns: int = 3,
) -> AsyncIterator[Stack]:
  """Builds the tiny model in `folder` and starts everything that an episode needs.

  Args:
    folder: where the model goes; made if it is missing.
    env: the environment of the server's process, which always runs on the CPU.
    timeout_s: for the server to come up, and for each request, call and decoding.
    script: what a scripted server answers; None starts the embedded server in its own process.
    sampler: a class of your own, to dictate turns or to watch requests.
    max_turns: rounds of tools of an episode.

  Raises:
    RolloutError: the server does not come up.
  """
  folder = pathlib.Path(folder)
  config = tiny.build_model_folder(folder, seed=0)
  tok = ChatTokenizer.load(folder)
  async with contextlib.AsyncExitStack() as opened:
    # The server: by script in a thread, or real in a process.
    if script is None:
      starting = asyncio.to_thread(
        launch.launch,
        server_options(folder),
        env={**env, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
        log=folder / 'server.log',
        deadline_s=timeout_s,
        parent_pid=os.getpid(),
      )
      process = await starting
      opened.callback(process.stop, _GRACE_S)
      url = process.url
    else:
      url = opened.enter_context(ScriptedServer(script)).url
    # The way to it.
    options = client_options(timeout_s)
    router = Router((url,))
    client = await opened.enter_async_context(
      Client(options, config.text.vocab, router, image_id=tok.image_pad)
    )
    control = await opened.enter_async_context(Control(options))
    await control.wait_ready(url)
    # Frames, and the agent that looks at them.
    pool = opened.enter_context(DecodePool(1, timeout_s, 'pyav'))
    frames = FrameStore(None, pool, _CACHE_BYTES)
    made = sampler(client, tok, context_options())
    agent = Agent(
      made, Subagents(made, frames, subagent_options(timeout_s)), frames, agent_options(max_turns)
    )
    yield Stack(folder, config, tok, url, client, control, frames, made, agent)


def server_options(folder: pathlib.Path) -> ServerOptions:
  """An embedded server of the tiny model on a free port: eight contexts of CONTEXT tokens, images
  of 32x32.
  """
  return ServerOptions(
    model_path=str(folder),
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key=None,
    dtype='float32',
    eos_token_ids=(),
    lanes=((CONTEXT, 8),),
    chunk_tokens=32,
    prefill_rows=4,
    pages=128,
    decode_steps=4,
    image_batch=16,
    image_slots=256,
    max_image_patches=4,
    bias_rows=2,
    max_stop_ids=2,
    max_body_mb=16,
    compile_cache=None,
    parent_pid=None,
  )


def client_options(timeout_s: float) -> ClientOptions:
  """A client without a key that gives up soon."""
  return ClientOptions(
    api_key=None,
    connections=64,
    timeout_s=timeout_s,
    ready_timeout_s=timeout_s,
    retries=1,
    backoff_s=0.01,
    image_cache=4096,
  )


def context_options() -> ContextOptions:
  """Contexts that fit `server_options`, sampled at temperature 0.7."""
  return ContextOptions(
    temperature=0.7, top_p=1.0, top_k=-1, context=CONTEXT, min_pixels=1024, max_pixels=1024
  )


def agent_options(max_turns: int) -> AgentOptions:
  """An agent whose turns are short, as a random policy never ends one."""
  return AgentOptions(
    think_prefix='<think>\n', max_turns=max_turns, max_parallel=5, max_new_tokens=24
  )


def subagent_options(deadline_s: float) -> SubagentOptions:
  """Sub-agents that see 2 to 16 frames, one a second, and write a few words."""
  return SubagentOptions(
    rate=1.0,
    min_frames=2,
    max_frames=16,
    see_question=True,
    max_new_tokens=12,
    summary_tokens=512,
    deadline_s=deadline_s,
  )
