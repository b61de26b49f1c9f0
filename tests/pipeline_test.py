"""One row's way through, on the tiny model: a parquet row becomes a prompt, frames, a rollout by a
real server, rewards, advantages, arrays, an update, new weights on the server, and one more
rollout.

The first turn of each rollout is dictated (a random policy calls nothing) and therefore given;
whatever follows is sampled.
"""

import asyncio
import collections
import dataclasses
import os
import sys

import jax
import numpy as np
import pytest

from paravt_jax.chat import prompts
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import fields, rows, unpack
from paravt_jax.data.world import write
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.rollout.groups import Prompt, rewarder, run_group
from paravt_jax.rollout.sampler import MAIN, Sampler
from paravt_jax.serving import publish
from paravt_jax.testing.stack import stack
from paravt_jax.train import metric_sums, optimizer, state, step
from paravt_jax.types import ResultStatus, Segment
from tests import patience
from tests.data.world import small
from tests.rollout.stack import CONTEXT, GROUP, call

ADAM = optimizer.OptimizerOptions(
  name='adam',
  learning_rate=1e-3,
  matrix_learning_rate=0.0,
  schedule='constant',
  warmup_steps=0,
  total_steps=2,
  final_scale=1.0,
  weight_decay=0.0,
  beta1=0.9,
  beta2=0.999,
  epsilon=1e-8,
  momentum=0.0,
  clip_norm=1.0,
)
RL = step.RLOptions(
  clip=0.2, weight_cap=5.0, beta=0.01, kl_limit=10.0, batch_norm='std', updates_per_batch=1
)
COLLATE = collate.CollateOptions(
  row_tokens=512, row_images=64, image_patches=4, row_counts=(4,), subagent_credit='episode'
)
DICTATED = (
  'I should look at both windows.</think>\n' + call(2, 5) + call(20, 24),
  'I should look.</think>\n<tool_call>{"name": cro</tool_call>',
)


class Dictating(Sampler):
  """Rollout i's first turn is DICTATED[i]; notes what is sent and received."""

  exchanged: list

  async def sample(self, segments, *, address, turn, call, max_new_tokens, token_class):
    if call == MAIN and turn == 0:
      return Segment(
        np.append(self.tok.encode(DICTATED[address.rollout], trusted=True), self.tok.im_end).astype(
          np.int32
        ),
        False,
      ), 'stop'
    got, finish = await super().sample(
      segments,
      address=address,
      turn=turn,
      call=call,
      max_new_tokens=max_new_tokens,
      token_class=token_class,
    )
    sent = np.concatenate([segment.ids for segment in segments])
    self.exchanged.append([*sent.tolist(), *got.ids.tolist()])
    return got, finish


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
  """The RL rows of a world of 4 videos, by the path that a published corpus takes: zip archives,
  sentinels, parquet.
  """
  folder = tmp_path_factory.mktemp('corpus')
  world = write.write(folder / 'world', small.with_corpus(sft_rows={'trace': 1}), 1, workers=0)
  unpack.unpack(world.folder / 'source', folder / 'media')
  counts = collections.Counter()
  found = rows.rl_tasks(
    [world.rl], folder / 'media', fields.RowOptions(skip_bad_rows=False, require_media=True), counts
  )
  assert len(found) == 24 and not counts
  return found


class Learning:
  """The learner's half of the walk."""

  def __init__(self, folder):
    self.config, params = weights.load_hf(folder)
    self.tok = ChatTokenizer.load(folder)
    self.mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    made = optimizer.make_optimizer(ADAM, model.logical_axes(self.config), ('visual',))
    options = step.ModelOptions(
      'float32', 'none', 'xla', 512, CONTEXT.temperature, tuple(self.tok.vision_ids)
    )
    self.step = step.make_rl_step(self.config, made, self.mesh, options, RL)
    self.state = state.from_params(self.config, made, self.mesh, params)
    self.reference = state.from_params(self.config, made, self.mesh, params).params

  def batch(self, group, version):
    """The arrays of one group, with each episode's advantage over the others."""
    reward_E = np.array([one.reward for one in group.scored], np.float32)
    advantage_E = np.asarray(
      advantages.group_normalize(reward_E, np.zeros(len(reward_E), np.int32))
    )
    return collate.collate(
      [group], advantage_E, options=COLLATE, image_id=self.tok.image_pad, version=version
    )

  def update(self, batch):
    """One step of the optimizer: its metrics."""
    arrays, used = batch.packed.micro_batches(4)
    arrays = {
      name: array for name, array in arrays.items() if name in (*step.INPUTS, *step.RL_EXTRAS)
    }
    inputs = step.put_batch(self.mesh, arrays, used)
    self.state, found = self.step(self.state, inputs, self.reference)
    return metric_sums.reduce(found)


