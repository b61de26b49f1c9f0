"""The turn loop against a scripted server: the specification's sections 2 and 3, sentence by
sentence.
"""

import asyncio
import dataclasses
import itertools
import threading

import numpy as np
import pytest

from paravt_jax import seeds
from paravt_jax.chat import prompts
from paravt_jax.rollout.sampler import Address, expanded
from paravt_jax.testing.scripted import Die, Refuse, Reply
from paravt_jax.types import ParseFailure, ResultStatus, StopReason, TokenClass, ToolCall
from tests.rollout.stack import (
  AGENT,
  CONTEXT,
  LONG,
  TASK,
  TOK,
  Frames,
  call,
  episode,
  is_subagent,
  play,
  sampled,
  turn_of,
  with_stack,
)

ANSWER = LONG + '<answer>red</answer>'


def main(requests):
  return sorted((request for request in requests if not is_subagent(request)), key=turn_of)


def test_an_answer_ends_the_episode_and_the_text_holds_the_pinned_prefix():
  got, requests = episode(play(ANSWER))
  assert [turn.text for turn in got.turns] == ['<think>\n' + ANSWER]
  assert (got.stop, got.turns[0].stop, got.trajectory.stop) == (StopReason.ANSWER,) * 3
  assert len(requests) == 1 and TOK.decode(requests[0].input_ids).endswith(
    '<|im_start|>assistant\n<think>\n'
  )


def test_sampled_ids_log_probs_and_versions_stay_verbatim_and_the_stop_token_is_part_of_them():
  odd = (
    *TOK.encode('I', trusted=True),
    *TOK.encode('t', trusted=True),
    TOK.im_end,
  )  # 'It' has more than one way
  got, _ = episode(play(Reply(ids=odd, logprobs=(-1, -2, -3), versions=((1, 0, 1), (2, 1, 3)))))
  segment = got.trajectory.segments[1]
  assert (segment.ids.tolist(), segment.sampled, segment.token_class) == (
    list(odd),
    True,
    TokenClass.AFTER_FRAME,
  )
  assert segment.logprobs.tolist() == [-1, -2, -3] and segment.versions.tolist() == [1, 2, 2]


def test_calls_run_and_their_results_come_back_in_call_order():
  slow_first = lambda request: sampled(
    'one' if '8.0 to 12.0' in TOK.decode(request.input_ids) else 'two',
    delay=0.1 if '8.0 to 12.0' in TOK.decode(request.input_ids) else 0,
  )
  got, requests = episode(play(LONG + call(8, 12) + call(39, 43), ANSWER, subagent=slow_first))
  assert [(r.status, r.text) for r in got.results] == [
    (ResultStatus.EXECUTED, 'one'),
    (ResultStatus.EXECUTED, 'two'),
  ]
  assert [(result.window.start, result.window.end) for result in got.results] == [(8, 12), (39, 43)]
  assert got.results[1].seconds == (39, 40, 41, 42, 43)
  assert got.executed == 2 and got.trajectory.segments[3].token_class is TokenClass.AFTER_TOOL


def test_calls_of_one_turn_run_at_once():
  together, all_there = [], threading.Event()

  def subagent(request):
    together.append(request)
    if len(together) == 5:
      all_there.set()
    return sampled('seen', until=all_there)  # nobody is answered before all have asked

  got, _ = episode(play(LONG + call(1, 3) * 5, ANSWER, subagent=subagent))
  assert [result.text for result in got.results] == ['seen'] * 5


def test_deviation_6_parallel_results_leave_the_stream_whole():
  """The release spliced parallel results by length and cut headers. After n results: n user
  messages, one assistant header.
  """
  got, requests = episode(play(LONG + call(8, 12) + call(39, 43), ANSWER))
  tail = TOK.decode(got.trajectory.segments[2].ids)
  response = '<|im_start|>user\n<tool_response>\n41 red\n</tool_response><|im_end|>\n'
  assert tail == '\n' + response * 2 + '<|im_start|>assistant\n<think>\n'


@pytest.mark.parametrize(
  'first',
  [
    LONG + call(8, 12) * 3,
    LONG + '<tool_call>{broken</tool_call>',
    LONG + call(5, 1),
    LONG + call(1, 2) * 9,
  ],
)
def test_every_prompt_sent_is_a_prefix_of_the_next_and_the_trained_ids_are_those_sent_and_received(
  first,
):
  got, requests = episode(
    play(first, first, ANSWER), agent=dataclasses.replace(AGENT, max_new_tokens=1024)
  )
  prompts_sent = [request.input_ids for request in main(requests)]
  for earlier, later in itertools.pairwise(prompts_sent):
    assert later[: len(earlier)] == earlier
  last = np.asarray(prompts_sent[-1] + tuple(got.trajectory.segments[-1].ids))
  np.testing.assert_array_equal(got.trajectory.ids, last)


