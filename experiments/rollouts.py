"""The rollout side of an entry point: a fleet of servers, a client to them, and agents that sample
or decode greedily.
"""

import asyncio
import contextlib
import dataclasses
import pathlib
import time
import urllib.parse
from collections.abc import AsyncIterator, Sequence

from ml_collections import ConfigDict

from experiments import runs, servers, wiring
from experiments.launch import build
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError
from paravt_jax.rewards import total
from paravt_jax.rollout import client as clients
from paravt_jax.rollout import groups, judge
from paravt_jax.rollout.agent import Agent, AgentOptions
from paravt_jax.rollout.control import OURS, Control
from paravt_jax.rollout.fleet import Fleet, FleetOptions, Member
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import ContextOptions, Sampler
from paravt_jax.rollout.subagent import SubagentOptions, Subagents
from paravt_jax.serving import publish
from paravt_jax.serving.canary import Canary
from paravt_jax.serving.staging import Staging
from paravt_jax.video.store import FrameStore

LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class Weights:
  """The way of a published version to what servers load, and how long each stage took the last
  time, in seconds.

  staging: makes a Hugging Face folder for SGLang; None where the servers read what is published.
  """

  def __init__(self):
    self.staging: Staging | None = None
    self.seconds: dict[str, float] = {}
    self._current: pathlib.Path | None = None

  def ready(self, published: pathlib.Path) -> pathlib.Path:
    """The folder to load; blocks. The one before it stays: a server that comes back may be loading
    it. Raises SyncError.
    """
    start = time.monotonic()
    if self.staging is not None:
      self.staging.clear(self._current)
    self._current = published.absolute() if self.staging is None else self.staging.stage(published)
    self.seconds['convert'] = time.monotonic() - start
    return self._current

  def close(self) -> None:
    """Frees what was converted."""
    if self.staging is not None:
      self.staging.close()


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """What episodes are made with. `sampling` agents use the training temperature, `greedy` ones 0;
  `samplers` are theirs, for agents of another kind.
  """

  client: clients.Client
  fleet: Fleet
  weights: Weights
  sampling: Agent
  greedy: Agent
  frames: FrameStore
  samplers: tuple[Sampler, Sampler]
  control: Control

  def check(self) -> None:
    """Raises RolloutError when no server is left and none can come back."""
    self.fleet.check()

  async def deliver(self, pending: publish.Pending, version: int) -> None:
    """Brings weights that are being written to every server; returns once their canaries matched.

    Raises:
      SyncError: they cannot be written, or no server took them. RolloutError: no server is left.
    """
    start = time.monotonic()
    published = await asyncio.to_thread(pending.result)
    written = time.monotonic()
    found = publish.read_manifest(published).canary
    await self.fleet.deliver(published, version, None if found is None else Canary.from_json(found))
    seconds = self.weights.seconds
    seconds.update(write=written - start, load=time.monotonic() - written - seconds['convert'])

  def metrics(self) -> dict[str, float]:
    """How the last delivery went, and what became of the servers since the run began."""
    return {
      **{f'sync/seconds/stage={stage}': value for stage, value in self.weights.seconds.items()},
      **{
        f'server/{name}': float(self.fleet.counts[name])
        for name in ('lost', 'restarts', 'drained', 'back')
      },
    }


@contextlib.asynccontextmanager
async def opened(
  config: ConfigDict,
  model_folder: pathlib.Path,
  tok: ChatTokenizer,
  vocab: int,
  folder: pathlib.Path,
  base: Canary | None,
  *,
  always: bool = False,
) -> AsyncIterator[Rollouts]:
  """Starts what the recipe asks for and ends it again, whatever happens in between.

  Args:
    vocab: rows of the embedding table. folder: of the run, for logs. base: the canary of the model
    folder's own weights. always: it is asked also of servers that hold what an earlier run brought
    them.
  """
  options = build(ClientOptions, config.client, 'client', api_key=config.server.api_key or None)
  watch = build(FleetOptions, config.server.watch, 'server.watch')
  async with contextlib.AsyncExitStack() as stack:
    pool = stack.enter_context(wiring.decode_pool(config))
    control = await stack.enter_async_context(Control(options))
    members = await servers.members(config, model_folder, tok, folder)
    weights, router = Weights(), Router([member.url for member in members])
    fleet = Fleet(members, control, router, weights.ready, watch)
    stack.callback(weights.close)
    stack.push_async_callback(
      fleet.close
    )  # from here on the fleet ends the servers, before what they may be loading goes
    await fleet.open(base if always else await _if_fresh(base, members, control))
    if await _are_sglang(members, control):
      weights.staging = Staging(model_folder, _staging_folder(config, members, folder))
    client = await stack.enter_async_context(
      clients.Client(options, vocab, router, image_id=tok.image_pad)
    )
    frames = FrameStore(config.video.cache_folder or None, pool, config.video.cache_mb << 20)
    samplers = tuple(
      _sampler(config, client, tok, temperature)
      for temperature in (config.sampling.temperature, 0.0)
    )
    sampling, greedy = (_agent(config, sampler, frames) for sampler in samplers)
    yield Rollouts(client, fleet, weights, sampling, greedy, frames, samplers, control)


