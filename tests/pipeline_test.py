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
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rl import advantages
from paravt_jax.rollout import collate
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.groups import Prompt, rewarder, run_group
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import MAIN, Sampler
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.serving import publish
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.testing import tiny
from paravt_jax.train import optimizer, sharding, state, step, sums
from paravt_jax.types import ResultStatus, Segment
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore
from tests import patience
from tests.data.world import small
from tests.rollout.crew import AGENT, CLIENT, CONTEXT, GROUP, SUBAGENT, call

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


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """(model folder, url) of the embedded server in its own process."""
  folder = tmp_path_factory.mktemp('model')
  tiny.build_model_folder(folder, 0)
  options = ServerOptions(
    model_path=str(folder),
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key=None,
    dtype='float32',
    eos_token_ids=(),
    lanes=((512, 8),),
    chunk_tokens=32,
    prefill_rows=4,
    pages=128,
    decode_steps=4,
    image_batch=16,
    image_slots=256,
    max_image_patches=4,
    bias_rows=2,
    max_stop_ids=2,
    max_body_mb=16,
    compile_cache=None,
    parent_pid=None,
  )
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
    'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
  }
  server = launch.launch(
    options,
    env=environment,
    log=folder / 'server.log',
    deadline_s=patience.seconds(300),
    parent_pid=os.getpid(),
  )
  yield folder, server.url
  server.stop(5.0)


class Learning:
  """The learner's half of the walk."""

  def __init__(self, folder):
    self.config, params = weights.load_hf(folder)
    self.tok = ChatTokenizer.load(folder)
    self.mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    made = optimizer.make_optimizer(ADAM, model.logical_axes(self.config), ('visual',))
    options = step.ModelOptions(
      'float32', False, 'xla', 512, CONTEXT.temperature, tuple(self.tok.vision_ids)
    )
    self.step = step.make_rl_step(self.config, made, self.mesh, options, RL)
    self.state = state.from_params(self.config, made, self.mesh, params)
    self.reference = state.from_params(self.config, made, self.mesh, params).params

  def learn(self, group, version):
    """One update on one group: (the arrays it trained on, its metrics)."""
    reward_E = np.array([one.reward for one in group.scored], np.float32)
    advantage_E = np.asarray(
      advantages.group_normalize(reward_E, np.zeros(len(reward_E), np.int32))
    )
    batch = collate.collate(
      [group], advantage_E, options=COLLATE, image_id=self.tok.image_pad, version=version
    )
    arrays, used = batch.packed.micro_batches(4)
    arrays = {
      name: array for name, array in arrays.items() if name in (*step.INPUTS, *step.RL_EXTRAS)
    }
    self.state, found = self.step(
      self.state, step.put_batch(self.mesh, arrays, used), self.reference
    )
    return batch, sums.reduce(found)


def trained_streams(batch):
  """The ids of every path through the packed rows: prefix and suffix of each rollout, and each
  sub-agent's document.
  """
  cut = lambda span: batch.packed.tokens_RT[span.row, span.start : span.stop].tolist()
  return [cut(spans[0]) + cut(span) for spans in batch.packed.spans for span in spans[1:]] + [
    cut(spans[0]) for spans in batch.packed.spans if len(spans) == 1
  ]


def test_one_rows_way_through(tasks, served, tmp_path):
  folder, url = served
  learner = Learning(folder)
  task = next(task for task in tasks if task.question_type == 'oe')
  context = dataclasses.replace(CONTEXT, context=512, max_pixels=1024)
  size_two, reward = dataclasses.replace(GROUP, size=2), rewarder(PUBLISHED, None)

  async def walk(pool):
    options = dataclasses.replace(CLIENT, timeout_s=patience.seconds(300))
    async with (
      Client(
        options, learner.config.text.vocab, Router((url,)), image_id=learner.tok.image_pad
      ) as client,
      Control(options) as control,
    ):
      await control.wait_ready(url)
      frames, sampler = FrameStore(None, pool, 2**24), Dictating(client, learner.tok, context)
      agent = Agent(
        sampler,
        Subagents(
          sampler,
          frames,
          dataclasses.replace(SUBAGENT, max_new_tokens=12, deadline_s=patience.seconds(300)),
        ),
        frames,
        dataclasses.replace(AGENT, max_new_tokens=24, max_turns=1),
      )
      for version in (0, 1):
        sampler.exchanged = []
        group = await run_group(agent, Prompt(task, version, 4), reward, size_two)
        check_group(group, version)
        batch, metrics = learner.learn(group, version)
        check_arrays(batch, group, sampler.exchanged, learner.tok)
        assert metrics['policy/gap_mean'] <= 1e-4 and metrics['policy/gap_max'] <= 1e-3
        assert (batch.counters['staleness_max'], batch.counters['dropped_episodes']) == (0, 0)
        if version == 0:
          assert metrics['optim/update_norm'] > 0
          published = publish.save(tmp_path, 1, learner.state.params, keep=2)
          await control.swap_weights(url, str(published.absolute()), 1)
          assert await control.version(url) == 1
      return metrics

  with DecodePool(1, 30.0, 'pyav') as pool:
    metrics = asyncio.run(walk(pool))
  assert metrics['policy/kl_reference'] != 0  # the second rollout came from the moved policy


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
