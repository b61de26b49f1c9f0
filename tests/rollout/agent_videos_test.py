"""How the turn loop opens an episode: the prompt of one video, of several, and of none."""

import dataclasses
import hashlib

import pytest

from paravt_jax.chat import prompts
from paravt_jax.errors import MediaError
from paravt_jax.rollout import agent
from paravt_jax.types import Overview, ResultStatus, StopReason, TokenClass
from tests.rollout.stack import (
  LONG,
  TASK,
  TOK,
  Frames,
  call,
  episode,
  is_subagent,
  play,
  with_stack,
)

ANSWER = LONG + '<answer>red</answer>'


def opened(task, budget, frames=None):
  async def use(stack):
    return await stack.agent.open(task, budget)

  return with_stack(play(ANSWER), use, frames=frames)[0]


def test_the_prompt_of_one_video_at_the_start_is_these_very_bytes():
  opening = opened(TASK, 4)
  frames = ''.join(
    f'<{t}.0 seconds><|vision_start|><|image_pad|><|vision_end|>' for t in (8, 24, 40, 56)
  )
  assert TOK.decode(opening.segment.ids) == (
    f'<|im_start|>system\n{prompts.SYSTEM}<|im_end|>\n<|im_start|>user\n{frames}What appears '
    'at 41?\nAnswer in a few words.'
    '<|im_end|>\n<|im_start|>assistant\n<think>\n'
  )
  assert hashlib.sha256(opening.segment.ids.tobytes()).hexdigest()[:16] == 'b7a92973a9ad0c2a'


TWO = dataclasses.replace(
  TASK, videos=('far/a.mp4', 'far/b.mp4'), question='First: \nThen: \nWhat changed?', slots=(7, 14)
)


def test_the_budget_is_split_over_the_videos_and_each_stands_where_its_slot_stood():
  opening = opened(TWO, 5)
  frame = lambda t: f'<{t:.1f} seconds><|vision_start|><|image_pad|><|vision_end|>'
  assert TOK.decode(opening.segment.ids).partition('<|im_start|>user\n')[2] == (
    f'First: \nVideo 1:\n{frame(10.7)}{frame(32)}{frame(53.3)}\nThen: \nVideo '
    f'2:\n{frame(16)}{frame(48)}\nWhat changed?\n'
    'Answer in a few words.<|im_end|>\n<|im_start|>assistant\n<think>\n'
  )
  assert [len(view.seconds) for view in opening.overviews] == [3, 2] and len(
    opening.segment.images
  ) == 5
  assert [view.duration for view in opening.overviews] == [64.0, 64.0]


@pytest.mark.parametrize(
  ('budget', 'videos', 'shares'),
  [(64, 1, [64]), (10, 4, [3, 3, 2, 2]), (2, 3, [1, 1, 1]), (4, 2, [2, 2]), (4, 0, [])],
)
def test_every_video_shows_a_frame_at_least_and_what_is_left_over_goes_to_the_first(
  budget, videos, shares
):
  task = dataclasses.replace(TASK, videos=('a.mp4',) * videos)
  assert [len(view.seconds) for view in opened(task, budget).overviews] == shares


def test_a_crop_looks_at_the_video_that_its_call_names():
  class Paths(Frames):
    paths = []

    async def frames(self, path, *rest):
      self.paths.append(path)
      return await super().frames(path, *rest)

  calls = call(1, 3) + call(5, 7, video_path='Video 2') + call(9, 11, video_path='/anywhere/b.mp4')
  got, requests = episode(play(LONG + calls, ANSWER), task=TWO, frames=Paths())
  assert [result.video for result in got.results] == [0, 1, 1] and got.executed == 3
  assert sorted(Paths.paths) == ['far/a.mp4'] * 2 + ['far/b.mp4'] * 3
  texts = [TOK.decode(request.input_ids) for request in requests if is_subagent(request)]
  asked = 'Answer briefly: First: Video 1\nThen: Video 2\nWhat changed?'
  assert sum(f'5.0 to 7.0 seconds of Video 2. {asked}' in text for text in texts) == 1
  assert got.overviews == (Overview(got.seconds, 64.0), *got.others) and len(got.others) == 1


def test_a_text_only_task_runs_and_its_crops_are_answered_with_an_error():
  got, requests = episode(
    play(LONG + call(1, 3) + call(1, 3).replace('crop_video', 'zoom'), ANSWER),
    task=dataclasses.replace(TASK, videos=()),
  )
  assert got.stop is StopReason.ANSWER and (got.overviews, got.seconds, got.duration) == (
    (),
    (),
    0.0,
  )
  assert [result.status for result in got.results] == [
    ResultStatus.BAD_ARGUMENTS,
    ResultStatus.UNKNOWN_TOOL,
  ]
  assert got.results[0].text == 'Error: bad arguments. There is no video.'
  assert [request.images for request in requests] == [(), ()]
  assert got.trajectory.segments[1].token_class is TokenClass.TEXT


def test_one_missing_video_of_several_is_a_media_error():
  with pytest.raises(MediaError, match='no such file'):
    opened(dataclasses.replace(TASK, videos=('a.mp4', 'missing.mp4')), 4)


@pytest.mark.parametrize(
  ('budget', 'available', 'shares'),
  [
    (10, [9, 9, 9, 9], [3, 3, 2, 2]),
    (64, [4, 240], [4, 60]),
    (10, [1, 9], [1, 9]),
    (64, [4, 5], [4, 5]),
    (4, [9] * 6, [1] * 6),
    (8, [100], [8]),
  ],
)
def test_videos_share_the_budget_and_what_a_short_one_cannot_use_goes_to_the_others(
  budget, available, shares
):
  assert agent._shares(budget, available) == shares


def test_an_overview_shows_each_frame_once_and_counts_the_repeats():
  got = opened(TASK, 8, frames=Frames(fps=5 / 64))
  assert (
    got.budget == 8 and len(got.overviews[0].seconds) == len(set(got.overviews[0].seconds)) == 5
  )
  assert got.overviews[0].repeated == 3 and len(got.segment.images) == 5
  told, _ = episode(play(ANSWER), frames=Frames(fps=3 / 64))
  assert (
    told.budget,
    len(told.seconds),
    told.repeated,
    told.overviews[0].repeated,
  ) == (4, 3, 1, 1)
