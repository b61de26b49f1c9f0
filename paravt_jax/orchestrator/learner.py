"""Trainers: a model's state on the mesh, its update step, and its records.

SFT and RL share `Trainer`.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from paravt_jax import row_layout
from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import lora_export, weights
from paravt_jax.orchestrator import canary, parts, profiling, step_facts
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe
from paravt_jax.orchestrator.weight_delivery import publisher
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.rollout.statistics import statistics
from paravt_jax.serving import canary as canaries
from paravt_jax.serving import publish
from paravt_jax.train import checkpoint, heap, metric_sums, placement, state, step
from paravt_jax.train.optimizer import partition
from paravt_jax.types import Group


class Trainer:
  """A model in training: state, optimizer, mesh, records and export.

  `version` counts finished steps. In RL it is also the version of the published weights.
  """

  def __init__(
    self, recipe: RLRecipe | SFTRecipe, model_folder: pathlib.Path, folder: pathlib.Path
  ):
    """Loads the model and places it on the mesh.

    Args:
      model_folder: the Hugging Face folder to begin from.
      folder: the run folder; records are written below it.

    Raises:
      DataError: the model does not exist.
      ConfigError: there are too few devices.
    """
    self._model_folder = model_folder
    self.model_config, self.tok = parts.open_model(model_folder)
    heap.keep_pages()
    server = recipe.server if isinstance(recipe, RLRecipe) else None
    self.mesh = parts.make_mesh(recipe.mesh, server)
    self.model_config = parts.with_adapter(self.model_config, recipe.train.adapter)
    self.optimizer = parts.make_optimizer(
      recipe.optimizer,
      self.model_config,
      freeze_vision=recipe.train.freeze_vision,
      dtype=recipe.train.dtype,
    )
    self.state = state.from_folder(
      model_folder, self.model_config, self.optimizer, self.mesh, seed=recipe.seed
    )
    self._dtype = weights.stored_dtype(model_folder)
    self._root = folder / 'checkpoints'
    self._records = checkpoint.Writer(self._root, keep=recipe.run.keep)
    self._base: checkpoint.Base | None = None
    self._profiler = profiling.Profiler(recipe.profile, folder / 'profile')
    self.version = 0

  def __enter__(self) -> 'Trainer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
    """Ends a trace, and waits for the record that is being written.

    Raises:
      CheckpointError: it could not be written.
    """
    self._profiler.close()
    self._records.__exit__(kind, *rest)

  def frozen(self) -> dict[str, Any]:
    """Returns the parameters that training does not change, on the mesh."""
    return partition(self.state.params, self.optimizer.frozen)[1]

  def save(
    self,
    host: dict[str, Any],
    files: Mapping[str, Callable[[pathlib.Path], None]] | None = None,
  ) -> None:
    """Begins an atomic record of everything that a resumed run needs.

    It returns once the next update may run; leaving the trainer's context waits for the record.
    Frozen parameters are not in it, because the model folder has them.

    Args:
      host: any JSON value; `restore` returns it.
      files: what writes further files of the record, by name.

    Raises:
      CheckpointError: this record or the one before could not be written.
    """
    trained = state.without_frozen(self.state, self.optimizer)
    self._records.save(self.version, trained, host, self._frozen_base(), files)

  def _frozen_base(self) -> checkpoint.Base | None:
    """Returns where the frozen parameters are, None if there are none. They are hashed once."""
    names = self.optimizer.frozen
    if names and self._base is None:
      folder = str(self._model_folder.absolute())
      self._base = checkpoint.Base(folder, names, state.fingerprint(self.frozen()))
    return self._base

  def restore(self) -> dict[str, Any] | None:
    """Restores the newest record. Returns its host part, or None if there is no record.

    Frozen parameters that the record leaves out stay as they were loaded from the model folder.

    Raises:
      CheckpointError: the record is damaged or of another model, or was trained with other frozen
      parameters.
    """
    checkpoint.sweep(self._root)
    newest = checkpoint.latest(self._root)
    if newest is None:
      return None
    template = state.abstract(self.model_config, self.optimizer, self.mesh)
    base, frozen = checkpoint.base(self._root, newest), self.frozen()
    if base is not None:
      # Only the frozen arrays are needed from here on, so the others make room for the record.
      self.state = state.State(None, frozen, None)
      template = state.without_frozen(template, self.optimizer)
    record = checkpoint.restore(self._root, template, step=newest)
    self.state = record.state
    if base is not None:
      where = checkpoint.folder(self._root, newest)
      present = state.fingerprint(frozen)
      checkpoint.refuse_other_base(where, base, present, self._model_folder)
      self.state = state.with_frozen(record.state, frozen)
    self.version = record.step
    return record.host

  def export(self, target: pathlib.Path) -> None:
    """Writes a Hugging Face folder with tokenizer and processor files.

    Its dtype is that of the model folder, and so is the size of its files. It replaces an older
    export, because a run that continues for more steps has another model. An adapter is folded into
    the weights; the folder `peft` in it has the adapter alone.
    """
    config, params = self.model_config, self.state.params
    if config.adapter is not None:
      params = lora_export.folded(config, params)
    weights.save_hf(
      target,
      config.base,
      params,
      self._model_folder,
      dtype=self._dtype,
      shard_bytes=weights.stored_shard_bytes(self._model_folder),
    )
    if config.adapter is not None:
      lora_export.save_peft(target / 'peft', config, self.state.params, self._model_folder)


class SFTTrainer(Trainer):
  """The trainer of the cold start."""

  def __init__(self, recipe: SFTRecipe, model_folder: pathlib.Path, folder: pathlib.Path):
    super().__init__(recipe, model_folder, folder)
    options = parts.model_options(recipe.train, 1.0, ())
    self._update = step.make_sft_step(self.model_config, self.optimizer, self.mesh, options)

  def put(self, arrays: dict[str, np.ndarray], used: int) -> dict[str, jax.Array]:
    """Returns a batch on the mesh. It may run in another thread beside the step before."""
    return step.put_batch(self.mesh, arrays, used)

  def train_on(self, inputs: dict[str, jax.Array]) -> dict[str, float]:
    """Makes one step on a batch that is on the mesh. Returns its metrics."""
    with self._profiler.step():
      self.state, found = self._update(self.state, inputs)
      metrics = metric_sums.reduce(found)  # waits for the device
    self.version += 1
    return metrics


@dataclasses.dataclass(frozen=True)
class PreparedBatch:
  """A batch of RL on the mesh, and what is known before its step."""

  inputs: dict[str, jax.Array]  # of the step; not donated
  version: int  # of the weights that the step begins with
  statistics: dict[str, float]  # metrics of the groups
  packed: dict[str, float]  # metrics of the rows
  groups: Sequence[Group]  # for the log: in process 0 those of all hosts, without others' pixels


class Learner(Trainer):
  """The trainer of RL: the policy, its reference model, and the publisher of its weights."""

  def __init__(self, recipe: RLRecipe, model_folder: pathlib.Path, folder: pathlib.Path):
    super().__init__(recipe, model_folder, folder)
    section, self._recipe = recipe.train, recipe
    banned = tuple(self.tok.vision_ids)
    options = parts.model_options(section, recipe.sampling.temperature, banned)
    self._update = step.make_rl_step(
      self.model_config, self.optimizer, self.mesh, options, recipe.rl
    )
    self._reference = None
    if recipe.rl.beta > 0:  # the cold start model, in addition to the policy
      self._reference = state.reference(self.state, self.optimizer, section.dtype)
    self._collate = collate.CollateOptions(
      section.row_tokens,
      section.row_images,
      section.image_patches,
      (section.rows,),
      recipe.rollout.subagent_credit,
    )
    full = row_layout.Shape(section.row_tokens, section.row_images, section.micro_batches)
    self._hosts = hosts_.current()
    self._channel = self._hosts.channel('rl/prepare', step_facts.KINDS)
    self._layouts = row_layout.Layouts(recipe.batches, full, self._own_rows(section.rows))
    # Servers load frozen arrays from the model folder. An update moves the arrays, so these
    # functions take the current ones.
    self._frozen = jax.tree_util.tree_map_with_path(
      lambda path, _: functools.partial(self._parameter, path), self.frozen()
    )
    self._publisher = publisher(recipe.publish, recipe.server, folder)
    asked = canary.prompt(self.tok, section.image_patches)
    self._canary = canary.make(
      self.model_config, self.mesh, options, self.tok, asked, recipe.publish
    )
    # mean nats that rounding costs the learner on sampled ids, of the newest canary
    self.rounding = 0.0
    dtype = recipe.publish.dtype
    self._outgoing = jax.jit(lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree))

  def update(self, groups: Sequence[Group]) -> dict[str, float]:
    """Makes one step on these groups. Returns the metrics of the groups and the step."""
    return self.train_on(self.prepare(groups, self.version))

  def _own_rows(self, rows: int) -> int:
    """Returns the rows of a micro-batch that this process packs."""
    index, count = sharding.host_rows(self.mesh)
    if (index, count) != (self._hosts.index, self._hosts.count):
      raise ConfigError(
        f'--config.mesh: process {self._hosts.index} of {self._hosts.count} has part {index} of '
        f'{count} of the rows, wanted its own; several hosts need mesh.data x mesh.fsdp to be a '
        'multiple of their number, and mesh.tensor within one host'
      )
    if rows % count:
      raise ConfigError(f'--config.train.rows={rows}: wanted a multiple of {count}, the hosts')
    return rows // count

  def prepare(
    self, groups: Sequence[Group], version: int, owners: Sequence[int] = ()
  ) -> PreparedBatch:
    """Returns the groups as arrays on the mesh, for the step that makes version `version` + 1.

    It reads no parameters, so it may run in another thread beside the step before.

    Args:
      groups: of this host.
      version: of the weights that the step begins with.
      owners: the host of each group of the step (`host_queue.owners`); () for one host.
    """
    # rewards -> advantages, one of each episode
    rewards = np.array([one.reward for group in groups for one in group.scored], np.float32)
    members = np.array([n for n, group in enumerate(groups) for _ in group.scored], np.int32)
    advantage_E = np.zeros(0, np.float32)
    if len(rewards):
      advantage_E = np.asarray(advantages.group_normalize(rewards, members))
    # episodes -> rows [R, T] of each micro-batch -> [M, R, T] on the mesh
    batch = collate.micro_batches(
      groups,
      advantage_E,
      options=self._collate,
      image_id=self.tok.image_pad,
      version=version,
      layouts=self._layouts,
      exchange=self._channel.exchange,
    )
    counters = step_facts.add_counters(self._channel.exchange(batch.counters))
    facts = step_facts.gather(self._channel, step_facts.Facts(groups, advantage_E), owners)
    wanted = (*step.INPUTS, *step.RL_EXTRAS)
    parts = ({name: micro[name] for name in wanted} for micro in batch)
    shape = batch.layout.shape
    inputs = placement.put_micro_batches(self.mesh, parts, shape.micro_batches, shape.row_images)
    metrics = statistics(facts.groups, facts.advantage_E)
    packed = self._packed(batch, counters)
    return PreparedBatch(inputs, version, metrics, packed, facts.groups)

  def _packed(self, batch: collate.MicroBatches, counters: dict[str, float]) -> dict[str, float]:
    """Returns the metrics of a step's rows.

    counters: of the groups of all hosts.
    """
    shape, hosts = batch.layout.shape, self._hosts.count
    tokens = counters['trained_tokens'] + counters['given_tokens']
    trained = max(counters['trained_tokens'], 1)
    return {
      'staleness': counters['staleness_sum'] / trained,
      'staleness/max': float(counters['staleness_max']),
      'pack/fill': tokens / (hosts * batch.used * batch.rows * shape.row_tokens),
      'pack/rows': float(hosts * batch.used * batch.rows),
      'pack/row_tokens': float(shape.row_tokens),
      'pack/micro_batches': float(batch.used),
      'pack/capacity': float(shape.micro_batches),
      'pack/images': float(counters['images']),
      'data/overlong': float(counters['dropped_episodes'] + counters['dropped_subagents']),
    }

  def train_on(self, batch: PreparedBatch) -> dict[str, float]:
    """Makes one optimizer step over all micro-batches of a prepared batch.

    Returns the metrics of its groups and of the step.

    Raises:
      RuntimeError: the batch was prepared for another version, so its staleness is wrong.
    """
    if batch.version != self.version:
      raise RuntimeError(
        f'learner: got a batch for version {batch.version}, wanted {self.version}; prepare it anew'
      )
    with self._profiler.step():
      self.state, found = self._update(self.state, batch.inputs, self._reference)
      metrics = metric_sums.reduce(found)  # waits for the device
    self.version += 1
    return {
      **batch.statistics,
      **metrics,
      'policy/version': float(self.version),
      **batch.packed,
    }

  def _parameter(self, path: tuple[Any, ...]) -> jax.Array:
    leaf = self.state.params
    for key in path:
      leaf = leaf[key.key]
    return leaf

  def canary(self) -> canaries.Canary:
    """Returns the replies that a server with the current weights should give to the canary."""
    found = self._canary(self.state.params)
    self.rounding = found.sampled_rounding
    return found

  def export(self, target: pathlib.Path) -> None:
    """Writes a Hugging Face folder, as a trainer does, once the last version is on the disk.

    Raises:
      SyncError: the last version cannot be written.
    """
    self._publisher.settle()
    super().export(target)

  def publish(self) -> publish.Pending:
    """Starts to write the trained weights as version `version`, with a canary.

    It returns once the next update may run.
    """
    trained, _ = partition(self.state.params, self.optimizer.frozen)
    proof = self.canary().to_json()
    outgoing = self._outgoing(trained)
    return self._publisher.start(
      self.version,
      outgoing,
      frozen=self._frozen,
      canary=proof,
      adapter=self.model_config.adapter,
    )
