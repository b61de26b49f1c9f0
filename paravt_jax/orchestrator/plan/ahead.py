"""Compiles a recipe's own step for devices that are not there, and reports what it needs.

A child process does it: the compilers of GPUs and TPUs stand in an environment of their own (`make
plan-env`), and their settings must be in place before JAX starts. Without that environment, or for
--target=cpu, the step is compiled for as many virtual CPU devices. Nothing is executed.

The child reads one JSON object from standard input and prints one as its last line:
  in   kind, recipe, model (as config.json), target, platform, topology, count, shape, spec, flags,
       dump, kept
  out  memory_gib, arguments_gib, temporary_gib, collective_gb, hbm_tb, seconds, or error
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from paravt_jax import children, options
from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator import device, parts, split
from paravt_jax.orchestrator.options import SFTTrainOptions
from paravt_jax.orchestrator.plan import compiled, gpu_spec, state
from paravt_jax.orchestrator.plan.build import Plan
from paravt_jax.orchestrator.plan.job import Job, job_of
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.row_layout import Shape
from paravt_jax.train import placement, step
from paravt_jax.train import state as states

_PROGRAM = 'from paravt_jax.orchestrator.plan import ahead; ahead.main()'
_DEADLINE_S = 1800.0
# Nothing can be autotuned without a device, and Triton's default tiles do not fit all shapes.
_NO_TRITON = '--xla_gpu_enable_triton_gemm=false'


@dataclasses.dataclass(frozen=True)
class Compiler:
  """An interpreter that can compile for the target, and what it compiles for."""

  interpreter: str
  target: str  # as in h100:8; cpu:8 where the target's own compiler is missing
  environment: Mapping[str, str]


def find_compiler(plan: Plan, folder: pathlib.Path, environment: Mapping[str, str]) -> Compiler:
  """Returns the compiler for a plan's target, else one for virtual CPU devices.

  Args:
    folder: the environment of `make plan-env`.
    environment: of this process, for the child.

  Raises:
    ConfigError: the target's name does not say how the devices are linked.
  """
  target, job = plan.request.target, plan.request.job
  count = job.devices if job else target.count
  platform, interpreter = target.accelerator.platform, folder / 'bin' / 'python'
  name = target.name
  if platform == 'tpu' and 'x' not in target.topology:
    raise ConfigError(
      f'--target={name}: to compile for TPUs, name the slice, as in v5p:2x2x2 or v6e:4x4'
    )
  if platform == 'cuda':
    name = f'{target.accelerator.name}:{count}'  # the learner's devices alone
  known = platform == 'tpu' or target.accelerator.name in gpu_spec.SPECS
  if platform == 'cpu' or not known or not interpreter.is_file():
    platform, name, interpreter = 'cpu', f'cpu:{count}', pathlib.Path(sys.executable)
  recipe = plan.request.recipe
  own = {} if isinstance(recipe, EvalRecipe) else device.settings(recipe.device, environment)
  flags = [own.get('XLA_FLAGS', environment.get('XLA_FLAGS', ''))]
  if platform == 'cuda' and _NO_TRITON.partition('=')[0] not in flags[0]:
    flags.append(_NO_TRITON)
  if platform == 'cpu':
    flags.append(f'--xla_force_host_platform_device_count={count}')
  found = {
    **environment,
    **own,
    'JAX_PLATFORMS': 'cpu',
    'NPROC': '32',
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': 'true',  # no device is opened, so processes may share the library
    'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
    'TF_CPP_MIN_LOG_LEVEL': '2',
    'XLA_FLAGS': ' '.join(filter(None, flags)),
  }
  library = next(folder.glob('lib/python*/site-packages/libtpu/libtpu.so'), None)
  if library is not None:
    found['TPU_LIBRARY_PATH'] = str(library)
  return Compiler(str(interpreter), name, found)


def compile_plan(
  plan: Plan, compiler: Compiler, kept: pathlib.Path | None = None
) -> dict[str, Any]:
  """Returns what the compiler says of a plan's step; `error` holds its refusal, if any.

  Args:
    kept: a folder of figures that were measured before (`compiled.measure`).

  Raises:
    ConfigError: the recipe has no learner, or the child failed in another way.
  """
  if plan.learner is None or plan.memory is None:
    raise ConfigError('--compile: this recipe has no learner that could be compiled')
  recipe = plan.request.recipe
  asked = {
    'kind': plan.learner.job.kind,
    'recipe': options.to_dict(recipe),
    'count': plan.learner.job.devices,
    'shape': dataclasses.asdict(plan.learner.largest),
  }
  return ask(_PROGRAM, 'step', plan, compiler, asked, kept)


def ask(
  program: str,
  function: str,
  plan: Plan,
  compiler: Compiler,
  asked: Mapping[str, Any],
  kept: pathlib.Path | None,
) -> dict[str, Any]:
  """Returns what a child says of a function that it compiled for a plan's target.

  Args:
    program: the child's Python code.
    function: the name of the jitted function.
    asked: for the child, `count` devices among them.

  Raises:
    ConfigError: the child failed.
  """
  name, _, topology = compiler.target.partition(':')
  platform = 'cpu' if name == 'cpu' else plan.request.target.accelerator.platform
  flags = ' '.join(compiler.environment.get(name, '') for name in ('XLA_FLAGS', 'LIBTPU_INIT_ARGS'))
  begin = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='plan-') as folder:
    whole = {
      **asked,
      'model': plan.request.model.to_hf('bfloat16'),
      'target': compiler.target,
      'platform': platform,
      'topology': topology,
      'spec': gpu_spec.text(name) if name in gpu_spec.SPECS else '',
      'flags': flags,
      'dump': folder if platform == 'tpu' else '',
      'kept': str(kept.absolute()) if kept else '',
    }
    done = _run(program, function, compiler, whole)
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    errors = [line for line in done.stderr.splitlines() if 'rror: ' in line]
    reason = (errors or done.stderr.strip().splitlines() or ['no message'])[-1]
    raise ConfigError(
      f'--compile for {compiler.target}: the compiler ended with status {done.returncode}: '
      f'{reason[:300]}; try --target=cpu:{asked["count"]}, or leave --compile out'
    )
  return {**json.loads(lines[-1]), 'target': compiler.target, 'seconds': time.monotonic() - begin}


def _run(
  program: str, function: str, compiler: Compiler, asked: Mapping[str, Any]
) -> subprocess.CompletedProcess[str]:
  """Runs the child."""
  environment = dict(compiler.environment)
  if asked['dump']:
    dump = compiled.dump_flags(pathlib.Path(asked['dump']), function)
    environment['XLA_FLAGS'] = f'{environment.get("XLA_FLAGS", "")} {dump}'.strip()
  return subprocess.run(
    [compiler.interpreter, *children.command(program)[1:]],
    input=json.dumps(asked, default=str),
    env=environment,
    capture_output=True,
    text=True,
    timeout=_DEADLINE_S,
    check=False,
  )


def main(call: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None) -> None:
  """The child: compiles what standard input asks for, and prints the result.

  Args:
    call: what compiles; `compile_asked` if None.
  """
  asked = json.load(sys.stdin)
  print(json.dumps((call or compile_asked)(asked)), flush=True)
  if asked['dump']:
    os._exit(0)  # the compiler of a TPU may still generate code, which nobody waits for


def compile_asked(asked: Mapping[str, Any]) -> dict[str, Any]:
  """Compiles the step of a recipe and returns its figures. See the module's docstring."""
  kind = RLRecipe if asked['kind'] == 'rl' else SFTRecipe
  recipe = options.build(kind, asked['recipe'])
  job = job_of(recipe, Config.from_hf(asked['model']), asked['platform'])
  job = job.at(Shape(**asked['shape']))
  found = find_devices(asked)
  if isinstance(recipe, RLRecipe) and split.is_split(recipe.server):
    found = split.of_mesh(found, job.devices)
  mesh_devices = found[: job.devices]
  sizes = (job.mesh.data, job.mesh.fsdp, job.mesh.tensor)
  mesh = sharding.make_mesh(*sizes, mesh_devices, context=job.mesh.context)
  with jax.default_device(jax.devices('cpu')[0]):
    if asked['platform'] == 'tpu':
      check_mesh(mesh)
    made, arguments = program(recipe, job, mesh)
    lowered = made.trace(*arguments).lower(lowering_platforms=(asked['platform'],))
  return compiled.measure(lowered, bytes_of(arguments), asked)