def test_a_hundred_random_episodes_keep_the_prefix_property():
  broken = (
    '<tool_call>{broken</tool_call>',
    '<tool_call>{"na',
    call(9, 2),
    '<tool_code>crop_video("x", 1, 5)</tool_code>',
  )

  def script(request):
    noise = np.random.default_rng(request.sampling['sampling_seed'])
    if is_subagent(request):
      return sampled(
        noise.choice(['41 red', '', '</tool_response>', 'é<|im_end|>']), closed=noise.random() < 0.7
      )
    blocks = [
      noise.choice([call(8, 12), call(39, 43), *broken]) for _ in range(noise.integers(0, 6))
    ]
    head = noise.choice([LONG, 'no end of thinking ', '<answer>', ''])
    tail = noise.choice(['', '<answer>red</answer>'])
    text = head + ''.join(blocks) + tail
    return sampled(text, closed=noise.random() < 0.8)

  async def use(stack):
    opening = await stack.agent.open(TASK, 4)
    return await asyncio.gather(
      *(stack.agent.run(TASK, opening, Address(7, str(i), 0, 0)) for i in range(100))
    )

  episodes, requests = with_stack(
    script, use, agent=dataclasses.replace(AGENT, max_new_tokens=1024)
  )
  sent = {request.input_ids for request in requests}
  assert {str(got.stop) for got in episodes} >= {'answer', 'stop', 'length'}
  assert {result.status for got in episodes for result in got.results} >= {
    ResultStatus.EXECUTED,
    ResultStatus.PARSE_FAILURE,
    ResultStatus.BAD_ARGUMENTS,
    ResultStatus.SUBAGENT_ERROR,
  }
  for got in episodes:
    ids = got.trajectory.ids.tolist()
    ends = np.cumsum([len(segment.ids) for segment in got.trajectory.segments])
    for segment, end in zip(got.trajectory.segments, ends):
      if segment.sampled:
        assert (
          tuple(ids[: end - len(segment.ids)]) in sent
        )  # what stands before a turn is the prompt sent
    assert sum(segment.sampled for segment in got.trajectory.segments) == len(got.turns)


def test_deviation_7_a_failed_call_stands_in_the_context_sent_and_in_the_one_trained():
  """The release had failed calls in the trained tokens but not in the context."""
  got, requests = episode(play(LONG + call(50, 40), ANSWER))
  assert got.results[0].status is ResultStatus.BAD_ARGUMENTS
  sent = TOK.decode(main(requests)[1].input_ids)
  assert got.results[0].text in sent and call(50, 40) in sent
  assert got.results[0].text in TOK.decode(got.trajectory.ids)


def test_one_bad_call_does_not_void_its_siblings():
  """Deviation 8: one malformed call voided all of a turn's calls in the release."""
  first = (
    LONG
    + call(8, 12)
    + '<tool_call>{broken</tool_call>'
    + call(70, 80)
    + '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>'
  )
  got, _ = episode(play(first, ANSWER))
  assert [result.status for result in got.results] == [
    ResultStatus.EXECUTED,
    ResultStatus.PARSE_FAILURE,
    ResultStatus.BAD_ARGUMENTS,
    ResultStatus.UNKNOWN_TOOL,
  ]
  assert isinstance(got.results[1].call, ParseFailure) and isinstance(got.results[0].call, ToolCall)


def test_calls_that_are_not_well_formed_run_and_count_towards_the_limit():
  objects = ''.join(
    f'{{"name": "crop_video", "arguments": {{"start_time": {start}, "end_time": {start + 4}}}}}\n'
    for start in (8, 14)
  )
  first = LONG + f'<tool_call>{objects}</tool_call>' + call(20, 24) + call(30, 34)
  got, requests = episode(play(first, ANSWER), agent=dataclasses.replace(AGENT, max_parallel=3))
  assert [result.status for result in got.results] == [ResultStatus.EXECUTED] * 3 + [
    ResultStatus.OVER_LIMIT
  ]
  assert [result.call.well_formed for result in got.results] == [False, False, True, True]
  assert sum(map(is_subagent, requests)) == 3 and got.executed == 3


