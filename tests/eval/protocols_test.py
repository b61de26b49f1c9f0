"""The ways to put a question: what each sends, what comes back, and when the answer is asked
for.
"""

import dataclasses

import pytest

from paravt_jax.chat import prompts
from paravt_jax.errors import ConfigError
from paravt_jax.eval import protocols
from paravt_jax.eval.protocols import PROTOCOLS
from paravt_jax.types import ResultStatus, StopReason
from tests.eval.stage import perform, text_of
from tests.rollout.stack import AGENT, LONG, TASK, TOK, call, episode, is_subagent, play

ANSWER = LONG + '<answer>red</answer>'
FRAME = '<|vision_start|><|image_pad|><|vision_end|>'
OVERVIEW = ''.join(f'<{t}.0 seconds>{FRAME}' for t in (8, 24, 40, 56))
ASKED = f'{OVERVIEW}What appears at 41?\nAnswer in a few words.'


def prompt(system, opened='<|im_start|>assistant\n'):
  return f'<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{ASKED}<|im_end|>\n{opened}'


@pytest.mark.parametrize('dispatch', ['parallel', 'sequential'])
def test_tools_is_the_very_agent_that_is_trained(dispatch):
  turns = (LONG + call(8, 12), ANSWER)
  got, requests, _ = perform(PROTOCOLS['tools'], *turns, dispatch=dispatch)
  trained, theirs = episode(play(*turns))
  assert (
    got.trajectory.ids.tolist() == trained.trajectory.ids.tolist()
    and got.results[0].text == trained.results[0].text
  )
  assert [(r.input_ids, r.sampling) for r in requests] == [
    (r.input_ids, r.sampling) for r in theirs
  ]


def test_raw_crops_come_back_as_frames_that_end_with_a_tool_response_of_their_number_and_window():
  got, requests, asked = perform(PROTOCOLS['raw_crops'], LONG + call(39, 43) + call(8, 60), ANSWER)
  assert len(requests) == 2 and not any(map(is_subagent, requests))
  frames = ''.join(f'<{t}.0 seconds>{FRAME}' for t in range(39, 44))
  tail = TOK.decode(got.trajectory.segments[2].ids)
  assert tail.startswith(
    f'\n<|im_start|>user\n{frames}<tool_response>\n5 frames of 39.0 to 43.0 '
    'seconds.\n</tool_response><|im_end|>\n'
    '<|im_start|>user\n<8.0 seconds>'
  )
  assert tail.endswith(
    '<tool_response>\n16 frames of 8.0 to 60.0 seconds.\n</tool_response><|im_end|>\n'
    '<|im_start|>assistant\n<think>\n'
  )
  assert (
    len(asked[2]) == 16
    and len(requests[1].images) == 4 + 5 + 16
    and len(got.trajectory.images) == 25
  )
  assert int(got.trajectory.segments[2].images[0][0, 0, 0]) == 39
  assert [(r.status, r.text, r.seconds, r.subagent) for r in got.results[:1]] == [
    (ResultStatus.EXECUTED, '5 frames of 39.0 to 43.0 seconds.', (39, 40, 41, 42, 43), None)
  ]
  assert got.executed == 2


def test_a_raw_crop_that_cannot_be_run_comes_back_as_its_error():
  got, requests, _ = perform(
    PROTOCOLS['raw_crops'], LONG + call(9, 2) + '<tool_call>{broken</tool_call>', ANSWER
  )
  assert [result.status for result in got.results] == [
    ResultStatus.BAD_ARGUMENTS,
    ResultStatus.PARSE_FAILURE,
  ]
  assert (
    f'<tool_response>\n{got.results[0].text}\n</tool_response>' in text_of(requests[1])
    and len(requests[1].images) == 4
  )