async def _if_fresh(
  base: Canary | None, members: Sequence[Member], control: Control
) -> Canary | None:
  """`base`, unless a server by URL holds what an earlier run brought it: then only the first
  delivery can prove it.
  """
  for member in members:
    if member.process is None:
      await control.wait_ready(member.url)
      if await control.version(member.url):
        return None
  return base


async def _are_sglang(members: Sequence[Member], control: Control) -> bool:
  found = {member.url: await control.software(member.url) for member in members}
  ours = [url for url, name in found.items() if name == OURS]
  if ours and len(ours) < len(found):
    raise ConfigError(
      f'--config.server.urls: {ours[0]} is an embedded server, others are SGLang ({found}); '
      'wanted all of one kind'
    )
  return not ours


def _staging_folder(
  config: ConfigDict, members: Sequence[Member], run: pathlib.Path
) -> pathlib.Path | None:
  """Where converted weights go, a folder of this run's own; None is memory-backed, which needs the
  servers on this machine.
  """
  if config.server.sglang.staging:
    return (
      pathlib.Path(config.server.sglang.staging)
      / f'{run.name}-{runs.fingerprint(str(run.absolute()))}'
    )
  elsewhere = [
    member.url
    for member in members
    if member.process is None and urllib.parse.urlsplit(member.url).hostname not in LOOPBACK
  ]
  if elsewhere:
    raise ConfigError(
      f'--config.server.sglang.staging is empty, but {elsewhere[0]} is another machine: name '
      'a folder that it and the learner both see'
    )
  return None


def context(config: ConfigDict, temperature: float) -> ContextOptions:
  """What all contexts share, at a temperature."""
  section = {**config.sampling.to_dict(), 'temperature': temperature}
  return build(
    ContextOptions,
    section,
    'sampling',
    min_pixels=config.video.min_pixels,
    max_pixels=config.video.max_pixels,
  )


def _sampler(
  config: ConfigDict, client: clients.Client, tok: ChatTokenizer, temperature: float
) -> Sampler:
  return Sampler(client, tok, context(config, temperature))


def _agent(config: ConfigDict, sampler: Sampler, frames: FrameStore) -> Agent:
  subagents = Subagents(sampler, frames, build(SubagentOptions, config.subagent, 'subagent'))
  return Agent(sampler, subagents, frames, build(AgentOptions, config.agent, 'agent'))


@contextlib.asynccontextmanager
async def rewards(config: ConfigDict) -> AsyncIterator[groups.Reward]:
  """The recipe's reward; with open_ended='judge' an LLM is asked, and its failure drops the
  episode.
  """
  options = build(total.RewardOptions, config.reward, 'reward')
  if options.open_ended != 'judge':
    yield groups.rewarder(options, None)
    return
  async with judge.Judge(_judge_options(config)) as asked:
    yield groups.rewarder(options, asked)


def _judge_options(config: ConfigDict) -> judge.JudgeOptions:
  if not config.judge.url:
    raise ConfigError(
      "--config.judge.url is empty, but reward.open_ended is 'judge': name an "
      'OpenAI-compatible server'
    )
  return build(judge.JudgeOptions, config.judge, 'judge')


def check_judge(config: ConfigDict) -> None:
  """Asks the judge, if the recipe has one, for a verdict before anything is made. Raises
  RolloutError when it cannot be used.
  """

  async def ask() -> None:
    async with judge.Judge(_judge_options(config)) as asked:
      await asked.check()

  if config.reward.open_ended == 'judge':
    asyncio.run(ask())


def evaluation_knobs(config: ConfigDict) -> dict[str, object]:
  """The reward section of evaluations: tvg by the IoU threshold, open-ended answers exactly; format
  as in training.
  """
  return {
    **config.reward.to_dict(),
    'open_ended': 'exact',
    'grounding_threshold': config.eval.grounding_threshold,
  }


def evaluation_reward(config: ConfigDict) -> groups.Reward:
  """How evaluations score."""
  return groups.rewarder(build(total.RewardOptions, evaluation_knobs(config), 'reward'), None)
