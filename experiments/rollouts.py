"""The rollout side of an entry point: a server (ours, or by URL), a client to it, and agents that sample or decode greedily."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import AsyncIterator

from ml_collections import ConfigDict

from experiments import wiring
from experiments.launch import build
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.rewards import total
from paravt_jax.rollout import client as clients
from paravt_jax.rollout import groups, judge
from paravt_jax.rollout.agent import Agent, AgentOptions
from paravt_jax.rollout.sampler import ContextOptions, Sampler
from paravt_jax.rollout.subagent import SubagentOptions, Subagents
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.video.store import FrameStore

GRACE_S = 5.0


@dataclasses.dataclass(frozen=True)
class Rollouts:
  """What episodes are made with. `sampling` agents use the training temperature, `greedy` ones 0."""

  client: clients.Client
  control: clients.Control
  sampling: Agent
  greedy: Agent
  server: launch.ServerProcess | None

  def check_alive(self) -> None:
    """Raises RolloutError with the end of its log when our server has ended."""
    if self.server is not None and not self.server.alive:
      raise RolloutError(
        f'the rollout server ended (status {self.server.process.returncode}); its log {self.server.log} ends:\n'
        f'{self.server.tail()}\nthe same command goes on from the last checkpoint'
      )


@contextlib.asynccontextmanager
async def opened(
  config: ConfigDict, model_folder: pathlib.Path, tok: ChatTokenizer, vocab: int, folder: pathlib.Path
) -> AsyncIterator[Rollouts]:
  """Starts what the recipe asks for and ends it again, whatever happens in between."""
  with contextlib.ExitStack() as stack:
    pool = stack.enter_context(wiring.decode_pool(config))
    server, urls = _server(config, model_folder, tok, folder)
    if server is not None:
      stack.callback(server.stop, GRACE_S)
    options = build(clients.ClientOptions, config.client, 'client', urls=urls, api_key=config.server.api_key or None)
    frames = FrameStore(config.video.cache_folder or None, pool, config.video.cache_mb << 20)
    async with clients.Client(options, vocab) as client, clients.Control(options) as control:
      await control.wait_ready()
      agent = lambda temperature: _agent(config, client, tok, frames, temperature)
      yield Rollouts(client, control, agent(config.sampling.temperature), agent(0.0), server)


def _server(
  config: ConfigDict, model_folder: pathlib.Path, tok: ChatTokenizer, folder: pathlib.Path
) -> tuple[launch.ServerProcess | None, tuple[str, ...]]:
  """(our server or None, the URLs of the servers)."""
  section = config.server
  if section.kind == 'url':
    if not section.urls:
      raise ConfigError(
        '--config.server.urls is empty: start a rollout server and name it, as in '
        '--config.server.urls="(\'http://127.0.0.1:30000\',)", or use --config=…:tiny, which starts its own'
      )
    return None, tuple(url.rstrip('/') for url in section.urls)
  if section.kind != 'embedded':
    raise ConfigError(f'--config.server.kind={section.kind!r}: wanted url or embedded')
  knobs = {
    name: value for name, value in section.to_dict().items() if name not in ('kind', 'threads', 'ready_timeout_s', 'api_key')
  }
  options = build(
    ServerOptions,
    knobs,
    'server',
    model_path=str(model_folder),
    eos_token_ids=(tok.im_end, tok.endoftext),
    api_key=section.api_key or None,
    port_file=None,
    parent_pid=None,
    compile_cache=str(pathlib.Path('runs/compile_cache').absolute()),
  )
  server = launch.launch(
    options,
    env=wiring.child_environment(section.threads),
    log=folder / 'server.log',
    deadline_s=section.ready_timeout_s,
    parent_pid=os.getpid(),
  )
  return server, (server.url,)


def _agent(config: ConfigDict, client: clients.Client, tok: ChatTokenizer, frames: FrameStore, temperature: float) -> Agent:
  section = {**config.sampling.to_dict(), 'temperature': temperature}
  context = build(ContextOptions, section, 'sampling', min_pixels=config.video.min_pixels, max_pixels=config.video.max_pixels)
  sampler = Sampler(client, tok, context)
  subagents = Subagents(sampler, frames, build(SubagentOptions, config.subagent, 'subagent'))
  return Agent(sampler, subagents, frames, build(AgentOptions, config.agent, 'agent'))


@contextlib.asynccontextmanager
async def rewards(config: ConfigDict) -> AsyncIterator[groups.Reward]:
  """The recipe's reward; with open_ended='judge' an LLM is asked, and its failure drops the episode."""
  options = build(total.RewardOptions, config.reward, 'reward')
  if options.open_ended != 'judge':
    yield groups.rewarder(options, None)
    return
  if not config.judge.url:
    raise ConfigError("--config.judge.url is empty, but reward.open_ended is 'judge': name an OpenAI-compatible server")
  async with judge.Judge(build(judge.JudgeOptions, config.judge, 'judge', api_key=None)) as asked:
    yield groups.rewarder(options, asked)


def evaluation_reward(config: ConfigDict) -> groups.Reward:
  """How evaluations score: tvg by the IoU threshold, open-ended answers exactly; format as in training."""
  changed = {**config.reward.to_dict(), 'open_ended': 'exact', 'grounding_threshold': config.eval.grounding_threshold}
  return groups.rewarder(build(total.RewardOptions, changed, 'reward'), None)
