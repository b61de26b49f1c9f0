"""Optimizers by name, learning-rate schedules, and the split of parameters for Muon."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from paravt_jax.errors import ConfigError
from paravt_jax.models.sharding import is_axes
from paravt_jax.options import COUNT, DECAY, POSITIVE, SHARE, Options, from_, one_of, whole

STACK_AXES = frozenset({'layers', 'taps'})  # axes along which equal weights are stacked
# a weight with one of these is a look-up table, not a matrix
TABLE_AXES = frozenset({'vocab', 'vision_positions'})


@dataclasses.dataclass(frozen=True)
class OptimizerOptions(Options):
  """Numbers of one optimizer.

  Weight decay acts on matrices, under adamw on embeddings too, never on norms and biases; adam has
  none. With muon, embeddings, norms and biases take AdamW at `learning_rate`.
  """

  name: Annotated[str, one_of('adam', 'adamw', 'muon')]  # which optimizer
  learning_rate: Annotated[float, from_(0, '0: nothing changes')]  # the peak of the schedule
  matrix_learning_rate: Annotated[float, from_(0)]  # that of matrices under muon
  schedule: Annotated[str, one_of('constant', 'cosine')]  # after the warm-up
  warmup_steps: Annotated[int, whole(0)]  # of the linear rise from 0
  total_steps: Annotated[int, COUNT]  # where the cosine ends; it stays there
  final_scale: Annotated[float, SHARE]  # of the learning rate, at the cosine's end
  weight_decay: Annotated[float, from_(0)]  # decoupled, times the learning rate
  beta1: Annotated[float, DECAY]  # of the mean of gradients
  beta2: Annotated[float, DECAY]  # of the mean of their squares
  epsilon: Annotated[float, POSITIVE]  # added to the root of the mean square
  momentum: Annotated[float, DECAY]  # of muon
  clip_norm: Annotated[float, from_(0, '0: no clipping')]  # bound of the global gradient norm

  @classmethod
  def published(cls) -> 'OptimizerOptions':
    """The numbers of the paper's RL: AdamW at a constant 2e-6."""
    return cls(
      name='adamw',
      learning_rate=2e-6,
      matrix_learning_rate=2e-6,
      schedule='constant',
      warmup_steps=0,
      total_steps=54,
      final_scale=0.0,
      weight_decay=0.01,
      beta1=0.9,
      beta2=0.999,
      epsilon=1e-8,
      momentum=0.95,
      clip_norm=1.0,
    )


Schedule = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]


def at_step(opt_state: Any, step: jax.Array) -> Any:
  """Returns the optimizer state with every schedule at `step`.

  So learning rates depend only on the run's step. Optax counts updates instead: with several
  updates per batch its count is above the step, after a skipped update below it. Moments and their
  bias corrections keep counting updates.
  """

  def is_schedule(node: Any) -> bool:
    return isinstance(node, optax.ScaleByScheduleState)

  def move_schedule(node: Any) -> Any:
    if not is_schedule(node):
      return node
    return optax.ScaleByScheduleState(jnp.asarray(step, node.count.dtype))

  return jax.tree.map(move_schedule, opt_state, is_leaf=is_schedule)


def make_schedule(options: OptimizerOptions, peak: float) -> Schedule:
  """Returns the learning rate as a function of the step.

  A warm-up begins at peak / warmup_steps, not at 0, so step 0 trains too.
  """
  warmup = max(options.warmup_steps, 0)
  decay = {
    'constant': lambda: optax.constant_schedule(peak),
    'cosine': lambda: optax.cosine_decay_schedule(
      peak, max(options.total_steps - warmup, 1), alpha=options.final_scale
    ),
  }
  if options.schedule not in decay:
    raise ConfigError(
      f'optimizer.schedule: got {options.schedule!r}, wanted one of {sorted(decay)}'
    )
  if not warmup:
    return decay[options.schedule]()
  ramp = optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1))
  return optax.join_schedules([ramp, decay[options.schedule]()], [warmup])


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """A gradient transformation, and what logs and checkpoints need to know of it."""

  transform: optax.GradientTransformation  # of the trainable parameters
  learning_rate: Schedule  # the one that is logged
  frozen: tuple[str, ...]  # top-level names of parameters that stay as they are
  frozen_dtype: str = 'float32'  # what the state keeps them in


