"""Recipes: the settings of an entry point, as trees of frozen options that check their values.

A recipe file of configs/ has the numbers of an experiment. `experiments/launch.py` turns it into
one of these trees, so that nothing below sees anything but typed options:

    recipe = RLRecipe.published()
    recipe = recipe.replace(agent=recipe.agent.replace(max_turns=2))

Each options class returns the published numbers of the paper, as in `AgentOptions.published()`. A
field without its own rule is a section.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar

from paravt_jax.data.batches import FillOptions
from paravt_jax.data.sft import FrameCountOptions
from paravt_jax.eval.chat_model import ChatOptions
from paravt_jax.options import (
  COUNT,
  NAME,
  PROSE,
  SEED,
  SOURCE,
  TEXT,
  Members,
  Options,
  one_of,
)
from paravt_jax.orchestrator import alarms, eval_options, options, server_options
from paravt_jax.orchestrator.device import DeviceOptions
from paravt_jax.orchestrator.hosts import HostsOptions
from paravt_jax.orchestrator.profiling import ProfileOptions
from paravt_jax.rewards.total import RewardOptions
from paravt_jax.rollout.agent import AgentOptions
from paravt_jax.rollout.chat_server import RequestOptions
from paravt_jax.rollout.groups import BudgetOptions
from paravt_jax.rollout.http import ConnectionOptions
from paravt_jax.rollout.judge import JudgeOptions
from paravt_jax.rollout.sampler import SamplingOptions
from paravt_jax.rollout.subagent import SubagentOptions
from paravt_jax.row_layout import LayoutOptions
from paravt_jax.train.optimizer import OptimizerOptions
from paravt_jax.train.step import RLOptions


@dataclasses.dataclass(frozen=True)
class SFTRecipe(Options):
  """The cold start (`experiments.sft`)."""

  SECTION: ClassVar[str] = 'sources'  # that only these recipes have
  EXAMPLE: ClassVar[str] = 'configs/sft.py'

  name: Annotated[str, NAME]  # the recipe's name
  scale: Annotated[str, NAME]  # of the recipe, as behind its name on the command line
  seed: Annotated[int, SEED]  # of every random draw
  run: options.RunOptions
  profile: ProfileOptions
  model: options.ModelOptions
  data: options.SFTDataOptions
  frames: FrameCountOptions
  # (weight, first step, last step or None) by source: its name in the manifest, or that of its file
  # (paravt_sft_<name>.parquet). Without any weight here or in the manifest, sources are drawn in
  # proportion to their rows; else those without have weight 1.
  sources: Annotated[Mapping[str, tuple[float, int, int | None]], Members(SOURCE)]
  video: options.SFTVideoOptions
  steps: Annotated[int, COUNT]  # updates of the run
  optimizer: options.SFTOptimizerOptions
  train: options.SFTTrainOptions
  batches: FillOptions
  watch: alarms.SFTWatchOptions
  mesh: options.MeshOptions
  device: DeviceOptions
  hosts: HostsOptions
  world: options.WorldOptions | None  # with data.kind=world

  @classmethod
  def published(cls) -> 'SFTRecipe':
    """Returns the numbers of ParaVT-SFT: 8B on eight devices."""
    return cls(
      name='sft',
      scale='8b',
      seed=0,
      run=options.RunOptions.published(100),
      profile=ProfileOptions.published(),
      model=options.ModelOptions(folder=''),
      data=options.SFTDataOptions.published(),
      frames=FrameCountOptions.published(),
      sources={},
      video=options.SFTVideoOptions.published(),
      steps=500,
      optimizer=options.SFTOptimizerOptions.published(),
      train=options.SFTTrainOptions.published(),
      batches=FillOptions.published(),
      watch=alarms.SFTWatchOptions.published(),
      mesh=options.MeshOptions.published(),
      device=DeviceOptions.published(),
      hosts=HostsOptions.published(),
      world=None,
    )


@dataclasses.dataclass(frozen=True)
class RLRecipe(Options):
  """The main job (`experiments.rl`)."""

  SECTION: ClassVar[str] = 'rollout'
  EXAMPLE: ClassVar[str] = 'configs/para_grpo.py'

  name: Annotated[str, NAME]  # the recipe's name
  scale: Annotated[str, NAME]  # of the recipe, as behind its name on the command line
  seed: Annotated[int, SEED]  # of every random draw
  run: options.RunOptions
  profile: ProfileOptions
  model: options.ModelOptions
  data: options.RLDataOptions
  video: options.VideoOptions
  frames: BudgetOptions
  sampling: options.RLSamplingOptions
  agent: AgentOptions
  subagent: SubagentOptions
  reward: RewardOptions
  judge: JudgeOptions
  rollout: options.RolloutOptions
  rl: RLOptions
  optimizer: OptimizerOptions
  train: options.TrainOptions
  batches: LayoutOptions
  watch: alarms.WatchOptions
  mesh: options.MeshOptions
  device: DeviceOptions
  hosts: HostsOptions
  server: server_options.ServersOptions
  publish: server_options.PublishOptions
  client: ConnectionOptions
  eval: eval_options.HeldOutOptions
  cold_start: SFTRecipe | None  # made where model.folder is empty
  world: options.WorldOptions | None  # with data.kind=world

  @classmethod
  def published(cls) -> 'RLRecipe':
    """Returns the numbers of the paper and its release: 8B on eight devices, servers by URL."""
    return cls(
      name='para_grpo',
      scale='8b',
      seed=0,
      run=options.RunOptions.published(),
      profile=ProfileOptions.published(),
      model=options.ModelOptions(folder=''),
      data=options.RLDataOptions.published(),
      video=options.VideoOptions.published(),
      frames=BudgetOptions.published(),
      sampling=options.RLSamplingOptions.published(),
      agent=AgentOptions.published(),
      subagent=SubagentOptions.published(),
      reward=RewardOptions.published(),
      judge=JudgeOptions.published(),
      rollout=options.RolloutOptions.published(),
      rl=RLOptions.published(),
      optimizer=OptimizerOptions.published(),
      train=options.TrainOptions.published(),
      batches=LayoutOptions.published(),
      watch=alarms.WatchOptions.published(),
      mesh=options.MeshOptions.published(),
      device=DeviceOptions.published(),
      hosts=HostsOptions.published(),
      server=server_options.ServersOptions.published(),
      publish=server_options.PublishOptions.published(),
      client=ConnectionOptions.published(),
      eval=eval_options.HeldOutOptions.published(),
      cold_start=None,
      world=None,
    )


@dataclasses.dataclass(frozen=True)
class EvalRecipe(Options):
  """An evaluation (`experiments.eval`)."""

  SECTION: ClassVar[str] = 'protocol'
  EXAMPLE: ClassVar[str] = 'configs/eval.py'

  name: Annotated[str, NAME]  # the recipe's name
  scale: Annotated[str, NAME]  # of the recipe, as behind its name on the command line
  seed: Annotated[int, SEED]  # of every random draw
  video: options.VideoOptions
  sampling: SamplingOptions
  agent: AgentOptions
  subagent: SubagentOptions
  reward: RewardOptions
  server: server_options.ServersOptions
  client: ConnectionOptions
  hosts: HostsOptions
  benchmarks: Annotated[str, PROSE]  # their names, separated by commas
  model: eval_options.EvaluatedModelOptions
  run: options.FolderOptions
  shard: Annotated[str, PROSE]  # '3/16': the third of sixteen parts, by videos; '': all
  data: eval_options.SnapshotOptions
  paths: eval_options.Paths  # the snapshot of a benchmark, where it is not below data.root
  protocol: eval_options.ProtocolOptions
  eval: eval_options.SuiteOptions
  chat: ChatOptions
  chat_server: RequestOptions
  train: eval_options.FrozenOptions
  world: options.WorldOptions


@dataclasses.dataclass(frozen=True)
class AskRecipe(Options):
  """One question on one video (`experiments.ask`)."""

  SECTION: ClassVar[str] = 'question'
  EXAMPLE: ClassVar[str] = 'configs/ask.py'

  name: Annotated[str, NAME]  # the recipe's name
  scale: Annotated[str, NAME]  # of the recipe, as behind its name on the command line
  seed: Annotated[int, SEED]  # of sampling above temperature 0
  video: Annotated[str, PROSE]  # a video file
  question: Annotated[str, PROSE]  # what to ask about it
  # oe: in a few words; mcq: the letter of an option that the question holds; tvg: [start, end]
  question_type: Annotated[str, one_of('mcq', 'tvg', 'oe')]
  html: Annotated[str, TEXT]  # a page to write; '': none
  frames: Annotated[int, COUNT]  # of the overview
  model: options.ModelOptions
  folder: Annotated[str, NAME]  # for the server's log
  decode: options.VideoOptions
  sampling: SamplingOptions
  agent: AgentOptions
  subagent: SubagentOptions
  server: server_options.ServersOptions
  client: ConnectionOptions
