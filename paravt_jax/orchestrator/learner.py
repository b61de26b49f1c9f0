"""Trainers: a model's state on the mesh, its update step, and its records.

SFT and RL share `Trainer`.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.orchestrator import canary, parts
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.rollout.statistics import statistics
from paravt_jax.serving import canary as canaries
from paravt_jax.serving import publish
from paravt_jax.train import checkpoint, metric_sums, state, step
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
    self._folder, self._model_folder, self._keep = folder, model_folder, recipe.run.keep
    self.model_config, params, self.tok = parts.load_model(model_folder)
    self.mesh = parts.make_mesh(recipe.mesh)
    self.optimizer = parts.make_optimizer(
      recipe.optimizer, self.model_config, freeze_vision=recipe.train.freeze_vision
    )
    self.state = self._place_on_mesh(params)
    # Frozen arrays never change. Servers load them from the model folder.
    self._frozen = partition(params, self.optimizer.frozen)[1]
    self.version = 0

  def _place_on_mesh(self, params: Any) -> state.State:
    return state.from_params(self.model_config, self.optimizer, self.mesh, params)

  def save(self, host: dict[str, Any]) -> None:
    """Writes one atomic record of everything that a resumed run needs."""
    records = self._folder / 'checkpoints'
    checkpoint.save(records, self.version, self.state, host, keep=self._keep)

  def restore(self) -> dict[str, Any] | None:
    """Restores the newest record. Returns its host part, or None if there is no record."""
    records = self._folder / 'checkpoints'
    checkpoint.sweep(records)
    if checkpoint.latest(records) is None:
      return None
    template = state.abstract(self.model_config, self.optimizer, self.mesh)
    record = checkpoint.restore(records, template)
    self.state, self.version = record.state, record.step
    return record.host

  def export(self, target: pathlib.Path) -> None:
    """Writes a Hugging Face folder with tokenizer and processor files.

    It replaces an older export, because a run that continues for more steps has another model.
    """
    params = jax.device_get(self.state.params)
    weights.save_hf(target, self.model_config, params, self._model_folder)


class SFTTrainer(Trainer):
  """The trainer of the cold start."""

  def __init__(self, recipe: SFTRecipe, model_folder: pathlib.Path, folder: pathlib.Path):
    super().__init__(recipe, model_folder, folder)
    options = parts.model_options(recipe.train, 1.0, ())
    self._update = step.make_sft_step(self.model_config, self.optimizer, self.mesh, options)

  def update(self, arrays: dict[str, np.ndarray], used: int) -> dict[str, float]:
    """Makes one step on a batch of packed rows with `used` micro-batches. Returns its metrics."""
    self.state, found = self._update(self.state, step.put_batch(self.mesh, arrays, used))
    metrics = metric_sums.reduce(found)  # waits for the device
    self.version += 1
    return metrics


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
      self._reference = jax.tree.map(jnp.copy, self.state.params)
    self._collate = collate.CollateOptions(
      section.row_tokens,
      section.row_images,
      section.image_patches,
      (section.rows,),
      recipe.rollout.subagent_credit,
    )
    self._publisher = publish.Publisher(folder / 'weights', keep=recipe.publish.keep)
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
    # rewards -> advantages, one of each episode
    rewards = np.array([one.reward for group in groups for one in group.scored], np.float32)
    members = np.array([n for n, group in enumerate(groups) for _ in group.scored], np.int32)
    advantage_E = np.zeros(0, np.float32)
    if len(rewards):
      advantage_E = np.asarray(advantages.group_normalize(rewards, members))
    # episodes -> rows [R, T] -> micro-batches [M, R, T]
    batch = collate.collate(
      groups,
      advantage_E,
      options=self._collate,
      image_id=self.tok.image_pad,
      version=self.version,
    )
    rows = self._recipe.train.rows
    arrays, used = batch.packed.micro_batches(rows, self._capacity(batch.packed.rows))
    arrays = {
      name: array for name, array in arrays.items() if name in (*step.INPUTS, *step.RL_EXTRAS)
    }
    # one optimizer step over all micro-batches
    inputs = step.put_batch(self.mesh, arrays, used)
    self.state, found = self._update(self.state, inputs, self._reference)
    metrics = metric_sums.reduce(found)
    self.version += 1
    counters = batch.counters
    trained = max(counters['trained_tokens'], 1)
    return {
      **statistics(groups, advantage_E),
      **metrics,
      'policy/version': float(self.version),
      'staleness': counters['staleness_sum'] / trained,
      'staleness/max': float(counters['staleness_max']),
      'pack/fill': batch.packed.fill,
      'pack/rows': float(batch.packed.rows),
      'pack/micro_batches': float(used),
      'pack/images': float(counters['images']),
      'data/overlong': float(counters['dropped_episodes'] + counters['dropped_subagents']),
    }

  def _capacity(self, rows: int) -> int:
    """Returns the number of micro-batches in the arrays.

    It doubles the recipe's number until the rows fit, because each size needs one compilation.
    """
    capacity = self._recipe.train.micro_batches
    while capacity * self._recipe.train.rows < rows:
      capacity *= 2
    return capacity

  def canary(self) -> canaries.Canary:
    """Returns the replies that a server with the current weights should give to the canary."""
    found = self._canary(self.state.params)
    self.rounding = found.sampled_rounding
    return found

  def publish(self) -> publish.Pending:
    """Starts to write the trained weights as version `version`, with a canary.

    It returns once the next update may run.
    """
    trained, _ = partition(self.state.params, self.optimizer.frozen)
    proof = self.canary().to_json()
    outgoing = self._outgoing(trained)
    return self._publisher.start(self.version, outgoing, frozen=self._frozen, canary=proof)