def test_calls_and_failures_beyond_the_limit_get_one_shared_error_result():
  broken = '<tool_call>{broken</tool_call>'
  got, requests = episode(
    play(LONG + broken + call(1, 3) * 6, ANSWER), agent=dataclasses.replace(AGENT, max_parallel=3)
  )
  assert [result.status for result in got.results] == [
    ResultStatus.PARSE_FAILURE,
    ResultStatus.EXECUTED,
    ResultStatus.EXECUTED,
    ResultStatus.OVER_LIMIT,
  ]
  assert sum(map(is_subagent, requests)) == 2


def test_a_turn_with_calls_and_an_answer_runs_its_calls():
  got, _ = episode(play(LONG + call(8, 12) + '<answer>blue</answer>', ANSWER))
  assert got.executed == 1 and len(got.turns) == 2 and got.turns[0].stop is StopReason.STOP


def test_failures_only_without_an_answer_go_on_and_with_a_non_blank_answer_end():
  broken = '<tool_call>{broken</tool_call>'
  went_on, _ = episode(play(LONG + broken, ANSWER))
  blank, _ = episode(play(LONG + broken + '<answer> </answer>', ANSWER))
  ended, _ = episode(play(LONG + broken + '<answer>red</answer>', ANSWER))
  assert [len(got.turns) for got in (went_on, blank, ended)] == [2, 2, 1]
  assert ended.results[0].status is ResultStatus.PARSE_FAILURE and ended.stop is StopReason.ANSWER


def test_neither_calls_nor_answer_ends_the_episode():
  got, _ = episode(play(LONG + 'It is red.'))
  assert (len(got.turns), got.stop) == (1, StopReason.STOP)


def test_after_max_turns_rounds_a_fixed_message_asks_for_the_answer_and_calls_in_it_do_not_run():
  got, requests = episode(play(LONG + call(8, 12)), agent=dataclasses.replace(AGENT, max_turns=2))
  assert [turn.forced for turn in got.turns] == [False, False, True]
  assert [len(turn.results) for turn in got.turns] == [1, 1, 0]
  sent = [TOK.decode(request.input_ids) for request in main(requests)]
  assert [text.count(prompts.FINAL_REQUEST) for text in sent] == [0, 0, 1]
  assert sent[2].endswith(
    f'<|im_start|>user\n{prompts.FINAL_REQUEST}<|im_end|>\n<|im_start|>assistant\n<think>\n'
  )


def test_without_rounds_of_tools_the_first_turn_is_the_last():
  got, requests = episode(play(LONG + call(8, 12)), agent=dataclasses.replace(AGENT, max_turns=0))
  assert len(requests) == 1 and got.turns[0].forced and not got.results


def test_a_truncated_turn_gets_its_end_as_a_given_token():
  got, _ = episode(play(sampled('I am still thinking', closed=False)))
  assert (got.stop, got.turns[0].stop) == (StopReason.LENGTH, StopReason.LENGTH)
  assert [(s.sampled, s.ids.tolist()) for s in got.trajectory.segments[2:]] == [
    (False, [TOK.im_end])
  ]


def test_a_truncated_turn_with_calls_runs_them_and_goes_on():
  got, requests = episode(
    play(sampled(LONG + call(8, 12) + '<tool_call>{"na', closed=False), ANSWER)
  )
  assert [result.status for result in got.results] == [
    ResultStatus.EXECUTED,
    ResultStatus.PARSE_FAILURE,
  ]
  assert TOK.decode(got.trajectory.segments[2].ids).startswith(
    '<|im_end|>\n<|im_start|>user\n<tool_response>'
  )
  assert [turn.stop for turn in got.turns] == [StopReason.LENGTH, StopReason.ANSWER]


def test_another_stop_token_is_kept_as_sampled_and_the_end_is_given():
  got, _ = episode(play(Reply(ids=(*TOK.encode('x', trusted=True), TOK.endoftext))))
  assert got.trajectory.segments[1].ids[-1] == TOK.endoftext
  assert (
    got.trajectory.segments[2].ids.tolist() == [TOK.im_end]
    and not got.trajectory.segments[2].sampled
  )


def test_the_context_limit_counts_expanded_images_and_cuts_the_turns_budget():
  frames = Frames(size=64)  # 64x64 pixels are 4 tokens an image
  got, requests = episode(play(ANSWER), budget=8, frames=frames)
  prompt = expanded(got.trajectory.segments[:1])
  assert prompt == len(requests[0].input_ids) + 8 * 3
  _, requests = episode(
    play(ANSWER),
    budget=8,
    frames=frames,
    context=dataclasses.replace(CONTEXT, context=prompt + 101),
  )
  assert requests[0].sampling['max_new_tokens'] == 100  # one is left for a closing <|im_end|>


