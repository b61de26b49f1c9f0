"""The client's half against the real embedded server in its own process, on a tiny random model."""

import asyncio
import dataclasses
import os
import sys

import numpy as np
import pytest

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.eval import protocols
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.groups import Prompt, rewarder
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import Address, Sampler
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.testing import tiny
from paravt_jax.types import Segment
from tests import patience, xla
from tests.rollout.collecting import collect
from tests.rollout.stack import AGENT, CLIENT, CONTEXT, GROUP, LONG, SUBAGENT, TASK, Frames, call

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  config = tiny.build_model_folder(folder, 0)
  options = ServerOptions(
    model_path=str(folder),
    served_name='tiny',
    think_prefix='',
    host='127.0.0.1',
    port=0,
    port_file=None,
    api_key='key',
    dtype='float32',
    eos_token_ids=(),
    lanes=((512, 16),),
    chunk_tokens=32,
    prefill_rows=4,
    pages=256,
    decode_steps=4,
    image_batch=16,
    image_slots=256,
    max_image_patches=4,
    bias_rows=2,
    max_stop_ids=2,
    image_cache_mb=4,
    max_body_mb=16,
    attention='auto',
    tensor_parallel=1,
    compile_cache=None,
    parent_pid=None,
  )
  path = os.pathsep.join(path for path in sys.path if path)
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK, 'PYTHONPATH': path}
  server = launch.launch(
    options,
    env=environment,
    log=folder / 'server.log',
    deadline_s=patience.seconds(300),
    parent_pid=os.getpid(),
  )
  yield folder, server.url, config.text.vocab
  server.stop(5.0)


def collected(folder, url, vocab_size, order=1, task=TASK):
  tok = ChatTokenizer.load(folder)
  context = dataclasses.replace(CONTEXT, context=512)
  frames = Frames()
  client = dataclasses.replace(CLIENT, api_key='key', timeout_s=patience.seconds(300))

  async def run():
    router = Router((url,))
    async with (
      Client(client, vocab_size, router, image_id=tok.image_pad) as it,
      Control(client) as control,
    ):
      await control.wait_ready(url)
      sampler = Sampler(it, tok, context)
      subagents = Subagents(
        sampler,
        frames,
        dataclasses.replace(SUBAGENT, max_new_tokens=16, deadline_s=patience.seconds(120.0)),
      )
      agent = Agent(sampler, subagents, frames, dataclasses.replace(AGENT, max_new_tokens=24))
      prompts = [Prompt(dataclasses.replace(task, id=f'task-{i}'), 0, 8) for i in range(2)][::order]
      groups = await collect(agent, prompts, rewarder(PUBLISHED, None), GROUP)
      return groups[::order], await control.info(url)

  groups, info = asyncio.run(run())
  return tok, groups, info


def test_a_random_policy_runs_whole_groups_and_the_same_seed_repeats_them_in_any_order(served):
  tok, groups, info = collected(*served)
  _, again, _ = collected(*served, order=-1)
  assert [(len(group.scored), group.dropped) for group in groups] == [(4, ()), (4, ())]
  assert info['weight_version'] in ('default', '0')
  ids = [
    [scored.episode.trajectory.ids.tolist() for group in which for scored in group.scored]
    for which in (groups, again)
  ]
  assert ids[0] == ids[1]
  assert len({tuple(one) for one in ids[0]}) == 8  # rollouts differ from each other
  for group in groups:
    for scored in group.scored:
      turn = scored.episode.trajectory.segments[1]
      assert (
        turn.sampled and 0 < len(turn.ids) <= 24 and not np.isin(turn.ids, tok.vision_ids).any()
      )
      assert (turn.versions == 0).all() and (turn.logprobs <= 0).all()


@pytest.mark.parametrize('videos', [(), ('a.mp4', 'b.mp4', 'c.mp4')])
def test_groups_on_no_video_and_on_several_run_whole(served, videos):
  _, groups, _ = collected(*served, task=dataclasses.replace(TASK, videos=videos))
  assert [(len(group.scored), group.dropped) for group in groups] == [(4, ()), (4, ())]
  for group in groups:
    for scored in group.scored:
      assert [len(view.seconds) for view in scored.episode.overviews] == (
        [3, 3, 2] if videos else []
      )


class Calling(Sampler):
  """Its main agent's first turn looks at 8 to 12 seconds; what follows is the model's."""

  async def sample(self, segments, *, turn, call, **how):
    if turn or call >= 0:
      return await super().sample(segments, turn=turn, call=call, **how)
    ids = np.append(self.tok.encode(LONG + CROP, trusted=True), np.int32(self.tok.im_end))
    return Segment(
      ids, True, logprobs=np.zeros(len(ids), np.float32), versions=np.zeros(len(ids), np.int32)
    ), 'stop'


class Shaded(Frames):
  """Its crops, and not its overview, are brighter by `shade`."""

  def __init__(self, shade):
    super().__init__()
    self.shade = shade

  async def frames(self, *asked):
    clip = await super().frames(*asked)
    return dataclasses.replace(
      clip, frames=clip.frames + np.uint8(self.shade if len(self.asked) > 1 else 0)
    )


CROP = call(8, 12)


def cropped(served, protocol, shade):
  """An episode of that protocol, greedy, whose first turn calls; the crop's frames are brighter by
  `shade`.
  """
  folder, url, vocab_size = served
  tok = ChatTokenizer.load(folder)
  context = dataclasses.replace(CONTEXT, context=512, temperature=0.0)
  client = dataclasses.replace(CLIENT, api_key='key', timeout_s=patience.seconds(300))
  agent = dataclasses.replace(AGENT, max_new_tokens=24, max_turns=1)
  subagent = dataclasses.replace(SUBAGENT, max_new_tokens=8, deadline_s=patience.seconds(120.0))

  async def run():
    async with (
      Client(client, vocab_size, Router((url,)), image_id=tok.image_pad) as it,
      Control(client) as control,
    ):
      await control.wait_ready(url)
      actor = protocols.agent(
        protocols.PROTOCOLS[protocol],
        'parallel',
        Calling(it, tok, context),
        Shaded(shade),
        agent,
        subagent,
      )
      return await actor.run(TASK, await actor.open(TASK, 4), Address(7, TASK.id, 0, 0))

  return asyncio.run(run())


def test_the_frames_of_a_raw_crop_are_what_the_main_agent_sees_next(served):
  dark, same, bright, told = (
    cropped(served, *how)
    for how in (('raw_crops', 0), ('raw_crops', 0), ('raw_crops', 99), ('tools', 0))
  )
  images = lambda episode: [
    [int(image[0, 0, 0]) for image in segment.images] for segment in episode.trajectory.segments
  ]
  assert images(dark)[:4] == [[8, 24, 40, 56], [], [8, 9, 10, 11, 12], []]
  assert images(bright)[:4] == [[8, 24, 40, 56], [], [107, 108, 109, 110, 111], []]
  assert (
    images(told)[:4] == [[8, 24, 40, 56], [], [], []] and len(told.results[0].subagent.images) == 5
  )
  assert (dark.executed, dark.results[0].subagent) == (1, None) and [
    turn.forced for turn in dark.turns
  ] == [False, True]
  given = lambda episode: [segment.ids.tolist() for segment in episode.trajectory.segments[:3]]
  answer = lambda episode: episode.trajectory.segments[3].logprobs[
    0
  ]  # at the first token of the turn that follows
  assert given(dark) == given(bright) != given(told)
  assert answer(dark) == answer(same) and answer(dark) != answer(bright)
