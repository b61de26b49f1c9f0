"""Recipes that cannot run, or that waste what they ask for: one line each, with the way out.

These rules look at several sections at once, at the model's sizes and at the target. The rule of a
single knob stands with its field, and `orchestrator/checks.py` has those that every run checks.
"""

import dataclasses
from collections.abc import Callable, Iterator

from paravt_jax.errors import ConfigError, ParavtError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.options import require
from paravt_jax.orchestrator import checks, servers, split
from paravt_jax.orchestrator.plan import job as jobs
from paravt_jax.orchestrator.plan import shapes, state
from paravt_jax.orchestrator.plan.accelerators import Target
from paravt_jax.orchestrator.plan.job import Job, Recipe
from paravt_jax.orchestrator.plan.shapes import OwnData, Shape
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.orchestrator.server_options import ServersOptions
from paravt_jax.orchestrator.setup import AgentSetup

# Far above what anyone trains. Half of these rows take half a minute to lay out.
MOST_TOKENS = 2**20  # of a row
MOST_ROWS = 2**12  # of a step of SFT, rollouts of a step of RL


@dataclasses.dataclass(frozen=True)
class Request:
  """What a plan is asked about."""

  recipe: Recipe
  target: Target
  model: Config
  model_source: str  # where the model's sizes come from
  shape: Shape
  data: OwnData | None = None  # of one step; None: stated shapes
  data_source: str = 'stated shapes'  # where a step's data come from

  @property
  def job(self) -> Job | None:
    """Returns the learner's job; an evaluation has none."""
    if isinstance(self.recipe, EvalRecipe):
      return None
    return jobs.job_of(self.recipe, self.model, self.target.accelerator.platform)


def find_refusals(request: Request) -> list[str]:
  """Returns why a recipe cannot run as it is, one line per fault; [] if it can.

  Whether it fits into memory is not among them: see `make_plan`.
  """
  found = []
  try:
    _check_size(request)
  except ConfigError as error:  # the other rules lay out a step, which would take too long
    return [str(error)]
  for rule in _rules(request):
    try:
      rule()
    except ParavtError as error:
      line = ' '.join(str(error).split())
      if line not in found:
        found.append(line)
  return found


def _rules(request: Request) -> Iterator[Callable[[], None]]:
  recipe = request.recipe
  if isinstance(recipe, RLRecipe):
    yield lambda: checks.check_rl(recipe, installed=False)
    yield lambda: _check_budgets(recipe, request, shapes.largest_budget(recipe), 'frames.budgets')
    yield lambda: _check_subagents(recipe, request)
    yield lambda: _check_rows(recipe, request)
    yield lambda: _check_images(recipe)
    yield lambda: _check_queue(recipe)
    yield lambda: _check_warmup(recipe, recipe.rollout.steps, 'rollout.steps')
  elif isinstance(recipe, SFTRecipe):
    yield lambda: checks.check_sft(recipe)
    yield lambda: _check_conversations(recipe, request)
    yield lambda: _check_warmup(recipe, recipe.steps, 'steps')
  else:
    most = max(recipe.eval.budgets)
    yield lambda: servers.check(AgentSetup.of(recipe), installed=False)
    yield lambda: _check_budgets(recipe, request, most, 'eval.budgets')
    yield lambda: _check_subagents(recipe, request)
  yield lambda: _check_mesh(request)
  yield lambda: _check_flags(request)
  if not isinstance(recipe, SFTRecipe):
    yield lambda: _check_lanes(recipe, request)
    yield lambda: _check_server_devices(recipe, request)
    yield lambda: _check_width(recipe.server, request.model)


def _check_mesh(request: Request) -> None:
  """The mesh exists on the target, and divides every parameter and the heads."""
  job = request.job
  if job is None:
    return
  count = request.target.count
  if job.devices > count:
    raise ConfigError(
      f'--config.mesh: {sharding.product_of(job.mesh.sizes)} devices, wanted at most {count}, '
      f'those of --target={request.target.name}; lower config.mesh, or name a larger target'
    )
  state.refuse_indivisible(job)