@pytest.mark.parametrize(
  ('kind', 'answer', 'limit'), [('mcq', 'A', 64), ('oe', 'red', 64), ('tvg', '1,2', 128)]
)
def test_the_forced_answer_of_raw_crops_is_capped_and_no_other_turn_is(kind, answer, limit):
  task = dataclasses.replace(TASK, question_type=kind, answer=answer)
  turns = [LONG + call(8, 12)] * 2 + ['<answer>red</answer>']
  two = dataclasses.replace(AGENT, max_turns=2)
  got, requests, _ = perform(PROTOCOLS['raw_crops'], *turns, task=task, agent=two)
  assert [request.sampling['max_new_tokens'] for request in requests] == [
    512,
    512,
    limit,
  ] and got.turns[-1].forced
  _, requests, _ = perform(PROTOCOLS['tools'], *turns, task=task, agent=two)
  assert requests[-1].sampling['max_new_tokens'] == 512
  _, requests, _ = perform(
    PROTOCOLS['raw_crops'], turns[-1], task=task, agent=dataclasses.replace(AGENT, max_turns=0)
  )
  assert (
    requests[-1].sampling['max_new_tokens'] == 512
  )  # without rounds nothing is forced, and the first turn is whole


@pytest.mark.parametrize(
  ('kind', 'said', 'answer'),
  [
    ('mcq', 'A', 'A'),
    ('oe', 'red', 'red'),
    ('tvg', 'The event happens in the 3 - 5 seconds.', 'The event happens in the 3 - 5 seconds.'),
    ('mcq', '<think>\nIt may well be A', ''),
    ('mcq', '<tool_call>{"name": "crop_video", "arguments": {"video_path": "A"}}</tool_call>', ''),
    ('tvg', '<tool_code>crop_video(10, 20)</tool_code>', ''),
  ],
)
def test_raw_crops_ask_for_the_bare_answer_in_the_end_and_pin_nothing_before_it(kind, said, answer):
  """As the published driver did: a thought would not fit into 64 tokens."""
  task = dataclasses.replace(TASK, question_type=kind, answer='1,2' if kind == 'tvg' else 'A')
  got, requests, _ = perform(
    PROTOCOLS['raw_crops'],
    LONG + call(8, 12),
    said,
    task=task,
    agent=dataclasses.replace(AGENT, max_turns=1),
  )
  assert text_of(requests[1]).endswith(
    f'<|im_start|>user\n{protocols.FORCED_REQUESTS[kind]}<|im_end|>\n<|im_start|>assistant\n'
  )
  assert (got.turns[-1].text, protocols.answer(PROTOCOLS['raw_crops'], got)) == (said, answer)
  assert all(text in PROTOCOLS['raw_crops'].prompt for text in protocols.FORCED_REQUESTS.values())


@pytest.mark.parametrize(
  ('name', 'system', 'opened'),
  [
    ('no_tools', prompts.NO_TOOLS, '<|im_start|>assistant\n<think>\n'),
    ('think', prompts.THINK, '<|im_start|>assistant\n'),
    ('direct', prompts.DIRECT, '<|im_start|>assistant\n'),
  ],
)
def test_without_tools_there_is_one_turn_behind_these_very_bytes(name, system, opened):
  task = dataclasses.replace(TASK, facts={'system': 'Theirs.\n<tools>\n{}\n</tools>'})
  got, requests, asked = perform(PROTOCOLS[name], LONG + call(8, 12), task=task)
  assert [text_of(request) for request in requests] == [prompt(system, opened)] and len(asked) == 1
  assert (got.results, len(got.turns), requests[0].sampling['max_new_tokens']) == ((), 1, 512)
  assert '<tools>' not in system


@pytest.mark.parametrize(
  ('name', 'text', 'answer'),
  [
    ('direct', 'B', 'B'),
    ('direct', '<answer>B</answer>', 'B'),
    ('direct', '<think>hm</think> B', 'B'),
    ('direct', '<answer> </answer>', ''),
    ('think', 'B', ''),
    ('think', '<think>hm</think>B', 'B'),
    ('tools', '<think>\n' + ANSWER, 'red'),
    ('videozoomer', r'<think>x</think><answer>\boxed{B}</answer>', 'B'),
    ('longvt', ANSWER, 'red'),
    ('sage', '<json>{"final_answer": "B", "recommended_tools": {"needed": false}}</json>', 'B'),
  ],
)
def test_an_answer_stands_where_its_protocol_says(name, text, answer):
  got, _, _ = perform(PROTOCOLS[name], text.removeprefix('<think>\n'))
  assert protocols.answer(PROTOCOLS[name], got) == answer
  assert got.stop is (StopReason.ANSWER if answer and name != 'think' else StopReason.STOP)


