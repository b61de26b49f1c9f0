"""Replies to questions: what is just as asked for is read, everything else is refused with a
reason.
"""

import pytest

from paravt_jax.longvideo_reason.items import Question, Rejected, Step
from paravt_jax.longvideo_reason.parse import parse, time, without_think

GOOD = """QUESTION: Why does he go back?
OPTIONS:
A. For his keys
B. For his hat
C. To wait
D. To eat
ANSWER: B
REASONS:
[10 to 20] He leaves without a hat.
[30 to 40] It is windy.
He looks up."""
READ = Question(
  'Why does he go back?',
  ('For his keys', 'For his hat', 'To wait', 'To eat'),
  'B',
  (
    Step(10.0, 20.0, ('He leaves without a hat.',)),
    Step(30.0, 40.0, ('It is windy.', 'He looks up.')),
  ),
)


def test_the_four_sections_are_read():
  assert parse(GOOD, 60.0) == READ


@pytest.mark.parametrize(
  'old, new',
  [
    ('QUESTION: Why does he go back?', '**QUESTION:**\nWhy does he\ngo back?'),
    ('QUESTION:', '### QUESTION:'),
    ('A. For his keys', '(A) For his keys'),
    ('B. For his hat', '- B) For his\n  hat'),
    ('ANSWER: B', 'ANSWER: B. For his hat'),
    ('ANSWER: B', '**ANSWER:** (B)'),
    ('[10 to 20] He', '##### From [10 to 20]:\n- He'),
    ('[10 to 20]', '1. [10.0s to 20.0s]'),
    ('[10 to 20]', '**Step 1:** [00:10 - 00:20]:'),
    ('[10 to 20]', '- [0:00:10 to 0:00:20]'),
  ],
)
def test_other_ways_to_write_the_same_are_the_same(old, new):
  assert old in GOOD and parse(GOOD.replace(old, new), 60.0) == READ


def test_a_models_own_thoughts_are_stripped_also_when_only_their_end_is_there():
  thought = 'Maybe.\nQUESTION: no\nA. not an option\n'
  assert parse(f'<think>{thought}</think>\n{GOOD}', 60.0) == READ
  assert parse(f'{thought}</think>{GOOD}', 60.0) == READ
  assert without_think('<think>a</think>b<think>c') == Rejected(
    'unclosed_think', 'the reply ends inside <think>', '<think>a</think>b<think>c'
  )


def test_reasons_that_look_like_options_are_none():
  text = GOOD.replace('It is windy.', 'It is windy.\nA. He has keys.\nC. He does not wait.')
  found = parse(text, 60.0)
  assert found.options == READ.options
  assert found.steps[1].reasons == (
    'It is windy.',
    'A. He has keys.',
    'C. He does not wait.',
    'He looks up.',
  )


@pytest.mark.parametrize(
  'old, new, reason',
  [
    ('QUESTION: Why does he go back?', '', 'no_question'),
    ('Why does he go back?', '', 'no_question'),
    ('OPTIONS:', '', 'no_options'),
    ('ANSWER: B', '', 'no_answer'),
    ('REASONS:', '', 'no_reasons'),
    ('REASONS:', 'ANSWER: C\nREASONS:', 'repeated_section'),
    ('He looks up.', 'ANSWER: C', 'repeated_section'),
    ('ANSWER: B\n', '', 'no_answer'),
    ('B. For his hat\n', '', 'bad_options'),
    ('D. To eat', 'D. To eat\nE. To rest', 'bad_options'),
    ('B. For his hat', 'B.', 'bad_options'),
    ('A. For his keys\nB. For his hat', 'B. For his hat\nA. For his keys', 'bad_options'),
    ('A. For', 'As follows\nA. For', 'bad_options'),
    ('C. To wait', 'C. for his HAT!', 'same_options'),
    ('ANSWER: B', 'ANSWER: E', 'bad_answer'),
    ('ANSWER: B', 'ANSWER: A or B', 'answer_mismatch'),
    ('ANSWER: B', 'ANSWER: b', 'bad_answer'),
    ('ANSWER: B', 'ANSWER: B. To wait', 'answer_mismatch'),
    ('[10 to 20] ', '', 'no_window'),
    ('[10 to 20]', '[20 to 10]', 'bad_window'),
    ('[10 to 20]', '[start to end]', 'bad_window'),
    ('[10 to 20]', '[nan to 20]', 'bad_window'),
    ('[30 to 40]', '[50 to 90]', 'window_outside'),
    ('[30 to 40]', '[60 to 60.5]', 'window_outside'),
    ('[30 to 40]', f'[1 to {"9" * 30}]', 'bad_window'),
    ('[10 to 20] He leaves without a hat.', '[10 to 20]', 'empty_reason'),
    ('It is windy.', 'So the answer is C.', 'contradiction'),
    ('It is windy.', '<tool_call>{}</tool_call>', 'markup'),
    ('Why', '<video> Why', 'markup'),
    ('hat.', 'hat.<|im_end|>', 'markup'),
    ('Why does he go back?', 'Which?\nA. This\nB. That', 'options_in_question'),
    ('QUESTION', '<think>QUESTION', 'unclosed_think'),
  ],
)
def test_a_reply_that_is_not_as_asked_is_refused_with_its_reason(old, new, reason):
  text = GOOD.replace(old, new)
  assert text != GOOD
  found = parse(text, 60.0)
  assert (
    isinstance(found, Rejected)
    and found.reason == reason
    and found.reply == (text if reason != 'unclosed_think' else found.reply)
  )


def test_sections_in_another_order_are_refused():
  head, tail = GOOD.split('ANSWER: B\n')
  assert parse(f'{head}{tail}\nANSWER: B', 60.0).reason == 'wrong_order'


@pytest.mark.parametrize(
  'text',
  [
    '',
    ' \n',
    'I cannot help with that.',
    '{}',
    'A. a\n' * 50_000,
    '[' * 50_000,
    '*' * 50_000 + 'QUESTION',
    'QUESTION:' + ' ' * 50_000,
    GOOD + '\n' + '# ' * 20_000 + '[',
    GOOD + '\n[' + ' ' * 5_000 + 'to',
  ],
)
def test_hostile_texts_are_refused_or_read_but_never_raise(text):
  assert isinstance(parse(text, 60.0), Rejected | Question)


def test_a_window_that_oversteps_the_end_by_a_rounding_is_cut_there():
  assert parse(GOOD, 39.4).steps[1].end == 39.4


@pytest.mark.parametrize(
  'text, seconds',
  [
    ('12', 12.0),
    ('12.5s', 12.5),
    ('1:30', 90.0),
    ('1:00:01.5', 3601.5),
    ('12 seconds', 12.0),
    ('', None),
    ('-1', None),
    ('1e3', None),
    ('inf', None),
  ],
)
def test_times_are_seconds_or_clock_times(text, seconds):
  assert time(text) == seconds