def partition(
  tree: dict[str, Any], frozen: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits a dict of parameters (or of their axes) by its top-level names: (trainable, frozen).
  `{**a, **b}` joins them again.

  Raises:
    ConfigError: a frozen name that the tree does not have.
  """
  unknown = set(frozen) - set(tree)
  if unknown:
    raise ConfigError(
      f'frozen parameters: got {sorted(unknown)}, wanted names among {sorted(tree)}'
    )
  return {k: v for k, v in tree.items() if k not in frozen}, {
    k: v for k, v in tree.items() if k in frozen
  }


def matrix_axes(axes: tuple[str | None, ...]) -> contrib.MuonDimensionNumbers | None:
  """Returns the input and output axes of a weight, None unless it is a matrix.

  Norms, biases and embeddings are not matrices.

  The leading axis of stacked weights is a batch axis: each layer's matrix is orthogonalised
  alone.

  Returns:
    Indices of the input axes (all but the last) and of the output axis (the last), as in
    `nn.Dense` kernels.
  """
  inner = [i for i, name in enumerate(axes) if name not in STACK_AXES]
  if len(inner) < 2 or TABLE_AXES & set(axes):
    return None
  return contrib.MuonDimensionNumbers(tuple(inner[:-1]), (inner[-1],))


def make_optimizer(
  options: OptimizerOptions,
  axes: dict[str, Any],
  frozen: tuple[str, ...],
  frozen_dtype: str = 'float32',
) -> Optimizer:
  """Builds the optimizer for the trainable parameters.

  Args:
    options: the numbers.
    axes: logical axes of all parameters (model.logical_axes), a tree like theirs with tuples of
      names as leaves.
    frozen: top-level names of parameters that get no gradient, no update and no optimizer state,
      such as ('visual',).
    frozen_dtype: what the state keeps frozen parameters in.

  Raises:
    ConfigError: unknown optimizer, schedule or frozen name.
  """
  trainable, _ = partition(axes, frozen)
  rate = make_schedule(options, options.learning_rate)
  # weight decay acts on matrices and tables, not on norms and biases
  decayed = jax.tree.map(
    lambda names: len([n for n in names if n not in STACK_AXES]) >= 2, trainable, is_leaf=is_axes
  )
  b1, b2, eps = options.beta1, options.beta2, options.epsilon
  makers = {
    'adam': lambda: optax.adam(rate, b1=b1, b2=b2, eps=eps),
    'adamw': lambda: optax.adamw(
      rate, b1=b1, b2=b2, eps=eps, weight_decay=options.weight_decay, mask=decayed
    ),
    'muon': lambda: _muon(options, rate, trainable),
  }
  if options.name not in makers:
    raise ConfigError(f'optimizer.name: got {options.name!r}, wanted one of {sorted(makers)}')
  clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm > 0 else []
  transform = optax.chain(*clip, makers[options.name]())
  return Optimizer(transform, rate, tuple(frozen), frozen_dtype)


def _muon(options: OptimizerOptions, rate: Schedule, axes: Any) -> optax.GradientTransformation:
  """Muon (Jordan et al. 2024) on matrices, AdamW (with Nesterov's momentum, without decay) on the
  rest.
  """
  return contrib.muon(
    make_schedule(options, options.matrix_learning_rate),
    beta=options.momentum,
    eps=options.epsilon,
    weight_decay=options.weight_decay,
    adam_b1=options.beta1,
    adam_b2=options.beta2,
    adam_learning_rate=rate,
    muon_weight_dimension_numbers=jax.tree.map(matrix_axes, axes, is_leaf=is_axes),
  )