def _check_size(request: Request) -> None:
  """A step can be laid out without minutes of waiting."""
  recipe = request.recipe
  if isinstance(recipe, EvalRecipe):
    return
  train = recipe.train
  require(
    train.row_tokens, f'at most {MOST_TOKENS}', train.row_tokens <= MOST_TOKENS, 'train.row_tokens'
  )
  require(train.rows, f'at most {MOST_ROWS}', train.rows <= MOST_ROWS, 'train.rows')
  if isinstance(recipe, RLRecipe):
    prompts, group = recipe.rollout.prompts, recipe.rollout.group_size
    wanted = f'at most {MOST_ROWS // group}, with {group} rollouts each'
    require(prompts, wanted, prompts * group <= MOST_ROWS, 'rollout.prompts')
  else:
    wanted = f'at most {MOST_ROWS // train.rows}, with {train.rows} rows each'
    rows = train.rows * train.micro_batches
    require(train.micro_batches, wanted, rows <= MOST_ROWS, 'train.micro_batches')


def _check_flags(request: Request) -> None:
  """The named XLA flags are those of the target's platform."""
  if isinstance(request.recipe, EvalRecipe):
    return
  named, platform = request.recipe.device.xla_flags, request.target.accelerator.platform
  if platform == 'cpu':
    return  # it stands in for another device
  own = {'cuda': 'gpu', 'tpu': 'tpu'}[platform]
  require(
    named, f'{own} or none on {request.target.name}', named in (own, 'none'), 'device.xla_flags'
  )


def _check_budgets(recipe: RLRecipe | EvalRecipe, request: Request, frames: int, knob: str) -> None:
  """The largest prompt and one turn fit the context, and the context fits the model."""
  context, turn = recipe.sampling.context, recipe.agent.max_new_tokens
  wanted = f'at most {request.model.text.max_positions}, the positions of this model'
  require(context, wanted, context <= request.model.text.max_positions, 'sampling.context')
  opening = shapes.opening_tokens(request.shape, frames, recipe.video.max_pixels)
  if opening + turn > context:
    raise ConfigError(
      f'--config.{knob}: {frames} frames make a prompt of about {opening} tokens; with '
      f'agent.max_new_tokens={turn} that is above sampling.context={context}: raise the context, '
      'or lower the frames, video.max_pixels or agent.max_new_tokens'
    )


def _check_subagents(recipe: RLRecipe | EvalRecipe, request: Request) -> None:
  """A sub-agent's prompt with all its frames, and its reply, fit the context."""
  options, context = recipe.subagent, recipe.sampling.context
  each = request.shape.frame + shapes.frame_tokens(recipe.video.max_pixels)
  asked = request.shape.task + options.max_frames * each
  wanted = (
    f'fewer frames: a prompt of about {asked} tokens with subagent.max_new_tokens='
    f'{options.max_new_tokens} is above sampling.context={context}'
  )
  fits = asked + options.max_new_tokens <= context
  require(options.max_frames, wanted, fits, 'subagent.max_frames')


def _check_rows(recipe: RLRecipe, request: Request) -> None:
  """A row holds the largest prompt with one whole rollout, and a sub-agent's document."""
  frames, pixels = shapes.largest_budget(recipe), recipe.video.max_pixels
  opening = shapes.opening_tokens(request.shape, frames, pixels)
  behind, _ = shapes.rollout_tokens(request.shape)
  least = max(opening + behind, shapes.subagent_tokens(request.shape, pixels))
  wanted = (
    f'at least {least}: a prompt of {frames} frames takes {opening} tokens and a rollout with '
    f'{request.shape.calls} calls {behind}; raise it, or lower the frames or video.max_pixels'
  )
  require(recipe.train.row_tokens, wanted, recipe.train.row_tokens >= least, 'train.row_tokens')


def _check_images(recipe: RLRecipe) -> None:
  """A row has slots for the frames of the largest prompt and of a sub-agent."""
  least = max(shapes.largest_budget(recipe), recipe.subagent.max_frames)
  wanted = f'at least {least}, the frames of one prompt (frames.budgets, subagent.max_frames)'
  require(recipe.train.row_images, wanted, recipe.train.row_images >= least, 'train.row_images')