def check_mesh(mesh: Any) -> None:
  """Compiles a sum over all devices of a TPU's mesh to its end.

  The step's compiler is left before it generates code, which is where XLA refuses some parts of a
  slice. Then this raises, or ends the process.
  """
  every = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(mesh.axis_names))
  ones = jax.ShapeDtypeStruct((mesh.size * 1024,), np.float32, sharding=every)
  whole = jax.jit(lambda x: x.sum(), out_shardings=sharding.replicated(mesh))
  whole.trace(ones).lower(lowering_platforms=('tpu',)).compile()


def bytes_of(arguments: Any) -> int:
  """Returns the bytes of a tree of sharded arrays on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(arguments)
  )


def bytes_of_forms(forms: Any) -> int:
  """Returns the bytes of a tree of shaped arrays, wherever they lie."""
  return sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(forms)
  )


def find_devices(asked: Mapping[str, Any]) -> Any:
  """Returns descriptions of the target's devices, or virtual devices of the CPU."""
  if asked['platform'] == 'cpu':
    return jax.devices('cpu')
  if asked['platform'] == 'cuda':
    return topologies.get_topology_desc(
      platform='cuda',
      topology_name=asked['target'],
      topology=f'1x1x{asked["count"]}',
      target_config=asked['spec'],
    ).devices
  return topologies.get_topology_desc(platform='tpu', topology_name=asked['target']).devices


