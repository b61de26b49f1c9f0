"""The stack that tests and tutorials start with one call."""

import asyncio
import dataclasses
import json

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.rollout.groups import Prompt, rewarder, run_group
from paravt_jax.testing import clips, tiny
from paravt_jax.testing.scripted import Reply, turns
from paravt_jax.testing.stack import stack
from tests import patience
from tests.rollout.stack import GROUP, TASK


def test_one_call_runs_a_group_on_a_real_video_and_ends_everything(tmp_path):
  size = (64, 64)
  video = clips.make_clip(
    tmp_path / 'a.mp4', 10.0, 8, size, lambda i: clips.counting_frame(i, size), gop=16
  )
  task = dataclasses.replace(TASK, videos=(str(video),))
  tok = ChatTokenizer(json.loads(tiny.make_tokenizer().to_str()), 'tiny')
  answer = [*tok.encode('</think>\n<answer>red</answer>', trusted=True).tolist(), tok.im_end]

  async def run():
    async with stack(
      tmp_path / 'model', env={}, timeout_s=patience.seconds(60.0), script=turns(Reply(ids=answer))
    ) as it:
      options = dataclasses.replace(GROUP, size=2)
      group = await run_group(it.agent, Prompt(task, 0, 5), rewarder(PUBLISHED, None), options)
      alive = await it.control.ready(it.url, 2.0)
    return it, group, alive

  it, group, alive = asyncio.run(run())
  assert alive and (it.folder / 'config.json').is_file()
  assert [one.episode.seconds for one in group.scored] == [(1.0, 3.0, 5.0, 7.0, 9.0)] * 2
  assert it.frames.counts['decoded'] == 1  # the rollouts of a group share their frames
