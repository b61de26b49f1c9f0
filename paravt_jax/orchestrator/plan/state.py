"""The learner's state in bytes per device, exact: by the shapes and shardings of its leaves.

The mesh is abstract, so no device is asked for.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType

from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator import parts
from paravt_jax.orchestrator.options import MeshOptions
from paravt_jax.orchestrator.plan.job import BYTES, Job
from paravt_jax.train import state
from paravt_jax.train.optimizer import Optimizer, OptimizerOptions, partition

GRADIENT_DTYPE = 'float32'  # of the sum over micro-batches (train/step.py)


@dataclasses.dataclass(frozen=True)
class State:
  """Bytes on one device, and on all disks."""

  weights: int  # of the policy, with what is frozen
  optimizer: int
  gradients: int  # the sum over micro-batches
  reference: int  # what is trained, in the compute dtype, without an optimizer state
  parameters: int  # number of parameters
  trained: int  # of them those that are trained
  checkpoint: int  # bytes of a record on disk: trained weights and optimizer
  published: int  # bytes of one version of the trained weights, in bfloat16


def abstract_mesh(mesh: MeshOptions) -> Any:
  """Returns a mesh without devices. It has the shape and axes of sharding.make_mesh."""
  types = (AxisType.Auto,) * len(sharding.MESH_AXES)
  return AbstractMesh(mesh.sizes, sharding.MESH_AXES, axis_types=types)


def optimizer_of(job: Job) -> Optimizer:
  """Returns the job's optimizer."""
  train = job.train
  return parts.make_optimizer(
    job.optimizer, job.model, freeze_vision=train.freeze_vision, dtype=train.dtype
  )


def state_of(job: Job) -> State:
  """Returns the state's bytes.

  Raises:
    ConfigError: the mesh does not divide a parameter.
  """
  found = _state(job.model, job.mesh, job.optimizer, job.train.freeze_vision, job.train.dtype)
  numbers = found.gradients // BYTES[GRADIENT_DTYPE]
  # the reference of an adapter is the base, which is there already
  copied = job.reference and job.model.adapter is None
  return dataclasses.replace(found, reference=numbers * job.width if copied else 0)


@functools.lru_cache(maxsize=64)
def _state(
  config: Config, mesh: MeshOptions, numbers: OptimizerOptions, freeze_vision: bool, dtype: str
) -> State:
  """Returns the state's bytes without a reference. Advice asks for the same state many times."""
  optimizer = parts.make_optimizer(numbers, config, freeze_vision=freeze_vision, dtype=dtype)
  found = state.abstract(config, optimizer, abstract_mesh(mesh))
  trained, _ = partition(found.params, optimizer.frozen)
  trained_numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained))
  return State(
    weights=_bytes_here(found.params),
    optimizer=_bytes_here(found.opt_state),
    gradients=_numbers_here(trained) * BYTES[GRADIENT_DTYPE],
    reference=0,
    parameters=parameters_of(config),
    trained=trained_numbers,
    checkpoint=_bytes(trained) + _bytes(found.opt_state),
    published=trained_numbers * 2,
  )


def refuse_indivisible(job: Job) -> None:
  """Raises ConfigError for a mesh that does not divide a parameter, or heads."""
  text, vision, wide = job.model.text, job.model.vision, job.mesh.tensor
  for what, count in (
    ('key heads', text.kv_heads),
    ('query heads', text.heads),
    ('vision heads', vision.heads),
  ):
    if count % wide:
      raise ConfigError(
        f'--config.mesh.tensor={wide}: wanted a divisor of {count}, the {what} of this model'
      )
  axes, shapes = _axes(job.model), _shapes(job.model)
  sharding.parameter_shardings(axes, shapes, abstract_mesh(job.mesh))


def _numbers_here(tree: Any) -> int:
  return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _bytes_here(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _bytes(tree: Any) -> int:
  return sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree)
  )


def parameters_of(config: Config) -> int:
  """Returns the number of a model's parameters."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(_shapes(config)))


@functools.lru_cache(maxsize=8)
def _shapes(config: Config) -> Any:
  return model.abstract_params(config)


@functools.lru_cache(maxsize=8)
def _axes(config: Config) -> Any:
  return model.logical_axes(config)
