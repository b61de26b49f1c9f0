"""Makes the plan of a recipe: its data's load, memory, FLOPs, bytes, seconds, disk and hours."""

import dataclasses
from collections.abc import Callable
from typing import Any

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.orchestrator import split
from paravt_jax.orchestrator.plan import activations, flops, memory, rules, server, shapes, traffic
from paravt_jax.orchestrator.plan import state as states
from paravt_jax.orchestrator.plan.accelerators import GIB
from paravt_jax.orchestrator.plan.flops import Flops
from paravt_jax.orchestrator.plan.job import Job
from paravt_jax.orchestrator.plan.memory import Memory
from paravt_jax.orchestrator.plan.rules import Request
from paravt_jax.orchestrator.plan.server import Rollouts
from paravt_jax.orchestrator.plan.shapes import Load
from paravt_jax.orchestrator.plan.state import State
from paravt_jax.orchestrator.plan.traffic import Seconds, Traffic
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.row_layout import Shape

# GB per second to and from a disk, as Orbax writes with its defaults and at best.
DISK_GB_S = (0.8, 2.1)


@dataclasses.dataclass(frozen=True)
class Disk:
  """Files of a run, in GiB."""

  checkpoint: float  # one record
  kept: float  # all records and published versions at once
  export: float  # the last model
  checkpoints: int  # that a run writes
  seconds: tuple[float, float]  # to write one record


@dataclasses.dataclass(frozen=True)
class Learner:
  """What a step of the learner takes."""

  job: Job
  largest: Shape  # of a batch, in memory
  state: State
  load: Load
  made: Flops  # over all devices
  needed: Flops
  traffic: Traffic
  seconds: Seconds
  disk: Disk


@dataclasses.dataclass(frozen=True)
class Plan:
  """A recipe's needs on a target. An evaluation has no learner, and its step is one episode."""

  request: Request
  refusals: tuple[str, ...]
  learner: Learner | None
  memory: Memory | None  # None where the recipe was refused before it could be counted
  rollout: tuple[float, float] | None  # seconds of a step's rollouts on the run's servers
  steps: int
  devices: int  # of learner and servers
  too_large: int  # refusals that are about memory, the last ones

  @property
  def fits(self) -> bool:
    """Returns whether the recipe runs on the target."""
    return not self.refusals

  @property
  def flops(self) -> float:
    """Returns the FLOPs of an update over all devices; those of an evaluation's episode."""
    if self.learner:
      return self.learner.made.total
    recipe, shape = self.request.recipe, self.request.shape
    if not isinstance(recipe, EvalRecipe):
      return 0.0
    frames, pixels = max(recipe.eval.budgets), recipe.video.max_pixels
    tokens = shapes.opening_tokens(shape, frames, pixels) + shapes.rollout_tokens(shape)[0]
    tokens += shape.calls * shapes.subagent_tokens(shape, pixels)
    images = frames + shape.calls * shape.call_frames
    model = self.request.model
    patches = shapes.frame_tokens(pixels) * model.vision.merge**2
    image = flops.image_flops(model.vision, model.text.width, patches)
    return 2.0 * flops.text_weights(model.text) * tokens + images * image

  @property
  def step(self) -> tuple[float, float]:
    """Returns the range of a whole step's seconds: rollouts, and the update beside or after them.

    Rollouts run beside the update where staleness is above 0.
    """
    update = self.learner.seconds if self.learner else Seconds(0.0, 0.0)
    low, high = self.rollout or (0.0, 0.0)
    recipe = self.request.recipe
    if isinstance(recipe, RLRecipe) and recipe.rollout.staleness:
      return max(low, update.low), max(high, update.high)
    return low + update.low, high + update.high

  @property
  def hours(self) -> tuple[float, float]:
    """Returns the range of the run's hours: its steps, and its records."""
    low, high = (seconds * self.steps for seconds in self.step)
    if self.learner:
      disk = self.learner.disk
      low += disk.checkpoints * disk.seconds[0]
      high += disk.checkpoints * disk.seconds[1]
    return low / 3600, high / 3600


def make_plan(request: Request) -> Plan:
  """Returns the plan of a recipe. What does not fit or cannot run stands in `refusals`."""
  refusals = rules.find_refusals(request)
  if isinstance(request.recipe, EvalRecipe):
    return _evaluation(request, request.recipe, refusals)
  job = request.job
  try:
    if job is None or refusals:
      raise ConfigError(refusals[0] if refusals else 'no learner')
    learner = _learner(request.recipe, request, job)
  except (ConfigError, DataError) as error:
    line = ' '.join(str(error).split())
    lines = (*refusals, *([] if line in refusals else [line]))
    return Plan(request, lines, None, None, None, _steps(request.recipe), 0, 0)
  found = _memory(request, job.at(learner.largest), learner.state)
  options = request.recipe.device
  shared = options.memory_fraction if found.parts['server'] else 0.0
  too_large = _server_refusals(request, learner.state.parameters, shared)
  too_large += memory.find_refusals(found, request.target)
  in_process = isinstance(recipe := request.recipe, RLRecipe) and split.is_split(recipe.server)
  too_large += refused(
    memory.refuse_share, found, options.memory_fraction, request.target, in_process
  )
  return Plan(
    request,
    (*refusals, *too_large),
    learner,
    found,
    _rollout_seconds(request, learner.state.parameters),
    _steps(request.recipe),
    job.devices + found.server_devices,
    len(too_large),
  )