def program(recipe: RLRecipe | SFTRecipe, job: Job, mesh: Any) -> tuple[Any, tuple[Any, ...]]:
  """Returns the learner's jitted step and its arguments, without values."""
  optimizer = state.optimizer_of(job)
  abstract = states.abstract(job.model, optimizer, mesh)
  if isinstance(recipe, SFTRecipe):
    settings = parts.model_options(job.train, 1.0, ())
    made = step.make_sft_step(job.model, optimizer, mesh, settings)
    return made, (abstract, batch(job, mesh, step.SFT_EXTRAS))
  ids = (job.model.image_id, job.model.video_id, job.model.vision_start_id)
  settings = parts.model_options(
    job.train, recipe.sampling.temperature, (*ids, job.model.vision_end_id)
  )
  made: Any = step.make_rl_step(job.model, optimizer, mesh, settings, recipe.rl)
  inputs = batch(job, mesh, step.RL_EXTRAS)
  reference = states.abstract_reference(job.model, optimizer, mesh, job.train.dtype)
  return made.jitted, (abstract, inputs, reference if job.reference else None)


def batch(job: Job, mesh: Any, extras: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the arrays of a step without values, on the mesh as the run puts them."""
  train, pixels = job.train, 3 * job.model.vision.patch**2
  held = job.shape.micro_batches if job.shape else train.micro_batches
  lead = (held, train.rows)
  row = (*lead, job.row_tokens)
  slots = (*lead, job.row_images)
  shapes: dict[str, tuple[tuple[int, ...], Any]] = {
    name: (row, np.int32) for name in step.INPUTS if name not in ('positions', 'patches', 'grids')
  }
  shapes |= {
    'positions': ((*lead, 3, job.row_tokens), np.int32),
    'patches': ((*slots, train.image_patches, 1, pixels), np.uint8),
    'grids': ((*slots, 2), np.int32),
  }
  if isinstance(train, SFTTrainOptions) and train.row_large_images:
    large = (*lead, train.row_large_images)
    shapes |= {
      'large_images': ((*large, train.large_image_patches, 1, pixels), np.uint8),
      'large_image_grids': ((*large, 2), np.int32),
    }
  shapes |= {name: (row, kind) for name, kind in extras.items()}
  arrays = {
    name: jax.ShapeDtypeStruct(
      shape, kind, sharding=placement.place_of(mesh, name, shape, leading=1)
    )
    for name, (shape, kind) in shapes.items()
  }
  used = jax.ShapeDtypeStruct((), np.int32, sharding=sharding.replicated(mesh))
  return {**arrays, 'used': used}
