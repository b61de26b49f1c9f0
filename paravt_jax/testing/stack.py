"""Runs a complete rollout stack on the tiny model, for tests and tutorials.

One call starts it, and leaving the block stops it:

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

CONTEXT = 512  # tokens of a context, including expanded images
_GRACE_S = 5.0  # seconds between the request to stop and the kill of the server
_CACHE_BYTES = 2**24  # of decoded frames


@dataclasses.dataclass(frozen=True)
class Stack:
  """The parts of a running stack, from the model folder to the agent."""

  folder: pathlib.Path  # of the model, in Hugging Face's layout
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
  """Builds the tiny model in `folder`, starts all parts that an episode needs, yields the Stack.

  Args:
    folder: the model folder; made if missing.
    env: environment variables of the server process, which always runs on the CPU.
    timeout_s: limit in seconds for the server's start, and for each request, call and decode.
    script: the replies of a scripted server; None starts the embedded server in a new process.
    sampler: a subclass of Sampler, for example to prescribe turns or to record requests.
    max_turns: maximum number of tool rounds in an episode.

  Raises:
    RolloutError: the server does not start.
  """
  folder = pathlib.Path(folder)
  config = tiny.build_model_folder(folder, seed=0)
  tok = ChatTokenizer.load(folder)
  async with contextlib.AsyncExitStack() as opened:
    # The server: scripted in a thread, or embedded in a process.
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
    # The clients of the server.
    options = client_options(timeout_s)
    router = Router((url,))
    client = await opened.enter_async_context(
      Client(options, config.text.vocab, router, image_id=tok.image_pad)
    )
    control = await opened.enter_async_context(Control(options))
    await control.wait_ready(url)
    # The frame store and the agent that uses it.
    pool = opened.enter_context(DecodePool(1, timeout_s, 'pyav'))
    frames = FrameStore(None, pool, _CACHE_BYTES)
    made = sampler(client, tok, context_options())
    agent = Agent(
      made, Subagents(made, frames, subagent_options(timeout_s)), frames, agent_options(max_turns)
    )
    yield Stack(folder, config, tok, url, client, control, frames, made, agent)


def server_options(folder: pathlib.Path) -> ServerOptions:
  """Returns options of an embedded server of the tiny model on a free port.

  It has eight contexts of CONTEXT tokens and accepts images of 32x32 pixels.
  """
  return ServerOptions(
    model_path=str(folder),
    served_name='tiny',
    think_prefix='',
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
    image_cache_mb=16,
    max_image_patches=4,
    bias_rows=2,
    max_stop_ids=2,
    max_body_mb=16,
    attention='auto',
    tensor_parallel=1,
    compile_cache=None,
    parent_pid=None,
  )


def client_options(timeout_s: float) -> ClientOptions:
  """Returns options of a client without an API key that retries only once."""
  return ClientOptions(
    api_key=None,
    connections=64,
    timeout_s=timeout_s,
    ready_timeout_s=timeout_s,
    retries=1,
    backoff_s=0.01,
    image_cache=4096,
    image_folder='',
  )


def context_options() -> ContextOptions:
  """Returns context options that fit `server_options`, with temperature 0.7."""
  return ContextOptions(
    temperature=0.7, top_p=1.0, top_k=-1, context=CONTEXT, min_pixels=1024, max_pixels=1024
  )


def agent_options(max_turns: int) -> AgentOptions:
  """Returns options of an agent with short turns, since a random policy never ends a turn."""
  return AgentOptions(
    think_prefix='<think>\n', max_turns=max_turns, max_parallel=5, max_new_tokens=24
  )


def subagent_options(deadline_s: float) -> SubagentOptions:
  """Returns options of sub-agents: 2 to 16 frames at one per second, and at most 12 new tokens."""
  return SubagentOptions(
    rate=1.0,
    min_frames=2,
    max_frames=16,
    see_question=True,
    max_new_tokens=12,
    summary_tokens=512,
    deadline_s=deadline_s,
  )