def _check_conversations(recipe: SFTRecipe, request: Request) -> None:
  """A row holds an overview of the most frames that a row of data gets."""
  frames, train = recipe.frames.max_frames, recipe.train
  wanted = f'at least {frames} (frames.max_frames), or 0 for data without frames'
  holds = train.row_images >= frames or train.row_images == 0
  require(train.row_images, wanted, holds, 'train.row_images')
  least = shapes.opening_tokens(request.shape, frames, recipe.video.max_pixels)
  least += shapes.rollout_tokens(request.shape)[0]
  wanted = (
    f'at least {least}: a dialogue over {frames} frames; raise it, or lower frames.max_frames or '
    'video.max_pixels, or longer rows are left out'
  )
  holds = train.row_images == 0 or train.row_tokens >= least
  require(train.row_tokens, wanted, holds, 'train.row_tokens')


def _check_queue(recipe: RLRecipe) -> None:
  """A whole step's groups may be in flight, or the servers idle and staleness is never used."""
  knobs = recipe.rollout
  wanted = (
    f'at least {knobs.prompts} (rollout.prompts), or a step is never in flight as a whole and '
    f'rollout.staleness={knobs.staleness} has no effect'
  )
  require(
    knobs.max_concurrent, wanted, knobs.max_concurrent >= knobs.prompts, 'rollout.max_concurrent'
  )


def _check_warmup(recipe: RLRecipe | SFTRecipe, steps: int, knob: str) -> None:
  """The warm-up ends before the run."""
  warmup = recipe.optimizer.warmup_steps
  wanted = f'below {knob}={steps}, or the learning rate never reaches its peak'
  require(warmup, wanted, warmup == 0 or warmup < steps, 'optimizer.warmup_steps')


def _check_lanes(recipe: RLRecipe | EvalRecipe, request: Request) -> None:
  """An embedded server has a lane for the longest dialogue."""
  if recipe.server.kind != 'embedded':
    return
  lanes, context = recipe.server.embedded.lanes, recipe.sampling.context
  wanted = f'a lane of at least sampling.context={context} tokens; add one, or lower the context'
  require(lanes, wanted, max(lane[0] for lane in lanes) >= context, 'server.embedded.lanes')


def _check_server_devices(recipe: RLRecipe | EvalRecipe, request: Request) -> None:
  """The devices of started SGLang servers, and of those in the learner's process, exist.

  Whether those of SGLang are the learner's too is a matter of memory: see `build`.
  """
  section, target = recipe.server, request.target
  if split.is_split(section) and isinstance(recipe, RLRecipe):
    share = range(target.count // target.hosts)
    each = {host: list(share) for host in range(target.hosts)}
    split.check_devices(recipe.mesh, section, each, f' of --target={target.name}')
  if section.kind != 'sglang':
    return
  count, devices = request.target.count, section.sglang.devices
  name = request.target.name
  wanted = f'numbers below {count}, the devices of --target={name}'
  require(devices, wanted, all(one < count for one in devices), 'server.sglang.devices')
  needed = section.count * section.sglang.tensor_parallel
  wanted = f'fewer: {needed} devices with tensor_parallel, but --target={name} has {count}'
  require(section.count, wanted, needed <= count, 'server.count')


def _check_width(section: ServersOptions, model: Config) -> None:
  """A server's devices divide the heads."""
  if section.kind == 'embedded':
    wide, heads = section.embedded.tensor_parallel, model.text.kv_heads
    wanted = f'a divisor of {heads}, the key heads of this model'
    require(wide, wanted, heads % wide == 0, 'server.embedded.tensor_parallel')
  if section.kind != 'sglang':
    return
  wide, heads = section.sglang.tensor_parallel, model.text.heads
  wanted = f'a divisor of {heads}, the query heads of this model'
  require(wide, wanted, heads % wide == 0, 'server.sglang.tensor_parallel')
