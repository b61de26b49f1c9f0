"""PARA-GRPO in one readable file: `python -m experiments.tutorials.rl_loop [--steps=3]
[--model=DIR]`.

A server, groups of rollouts, rewards, advantages, rows, an update, and the weights back to the
server: the loop of `experiments.rl` without resuming, staleness, evaluation and records. It runs on
the tiny scale; --model names a cold start, such as runs/sft_tiny-.../hf. Without one the model is
random and earns nothing, but every number is real.
"""

import asyncio
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from absl import flags

from configs import para_grpo
from experiments import launch
from experiments.tutorials import MODEL
from paravt_jax.data.order import EpochOrder
from paravt_jax.options import extended
from paravt_jax.orchestrator import canary, corpus, parts, rollouts
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate, groups
from paravt_jax.serving import publish
from paravt_jax.train import metric_sums, state, step
from paravt_jax.train import optimizer as optimizers
from paravt_jax.types import Group, Task

_STEPS = flags.DEFINE_integer('steps', 3, 'Updates to make.')


def main(argv: list[str]) -> None:
  """Trains for some steps and prints what each one earned."""
  del argv
  # The recipe: plain numbers in configs/para_grpo.py, typed and checked here.
  recipe = launch.typed(RLRecipe, para_grpo.get_config())
  model_folder = pathlib.Path(MODEL.value or parts.tiny_model(recipe.seed))
  # The rows: questions about synthetic videos, written once under runs/worlds.
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    tasks = corpus.rl_questions(recipe, corpus.rl_corpus(recipe), folder).train
    asyncio.run(train(recipe, model_folder, folder, tasks, _STEPS.value))


async def train(
  recipe: RLRecipe,
  model_folder: pathlib.Path,
  folder: pathlib.Path,
  tasks: list[Task],
  steps: int,
  reward: groups.Reward | None = None,
) -> list[dict[str, float]]:
  """The loop; returns the metrics of each step. reward: yours, or the recipe's without one."""
  policy = Policy(recipe, model_folder, folder)
  order, history = EpochOrder(len(tasks), recipe.seed), []
  group_options = extended(
    groups.GroupOptions,
    recipe.frames,
    size=recipe.rollout.group_size,
    seed=recipe.seed,
  )
  reward = reward or groups.rewarder(recipe.reward, None)
  opened = rollouts.open_rollouts(
    AgentSetup.of(recipe),
    launch.host(),
    model_folder,
    policy.tok,
    policy.config.text.vocab,
    folder,
    None,
  )
  async with opened as server:  # starts the rollout server, and ends it
    await server.deliver(policy.publish(), policy.version)
    for number in range(steps):
      # 1. Groups: each prompt is rolled out G times by the agent, with its sub-agents.
      first = number * recipe.rollout.prompts
      drawn = [order.at(position) for position in range(first, first + recipe.rollout.prompts)]
      prompts = [groups.Prompt(tasks[index], epoch) for epoch, index in drawn]
      work = [groups.run_group(server.sampling, one, reward, group_options) for one in prompts]
      batch = await asyncio.gather(*work)
      # 2. An update on all of them.
      metrics = await asyncio.to_thread(policy.update, batch)
      # 3. The weights go back to the server, which proves them on a canary.
      await server.deliver(policy.publish(), policy.version)
      history.append(metrics)
      print(
        f'step {number}: ' + ', '.join(f'{name} {value:.3f}' for name, value in metrics.items())
      )
  return history


class Policy:
  """The model that is trained: parameters on the mesh, its update, and its way to the server."""

  def __init__(self, recipe: RLRecipe, model_folder: pathlib.Path, folder: pathlib.Path):
    self.recipe, self.version = recipe, 0
    self.config, params, self.tok = parts.load_model(model_folder)
    self.mesh = parts.make_mesh(recipe.mesh)
    self.optimizer = parts.make_optimizer(
      recipe.optimizer,
      self.config,
      freeze_vision=recipe.train.freeze_vision,
      dtype=recipe.train.dtype,
    )
    self.state = state.from_params(self.config, self.optimizer, self.mesh, params)
    # the reference of the KL term: the same weights, kept as they are
    self.reference = state.from_params(self.config, self.optimizer, self.mesh, params).params
    banned = tuple(self.tok.vision_ids)  # the policy never samples a vision token
    options = parts.model_options(recipe.train, recipe.sampling.temperature, banned)
    self.step = step.make_rl_step(self.config, self.optimizer, self.mesh, options, recipe.rl)
    self.publisher = publish.Publisher(folder / 'weights', keep=recipe.publish.keep)
    self.frozen = optimizers.partition(params, self.optimizer.frozen)[1]
    asked = canary.prompt(self.tok, recipe.train.image_patches)
    self.canary = canary.make(self.config, self.mesh, options, self.tok, asked, recipe.publish)

  def update(self, batch: list[Group]) -> dict[str, float]:
    """One step on some groups; returns a few of its metrics."""
    # rewards_E -> advantage_E: each episode against the others of its group
    rewards_E = np.array([one.reward for group in batch for one in group.scored], np.float32)
    group_E = np.array([n for n, group in enumerate(batch) for _ in group.scored], np.int32)
    advantage_E = np.asarray(advantages.group_normalize(rewards_E, group_E))
    # episodes -> rows of tokens: a prompt and its rollouts are one tree, whose prefix is computed
    # once
    train = self.recipe.train
    options = collate.CollateOptions(
      train.row_tokens,
      train.row_images,
      train.image_patches,
      (train.rows,),
      self.recipe.rollout.subagent_credit,
    )
    packed = collate.collate(
      batch, advantage_E, options=options, image_id=self.tok.image_pad, version=self.version
    ).packed
    count = max(train.micro_batches, -(-packed.rows // train.rows))
    arrays, used = packed.micro_batches(train.rows, count)
    wanted = (*step.INPUTS, *step.RL_EXTRAS)
    arrays = {name: array for name, array in arrays.items() if name in wanted}
    # the update: gradients over all micro-batches, one step of the optimizer
    inputs = step.put_batch(self.mesh, arrays, used)
    self.state, found = self.step(self.state, inputs, self.reference)
    self.version += 1
    metrics = metric_sums.reduce(found)
    return {
      'reward': float(rewards_E.mean()),
      'grad_norm': metrics['optim/grad_norm'],
      'gap': metrics['policy/gap_mean'],
    }

  def publish(self) -> Any:
    """Starts writing the trained weights, with the canary that a server must answer."""
    trained, _ = optimizers.partition(self.state.params, self.optimizer.frozen)
    outgoing = jax.tree.map(lambda x: x.astype(self.recipe.publish.dtype), trained)
    proof = self.canary(self.state.params).to_json()
    return self.publisher.start(self.version, outgoing, frozen=self.frozen, canary=proof)


if __name__ == '__main__':
  launch.run_script(main)