def trained_streams(batch):
  """The ids of every path through the packed rows: prefix and suffix of each rollout, and each
  sub-agent's document.
  """
  cut = lambda span: batch.packed.tokens_RT[span.row, span.start : span.stop].tolist()
  return [cut(spans[0]) + cut(span) for spans in batch.packed.spans for span in spans[1:]] + [
    cut(spans[0]) for spans in batch.packed.spans if len(spans) == 1
  ]


def test_one_rows_way_through(tasks, tmp_path):
  task = next(task for task in tasks if task.question_type == 'oe')
  metrics = asyncio.run(walk(task, tmp_path))
  assert metrics['policy/kl_reference'] != 0  # the second rollout came from the moved policy


async def walk(task, folder):
  """Twice through all stages, with an update of the server between: the last update's metrics."""
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
  limit_s = patience.seconds(300)
  async with stack(
    folder / 'model', env=environment, timeout_s=limit_s, sampler=Dictating, max_turns=1
  ) as it:
    learner = Learning(it.folder)
    for version in (0, 1):
      prompt = row_to_prompt(task, version)
      group = await roll_out(it, prompt)
      batch = reward_and_advantage(it, learner, group, version)
      metrics = train(learner, batch)
      if version == 0:
        assert metrics['optim/update_norm'] > 0
        await publish_back(it, learner, folder / 'weights')
  return metrics


def row_to_prompt(task, version):
  """Stage 1. A row becomes a prompt with a budget of 4 frames."""
  return Prompt(task, version, 4)


async def roll_out(it, prompt):
  """Stage 2. A prompt becomes two rollouts with their rewards."""
  it.sampler.exchanged = []
  options = dataclasses.replace(GROUP, size=2)
  group = await run_group(it.agent, prompt, rewarder(PUBLISHED, None), options)
  check_group(group, prompt.epoch)
  return group


def reward_and_advantage(it, learner, group, version):
  """Stage 3. Rewards become advantages, and rollouts become rows of tokens."""
  batch = learner.batch(group, version)
  check_arrays(batch, group, it.sampler.exchanged, it.tok)
  assert (batch.counters['staleness_max'], batch.counters['dropped_episodes']) == (0, 0)
  return batch


def train(learner, batch):
  """Stage 4. The rows become an update; the learner's log-probs are those of the server."""
  metrics = learner.update(batch)
  assert metrics['policy/gap_mean'] <= 1e-4 and metrics['policy/gap_max'] <= 1e-3
  return metrics


async def publish_back(it, learner, folder):
  """Stage 5. The new weights go to a folder, and from there to the server."""
  published = publish.save(folder, 1, learner.state.params, keep=2)
  await it.control.swap_weights(it.url, str(published.absolute()), 1)
  assert await it.control.version(it.url) == 1


def check_group(group, version):
  """Two rollouts of one prompt: real frames, two sub-agents and a failed call, tokens of this
  version only.
  """
  assert len(group.scored) == 2 and group.dropped == ()
  first, second = (one.episode for one in group.scored)
  assert (
    first.seconds == (16.0, 48.0, 80.0, 112.0) and len(first.trajectory.segments[0].images) == 4
  )
  assert [result.status for result in second.results] == [ResultStatus.PARSE_FAILURE]
  assert [(result.window.start, result.window.end, result.seconds) for result in first.results] == [
    (2.0, 5.0, (2.0, 3.0, 4.0, 5.0)),
    (20.0, 24.0, (20.0, 21.0, 22.0, 23.0, 24.0)),
  ]
  assert len({one.reward for one in group.scored}) == 2
  sampled = [
    s
    for one in (first, second)
    for t in (one.trajectory, *collate.subagents(one))
    for s in t.segments
    if s.sampled
  ]
  assert len(sampled) == 4  # two final turns, two sub-agents
  assert {int(v) for segment in sampled for v in segment.versions} == {version}


def check_arrays(batch, group, exchanged, tok):
  """The ids trained are the ids sent and received (a frame of 32 x 32 is one token, so nothing is
  expanded).
  """
  streams = trained_streams(batch)
  assert len(streams) == len(exchanged) == 4
  for ids in exchanged:
    assert sum(stream[: len(ids)] == ids for stream in streams) == 1
  mask = batch.packed.extras['mask'] > 0
  wanted = [
    s
    for one in group.scored
    for t in (one.episode.trajectory, *collate.subagents(one.episode))
    for s in t.segments
    if s.sampled
  ]
  assert mask.sum() == sum(len(segment.ids) for segment in wanted)
  assert sorted(batch.packed.tokens_RT[mask].tolist()) == sorted(
    i for segment in wanted for i in segment.ids.tolist()
  )
  assert not np.isin(batch.packed.tokens_RT[mask], tok.vision_ids).any()
  assert prompts.FINAL_REQUEST in tok.decode(group.scored[0].episode.trajectory.ids)
