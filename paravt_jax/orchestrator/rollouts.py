"""The rollout side of a run: a fleet of servers, a client for them, and agents.

One agent samples and the other decodes greedily.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.options import extended
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator import parts, servers
from paravt_jax.orchestrator.host import Host
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.orchestrator.weight_delivery import WeightDelivery, are_sglang, staging_folder
from paravt_jax.rewards.total import RewardOptions
from paravt_jax.rollout import client as clients
from paravt_jax.rollout import groups, judge
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.fleet import Fleet, Member
from paravt_jax.rollout.gateway import Gateway
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import ContextOptions, Sampler
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.serving import publish
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.staging import Staging
from paravt_jax.timeline import Timeline
from paravt_jax.video.store import FrameStore

T = TypeVar('T')


class Checked(Protocol):
  """Servers that may be lost."""

  @property
  def check(self) -> Callable[[], None]:
    """Raises RolloutError if no server is left."""
    ...


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """Everything that produces episodes."""

  client: clients.Client
  fleet: Fleet
  weights: WeightDelivery
  sampling: Agent  # at the training temperature
  greedy: Agent  # at temperature 0
  frames: FrameStore
  samplers: tuple[Sampler, Sampler]  # of `sampling` and `greedy`, for other kinds of agents
  control: Control
  timeline: Timeline

  def check(self) -> None:
    """Raises RolloutError if no server is left and none can come back."""
    self.fleet.check()

  async def deliver(self, pending: publish.Pending, version: int) -> None:
    """Delivers weights to every server, and returns once the canaries match.

    The weights may still be on their way to the disk, where servers get them through memory.

    Raises:
      SyncError: the weights cannot be written, or no server took them.
      RolloutError: no server is left.
    """
    start = time.monotonic()
    outgoing = await asyncio.to_thread(pending.ready)
    first = await asyncio.to_thread(lambda: outgoing.first)
    written = time.monotonic()
    page = publish.read_manifest(first)
    proof = None if page.canary is None else Canary.from_json(page.canary)
    self.weights.note(first, page)
    await self.fleet.deliver(outgoing.whole, version, proof, outgoing.changes)
    seconds = self.weights.seconds
    end = time.monotonic()
    seconds.update(write=written - start, load=end - written - seconds['convert'])
    self.timeline.span('delivery', 'write', start, written, version=version)
    self.timeline.span('delivery', 'load', written, end, version=version)

  def metrics(self) -> dict[str, float]:
    """Returns numbers on the last delivery, counts of server events since the run began, and the
    speed of each server since the previous call.
    """
    counts, speeds, hosts = self.fleet.counts, self.client.take_speeds(), hosts_.current()
    host = '' if hosts.is_alone else f'{hosts.index}.'  # every host numbers its servers from 0
    return {
      **{
        f'server/speed/server={host}{index}': speeds[member.url]
        for index, member in enumerate(self.fleet.members)
        if member.url in speeds
      },
      **{f'sync/seconds/stage={stage}': value for stage, value in self.weights.seconds.items()},
      'sync/bytes': float(self.weights.bytes),
      **{f'server/{name}': float(counts[name]) for name in ('lost', 'restarts', 'drained', 'back')},
    }


@contextlib.asynccontextmanager
async def open_rollouts(
  setup: AgentSetup,
  host: Host,
  model_folder: pathlib.Path,
  tok: ChatTokenizer,
  vocab: int,
  folder: pathlib.Path,
  base: Canary | None,
  *,
  always: bool = False,
  timeline: pathlib.Path | None = None,
) -> AsyncIterator[Rollouts]:
  """Starts the servers, or connects to running ones. Closes everything at the end, also after an
  error.

  Args:
    vocab: rows of the embedding table.
    folder: the run folder, for logs.
    base: the canary of the model folder's own weights.
    timeline: the file of the run's timeline, made if missing; None for none.
    always: checks `base` also on servers by URL that an earlier run may have updated.
  """
  options = extended(ClientOptions, setup.client, api_key=setup.server.api_key or None)
  async with contextlib.AsyncExitStack() as stack:
    spans = stack.enter_context(Timeline(timeline))
    pool = stack.enter_context(parts.decode_pool(setup.video))
    control = await stack.enter_async_context(Control(options))
    gateway = None
    if setup.server.router:
      gateway = await stack.enter_async_context(Gateway(options, setup.server.router.rstrip('/')))
    members = await servers.members(setup, host, model_folder, tok, folder, gateway)
    weights, router = WeightDelivery(), Router([member.url for member in members])
    fleet = Fleet(members, control, router, weights.ready, setup.server.watch, gateway)
    stack.callback(weights.close)
    # From here on the fleet ends the servers, before the files that they may be loading are
    # removed.
    stack.push_async_callback(fleet.close)
    await fleet.open(base if always else await _if_fresh(base, members, control))
    if gateway is not None:
      await gateway.check([tok.im_end])
    if await are_sglang(members, control):
      place = staging_folder(setup.server.sglang.staging, members, folder)
      weights.staging = Staging(model_folder, place, keep=setup.delta)
    client = await stack.enter_async_context(
      clients.Client(
        options,
        vocab,
        router,
        image_id=tok.image_pad,
        gateway=None if gateway is None else gateway.url,
        timeline=spans,
      )
    )
    video = setup.video
    frames = FrameStore(video.cache_folder or None, pool, video.cache_mb << 20, timeline=spans)
    trained, zero = setup.sampling.temperature, 0.0
    samplers = (_sampler(setup, client, tok, trained), _sampler(setup, client, tok, zero))
    sampling, greedy = (_agent(setup, sampler, frames) for sampler in samplers)
    yield Rollouts(client, fleet, weights, sampling, greedy, frames, samplers, control, spans)


async def _if_fresh(
  base: Canary | None, members: Sequence[Member], control: Control
) -> Canary | None:
  """Returns `base`, or None if an earlier run updated a server by URL.

  Then only the first delivery can prove such a server.
  """
  for member in members:
    if member.process is None:
      await control.wait_ready(member.url)
      if await control.version(member.url):
        return None
  return base


def context(setup: AgentSetup, temperature: float) -> ContextOptions:
  """Returns the settings that all contexts share, at the given temperature."""
  return extended(
    ContextOptions,
    setup.sampling,
    temperature=temperature,
    min_pixels=setup.video.min_pixels,
    max_pixels=setup.video.max_pixels,
  )


def _sampler(
  setup: AgentSetup, client: clients.Client, tok: ChatTokenizer, temperature: float
) -> Sampler:
  return Sampler(client, tok, context(setup, temperature))


def _agent(setup: AgentSetup, sampler: Sampler, frames: FrameStore) -> Agent:
  return Agent(sampler, Subagents(sampler, frames, setup.subagent), frames, setup.agent)


async def unless_stopped(work: Awaitable[T], interrupts: Interrupts, server: 'Checked') -> T:
  """Returns the result of `work`, or cancels it.

  Raises KeyboardInterrupt after Ctrl-C, and RolloutError if no server is left.
  """
  task = asyncio.ensure_future(work)
  try:
    while not task.done():
      await asyncio.wait({task}, timeout=0.2)
      interrupts.check()
      server.check()
    return task.result()
  finally:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def rewards(recipe: RLRecipe) -> AsyncIterator[groups.Reward]:
  """Returns the recipe's reward.

  With open_ended='judge' an LLM scores open answers, and its failure drops the episode.
  """
  if recipe.reward.open_ended != 'judge':
    yield groups.rewarder(recipe.reward, None)
    return
  async with judge.Judge(_judge_options(recipe)) as asked:
    yield groups.rewarder(recipe.reward, asked)


def _judge_options(recipe: RLRecipe) -> judge.JudgeOptions:
  if not recipe.judge.url:
    raise ConfigError(
      "--config.judge.url is empty, but reward.open_ended is 'judge': name an "
      'OpenAI-compatible server'
    )
  return recipe.judge


def check_judge(recipe: RLRecipe) -> None:
  """Requests a trial verdict from the recipe's judge, if any, before the run makes anything.

  Raises RolloutError if the judge cannot be used.
  """

  async def ask() -> None:
    async with judge.Judge(_judge_options(recipe)) as asked:
      await asked.check()

  if recipe.reward.open_ended == 'judge':
    asyncio.run(ask())


def evaluation_options(recipe: RLRecipe | EvalRecipe) -> RewardOptions:
  """Returns the reward options of evaluations.

  tvg answers count by the IoU threshold and open answers by exact match. The format rules are those
  of training.
  """
  threshold = recipe.eval.grounding_threshold
  return recipe.reward.replace(open_ended='exact', grounding_threshold=threshold)