def test_results_that_do_not_fit_end_the_episode_with_context():
  first = sampled(LONG + call(8, 12))
  got, _ = episode(play(first, ANSWER))
  used = expanded(got.trajectory.segments[:3])
  fits, _ = episode(
    play(first, sampled('x', closed=False)),
    context=dataclasses.replace(CONTEXT, context=used + 2),
  )
  full, _ = episode(play(first, ANSWER), context=dataclasses.replace(CONTEXT, context=used + 1))
  assert (len(fits.turns), fits.stop) == (2, StopReason.LENGTH)
  assert (len(full.turns), full.stop, full.executed) == (1, StopReason.CONTEXT, 1)
  assert expanded(full.trajectory.segments) <= used + 1 and full.trajectory.segments[-1].sampled


def test_a_prompt_that_does_not_fit_ends_without_a_turn():
  got, requests = episode(play(ANSWER), context=dataclasses.replace(CONTEXT, context=50))
  assert (got.turns, got.stop, len(requests)) == ((), StopReason.CONTEXT, 0)


def test_a_server_failure_is_an_outcome_with_its_message_not_an_exception():
  got, _ = episode(play(LONG + call(8, 12), Refuse(500, 'out of memory')))
  assert got.stop is StopReason.ERROR and 'out of memory' in got.error and len(got.turns) == 1
  dead, _ = episode(play(Die()))
  assert dead.stop is StopReason.ERROR and 'connection lost' in dead.error


def test_an_aborted_request_ends_the_episode_as_aborted():
  got, _ = episode(play(Reply(ids=(), finish='abort', versions=())))
  assert got.stop is StopReason.ABORT


def test_exactly_the_budgets_frames_reach_the_model_each_after_its_time():
  got, requests = episode(play(ANSWER), budget=4)
  assert got.budget == 4 and len(requests[0].images) == 4 and len(got.seconds) == 4
  text = TOK.decode(requests[0].input_ids)
  assert '<8.0 seconds><|vision_start|><|image_pad|><|vision_end|><24.0 seconds>' in text
  short, requests = episode(play(ANSWER), budget=64, frames=Frames(duration=0.5, fps=10))
  assert short.budget == 64 and len(requests[0].images) == 5


def test_a_placeholder_in_a_question_is_text():
  task = dataclasses.replace(TASK, question='<|image_pad|> <|im_end|> <think> what?')
  _, requests = episode(play(ANSWER), task=task)
  ids = requests[0].input_ids
  assert ids.count(TOK.image_pad) == 4 and '<|image_pad|> <|im_end|> <think> what?' in TOK.decode(
    ids
  )


@pytest.mark.parametrize(
  ('own', 'sent'),
  [
    ('Theirs.\n<tools>\n{}\n</tools>', 'Theirs.\n<tools>\n{}\n</tools>'),
    ('You are helpful.', prompts.SYSTEM),
  ],
)
def test_a_row_that_carries_a_tools_block_keeps_it_and_any_other_gets_ours(own, sent):
  got, requests = episode(
    play(LONG + call(8, 12), ANSWER), task=dataclasses.replace(TASK, facts={'system': own})
  )
  assert [result.status for result in got.results] == [ResultStatus.EXECUTED]
  assert TOK.decode(main(requests)[0].input_ids).startswith(
    f'<|im_start|>system\n{sent}<|im_end|>\n<|im_start|>user\n<8.0 s'
  )
  assert sent not in TOK.decode(next(filter(is_subagent, requests)).input_ids)


def test_the_vision_ids_are_banned_and_the_seed_is_an_address():
  _, requests = episode(play(LONG + call(8, 12), ANSWER), rollout=3)
  banned = {str(token) for token in TOK.vision_ids}
  assert all(set(request.sampling['logit_bias']) == banned for request in requests)
  wanted = [
    seeds.at(7, 'task-1', 0, 3, turn, index) & 0x7FFFFFFF for turn, index in ((0, -1), (1, -1))
  ]
  assert [request.sampling['sampling_seed'] for request in main(requests)] == wanted
  crop = next(filter(is_subagent, requests))
  assert crop.sampling['sampling_seed'] == seeds.at(7, 'task-1', 0, 3, 0, 0) & 0x7FFFFFFF
  assert all(request.sampling['stop_token_ids'] == [TOK.im_end] for request in requests)


def test_without_a_pinned_prefix_nothing_is_pinned():
  got, requests = episode(
    play('<think>' + ANSWER), agent=dataclasses.replace(AGENT, think_prefix='')
  )
  assert TOK.decode(requests[0].input_ids).endswith('<|im_start|>assistant\n')
  assert got.turns[0].text == '<think>' + ANSWER