def count_memory(request: Request) -> Memory:
  """Returns the memory of a recipe with a learner, and nothing else of its plan.

  Raises:
    ConfigError, DataError: it cannot be counted; a rule that it breaks may be the reason.
  """
  recipe, job = request.recipe, request.job
  if job is None or isinstance(recipe, EvalRecipe):
    raise ConfigError('a recipe without a learner has no plan of its memory')
  load = _load(recipe, request, job)
  shape = activations.largest_shape(job, load.full_micro_batches)
  return _memory(request, job.at(shape), states.state_of(job))


def _load(recipe: RLRecipe | SFTRecipe, request: Request, job: Job) -> Load:
  """Lays out the recipe's own data, or data of stated shapes."""
  if request.data is not None:
    return shapes.pack(job, request.data.documents, request.data.bins)
  if isinstance(recipe, RLRecipe):
    return shapes.pack(job, shapes.documents_of_rl(recipe, request.shape))
  return shapes.pack(job, shapes.documents_of_sft(recipe, request.shape))


def _memory(request: Request, job: Job, state: State) -> Memory:
  section = None if isinstance(request.recipe, SFTRecipe) else request.recipe.server
  return memory.memory_of_learner(job, state, section, request.target)


def _learner(recipe: RLRecipe | SFTRecipe, request: Request, job: Job) -> Learner:
  state, load = states.state_of(job), _load(recipe, request, job)
  taken = job.at(load.shape)
  made = flops.made(taken, load)
  bytes_moved = traffic.traffic_of(taken, load, state)
  accelerator = request.target.accelerator
  return Learner(
    job=job,
    largest=activations.largest_shape(job, load.full_micro_batches),
    state=state,
    load=load,
    made=made,
    needed=flops.needed(taken, load),
    traffic=bytes_moved,
    seconds=traffic.seconds_of(taken, accelerator, made.total, bytes_moved),
    disk=_disk(recipe, state),
  )


def _disk(recipe: RLRecipe | SFTRecipe, state: State) -> Disk:
  record = state.checkpoint / GIB
  kept = record * recipe.run.keep
  if isinstance(recipe, RLRecipe):
    kept += state.published / GIB * recipe.publish.keep
  every, steps = recipe.run.checkpoint_every, _steps(recipe)
  slow, fast = (record * GIB / 1e9 / rate for rate in DISK_GB_S)
  return Disk(
    checkpoint=record,
    kept=kept,
    export=2 * state.parameters / GIB,
    checkpoints=-(-steps // every) if every else 1,
    seconds=(fast, slow),
  )


def _steps(recipe: RLRecipe | SFTRecipe | EvalRecipe) -> int:
  """Returns the updates of a run; the episodes of an evaluation of one benchmark, if limited."""
  if isinstance(recipe, RLRecipe):
    return recipe.rollout.steps
  if isinstance(recipe, SFTRecipe):
    return recipe.steps
  return max(1, recipe.eval.limit or recipe.eval.world_questions)


def refused(check: Callable[..., None], *arguments: Any) -> list[str]:
  """Returns the ConfigError of a check as a list of one line; [] if there is none."""
  try:
    check(*arguments)
  except ConfigError as error:
    return [str(error)]
  return []


def _server_refusals(request: Request, parameters: int, learner: float = 0.0) -> list[str]:
  recipe = request.recipe
  if isinstance(recipe, SFTRecipe):
    return []
  share = server.share_of(
    recipe.server, request.model, parameters, request.target.accelerator.platform
  )
  return refused(memory.check_fraction, recipe.server, share, request.target, learner)


def _rollout_seconds(request: Request, parameters: int) -> tuple[float, float] | None:
  """Returns None for SFT, and for servers by URL whose number is not known."""
  recipe = request.recipe
  if isinstance(recipe, SFTRecipe):
    return None
  section = recipe.server
  servers = len(section.urls) if section.kind == 'url' else section.count
  if not servers:
    return None
  if split.is_split(section):
    servers *= request.target.hosts
  rl = isinstance(recipe, RLRecipe)
  frames = shapes.largest_budget(recipe) if rl else max(recipe.eval.budgets)
  pixels = recipe.video.max_pixels
  prompts = recipe.rollout.prompts if rl else recipe.eval.concurrent
  rollouts = Rollouts(
    prompts=prompts,
    episodes=prompts * recipe.rollout.group_size if rl else prompts,
    opening=shapes.opening_tokens(request.shape, frames, pixels),
    subagent=shapes.subagent_tokens(request.shape, pixels) - request.shape.summary,
    shape=request.shape,
  )
  low, high = server.seconds_of(
    rollouts, request.model, parameters, request.target.accelerator, servers
  )
  return (low, high) if rl else (low / prompts, high / prompts)


def _evaluation(request: Request, recipe: EvalRecipe, refusals: list[str]) -> Plan:
  """Plans the servers. Those by URL are taken to be SGLang, as `server.sglang` says."""
  if recipe.server.kind == 'url':
    count = max(1, len(recipe.server.urls))
    recipe = recipe.replace(
      server=recipe.server.replace(kind='sglang', count=count, urls=(), router='')
    )
    request = dataclasses.replace(request, recipe=recipe)
  parameters = states.parameters_of(request.model)
  share = server.share_of(
    recipe.server, request.model, parameters, request.target.accelerator.platform
  )
  found = memory.memory_of_server(recipe.server, share)
  too_large = _server_refusals(request, parameters)
  too_large += memory.find_refusals(found, request.target)
  return Plan(
    request,
    (*refusals, *too_large),
    None,
    found,
    _rollout_seconds(request, parameters),
    _steps(recipe),
    memory.devices_of_servers(recipe.server),
    len(too_large),
  )