def test_no_turn_gives_no_answer():
  got, _, _ = perform(PROTOCOLS['tools'], ANSWER)
  assert protocols.answer(PROTOCOLS['tools'], dataclasses.replace(got, turns=())) == ''


@pytest.mark.parametrize('name', ['tools', 'raw_crops'])
def test_sequential_runs_the_first_call_of_a_turn_and_answers_the_others_with_the_limit(name):
  got, _, _ = perform(
    PROTOCOLS[name], LONG + call(8, 12) + call(20, 24) + call(30, 34), ANSWER, dispatch='sequential'
  )
  assert [result.status for result in got.results] == [
    ResultStatus.EXECUTED,
    ResultStatus.OVER_LIMIT,
  ]
  assert got.results[0].window.start == 8


def test_sequential_has_as_many_rounds_as_parallel_has_calls():
  two = dataclasses.replace(AGENT, max_turns=2, max_parallel=3)
  rounds = lambda dispatch: [
    turn.forced
    for turn in perform(PROTOCOLS['tools'], LONG + call(8, 12), dispatch=dispatch, agent=two)[
      0
    ].turns
  ]
  assert rounds('parallel') == [False] * 2 + [True] and rounds('sequential') == [False] * 6 + [True]


def test_sequential_leaves_protocols_without_tools_as_they_are():
  assert len(perform(PROTOCOLS['think'], LONG + call(8, 12), dispatch='sequential')[0].turns) == 1


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('tool', "protocol.name='tool': there is no such protocol, did you mean tools?"),
    ('zzzz', 'wanted one of tools, raw_crops, no_tools, think, direct, longvt, videozoomer, sage'),
  ],
)
def test_an_unknown_protocol_is_refused(name, message):
  with pytest.raises(ConfigError, match=message.replace('?', r'\?')):
    protocols.choose_protocol(name, '', 'parallel')


def test_an_unknown_dispatch_is_refused():
  with pytest.raises(
    ConfigError, match=r"protocol\.dispatch='both': wanted one of parallel, sequential"
  ):
    protocols.choose_protocol('tools', '', 'both')
  with pytest.raises(
    ConfigError,
    match=r"protocol\.dispatch='sequential': direct makes no calls; leave it 'parallel'",
  ):
    protocols.choose_protocol('direct', '', 'sequential')


def test_our_own_protocols_take_no_file_and_state_their_prompt():
  assert (
    protocols.choose_protocol('tools', '', 'parallel') is PROTOCOLS['tools']
    and prompts.SYSTEM in PROTOCOLS['tools'].prompt
  )
  assert all(protocol.prompt for protocol in PROTOCOLS.values() if not protocol.placeholders)
  with pytest.raises(
    ConfigError,
    match=r"prompt_file='x\.txt': tools has a prompt of its own; leave the knob empty, or name one "
    r'of longvt',
  ):
    protocols.choose_protocol('tools', 'x.txt', 'parallel')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, 'No such file or directory; wanted a text file with the prompt of longvt'),
    (b'\xff\xfe', 'is no UTF-8'),
    (b'', 'got no text for the user'),
    (b'System.\n---\n\n', 'got no text for the user'),
    (b'Answer it.', 'its user text holds no {question}'),
    (b'{question}\n---\nAnswer it.', 'its user text holds no {question}'),
  ],
)
def test_a_prompt_file_is_checked_before_anything_runs(tmp_path, content, message):
  path = tmp_path / 'prompt.txt'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(ConfigError) as raised:
    protocols.choose_protocol('longvt', str(path), 'parallel')
  assert (
    message in str(raised.value)
    and str(path) in str(raised.value)
    and '\n' not in str(raised.value)
  )


def test_a_protocol_that_needs_a_file_says_so():
  with pytest.raises(
    ConfigError,
    match=r'prompt_file is empty: sage needs a text file with its prompt that holds \{question\}',
  ):
    protocols.choose_protocol('sage', '', 'parallel')


def test_the_file_is_part_of_what_an_evaluation_is_known_by(tmp_path):
  made = []
  for text in ('One. {question}', 'Two. {question}'):
    (tmp_path / 'prompt.txt').write_text(text)
    made.append(protocols.choose_protocol('sage', str(tmp_path / 'prompt.txt'), 'parallel').prompt)
  assert made[0] != made[1] and 'One. {question}' in made[0]
