"""The learner of an RL run: state on the mesh, the step, its weights on their way out, and its
records.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import canary, wiring
from experiments.launch import build
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.rollout.statistics import statistics
from paravt_jax.serving import canary as canaries
from paravt_jax.serving import publish
from paravt_jax.train import checkpoint, state, step, sums
from paravt_jax.train.optimizer import partition
from paravt_jax.types import Group


class Learner:
  """Everything that trains. `version` counts finished steps; it is also the weight version."""

  def __init__(self, config: ConfigDict, model_folder: pathlib.Path, folder: pathlib.Path):
    self.config, self._folder, self._model_folder = config, folder, model_folder
    self.model_config, params, self.tok = wiring.load_model(model_folder)
    self.mesh = wiring.make_mesh(config)
    self._optimizer = wiring.make_optimizer(config, self.model_config)
    options = wiring.model_options(
      config.train, config.sampling.temperature, tuple(self.tok.vision_ids)
    )
    self._update = step.make_rl_step(
      self.model_config, self._optimizer, self.mesh, options, build(step.RLOptions, config.rl, 'rl')
    )
    self.state = state.from_params(self.model_config, self._optimizer, self.mesh, params)
    self._reference = None
    if config.rl.beta > 0:  # the cold start, kept beside the policy
      self._reference = state.from_params(
        self.model_config, self._optimizer, self.mesh, params
      ).params
    section = config.train
    self._collate = collate.CollateOptions(
      section.row_tokens,
      section.row_images,
      section.image_patches,
      (section.rows,),
      config.rollout.subagent_credit,
    )
    self._publisher = publish.Publisher(folder / 'weights', keep=config.publish.keep)
    self._prompt = canary.prompt(self.tok, config.train.image_patches)
    self._foretell = canary.make(
      self.model_config, self.mesh, options, self.tok, self._prompt, config.publish.canary_tokens
    )
    self._outgoing = jax.jit(
      lambda tree: jax.tree.map(lambda x: x.astype(config.publish.dtype), tree)
    )
    self._held = partition(params, self._optimizer.frozen)[
      1
    ]  # as the checkpoint has them: what servers hold already
    self.version = 0

  def update(self, groups: Sequence[Group]) -> dict[str, float]:
    """One step on these groups; returns what is logged of them and of it."""
    rewards = np.array([one.reward for group in groups for one in group.scored], np.float32)
    members = np.array(
      [index for index, group in enumerate(groups) for _ in group.scored], np.int32
    )
    advantage_E = (
      np.asarray(advantages.group_normalize(rewards, members))
      if len(rewards)
      else np.zeros(0, np.float32)
    )
    batch = collate.collate(
      groups, advantage_E, options=self._collate, image_id=self.tok.image_pad, version=self.version
    )
    arrays, used = batch.packed.micro_batches(
      self.config.train.rows, self._capacity(batch.packed.rows)
    )
    arrays = {
      name: array for name, array in arrays.items() if name in (*step.INPUTS, *step.RL_EXTRAS)
    }
    self.state, found = self._update(
      self.state, step.put_batch(self.mesh, arrays, used), self._reference
    )
    metrics = sums.reduce(found)
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
    """Micro-batches in the arrays: the recipe's number, doubled until the rows fit (each size is
    one compilation).
    """
    capacity = self.config.train.micro_batches
    while capacity * self.config.train.rows < rows:
      capacity *= 2
    return capacity

  def canary(self) -> canaries.Canary:
    """What a server must say that holds these very weights."""
    return self._foretell(self.state.params)

  def publish(self) -> publish.Pending:
    """Starts writing the trained weights as version `version`, with a canary; returns once the next
    update may run.
    """
    trained, _ = partition(self.state.params, self._optimizer.frozen)
    return self._publisher.start(
      self.version, self._outgoing(trained), held=self._held, canary=self.canary().to_json()
    )

  def save(self, host: dict[str, Any]) -> None:
    """One atomic record of everything that a resumed run needs."""
    checkpoint.save(
      self._folder / 'checkpoints', self.version, self.state, host, keep=self.config.run.keep
    )

  def restore(self) -> dict[str, Any] | None:
    """Goes on from the newest record and returns its host part; None when there is none."""
    records = self._folder / 'checkpoints'
    checkpoint.sweep(records)
    if checkpoint.latest(records) is None:
      return None
    record = checkpoint.restore(
      records, state.abstract(self.model_config, self._optimizer, self.mesh)
    )
    self.state, self.version = record.state, record.step
    return record.host

  def export(self, target: pathlib.Path) -> None:
    """Writes a Hugging Face folder, tokenizer and processor files included."""
    if not target.exists():
      weights.save_hf(
        target, self.model_config, jax.device_get(self.state.params), self._model_folder
      )
