"""What the answer is and how right it is; the vectors of the specification, literally."""

import math
import time

import numpy as np
import pytest

from paravt_jax import seeds
from paravt_jax.rewards import answer

# The answer of a turn.


@pytest.mark.parametrize(
  'text, said',
  [
    ('<think>\nx</think>\n<answer>B</answer>', 'B'),
    ('<think>\nx</think><answer>A</answer> no, <answer>\n B </answer>', 'B'),
    ('<think>\nx</think><answer>A</answer><answer></answer>', ''),
    ('<think>\nx</think><answer>red car', 'red car'),
    ('<think>\nx</think><answer>red car<|im_end|>', 'red car'),
    ('<think>\nx</think><answer>A<answer>B</answer>', 'B'),
    ('<think>\nnever closed <answer>B</answer>', 'B'),
    ('<answer>B</answer>', 'B'),
    ('<think>\n<answer>A</answer></think>', ''),
    ('<think>\n<answer>A</answer></think>B', 'B'),
    ('<think>a</think><answer>A</answer><think>b</think>C', 'C'),
    ('<think>\nx</think>\nB<|im_end|>', 'B'),
    (
      '<think>\nx</think>\nB <tool_call>{"name": "f", "arguments": {}}</tool_call> <tool_call>oops',
      'B',
    ),
    (
      '<think>\nx</think><tool_code>crop_video()</tool_code><tool_response>A</tool_response> B',
      'B',
    ),
    ('<think>\nx', ''),
    ('B', ''),
    ('', ''),
  ],
)
def test_the_answer_is_the_last_block_after_the_last_think(text, said):
  assert answer.extract_answer(text) == said


# Multiple choice.


@pytest.mark.parametrize(
  'said, letter',
  [
    ('B', 'B'),
    (' b ', 'B'),
    ('B.', 'B'),
    ('b) foo', 'B'),
    ('b. foo', 'B'),
    ('b: foo', 'B'),
    ('(c)', 'C'),
    ('[c] foo', 'C'),
    ('E. tree', 'E'),
    ('J', 'J'),
    ('A) a man', 'A'),
    ('A', 'A'),
    ('A, a man', 'A'),
    ('**B**', 'B'),
    ('_B_', 'B'),
    ('\\boxed{D}', 'D'),
    ('it is (c), surely', 'C'),
    ('I think B', 'B'),
    ("I'd say C", 'C'),
    ('I', 'I'),
    ('B, B and B', 'B'),
    ('The answer is B.', 'B'),
    ('the answer is: (d)', 'D'),
    ('Answer: b', 'B'),
    ('ANSWER: **C**', 'C'),
    ('Option D', 'D'),
    ('Option A is right', 'A'),
    ('The answer is A because it is red', 'A'),
    ('answer is option B', 'B'),
    ('Not A. The answer is B', 'B'),
    ('The answer is A. No: the answer is C.', 'C'),
    ('option A is wrong, option C', 'C'),
    ('The answer is B because A is wrong', 'B'),
    ('answer is B and I think so', 'B'),
    ('Answer: B, A man walks', 'B'),
    ('Options A or B are wrong; the answer is C', 'C'),
    ('I and my dog say B', 'B'),
    ('option A? The answer is (b)', 'B'),
    ('the answer is B and a dog walks', 'B'),
  ],
)
def test_a_letter_that_is_chosen(said, letter):
  assert answer.chosen_letter(said) == letter
  assert answer.choice_accuracy(said, letter, 10) == 1.0
  assert answer.choice_accuracy(said, 'H', 10) == 0.0


@pytest.mark.parametrize(
  'said',
  [
    '',
    '...',
    'A man walks',
    'a man walks',
    'I think so',
    'it is b',
    'the answer is a dog',
    'Answer: A man walks',
    'Blue',
    'AB',
    'A or B',
    'A and B',
    'A-B',
    'B/C',
    'A, B',
    'The answer is B or A',
    'the answer is (a) or (b)',
    'The answer is A or B',
    'The answer is (A) or (B).',
    'option A. The answer is B and C',
    'Answer: A/B',
    'e.g. this',
    'A-frame houses',
    'K',
    'The answer is I think so',
    "it's",
    '東京',
  ],
)
def test_no_letter_is_chosen(said):
  assert answer.chosen_letter(said) is None
  assert answer.choice_accuracy(said, 'A', 4) == 0.0


def test_the_letter_must_belong_to_the_tasks_options():
  assert answer.choice_accuracy('E', 'E', 5) == 1.0
  assert answer.choice_accuracy('E', 'E', 4) == 0.0
  assert answer.choice_accuracy('A', 'A', 0) == 0.0
  assert answer.choice_accuracy('K', 'K', 11) == 0.0


def test_deviation_12_letters_beyond_d_count_prose_letters_do_not_and_the_last_statement_wins():
  assert answer.choice_accuracy('E. tree', 'E', 5) == 1.0
  assert answer.choice_accuracy('A man walks', 'A', 4) == 0.0
  assert answer.choice_accuracy('The answer is A. Wait, the answer is B.', 'B', 4) == 1.0
  assert answer.choice_accuracy('The answer is A. Wait, the answer is B.', 'A', 4) == 0.0


def test_a_gold_letter_may_be_lower_case_or_bracketed():
  for gold in ('b', '(B)', ' B.\n', '( b )'):
    assert answer.choice_accuracy('B', gold, 4) == 1.0


def test_type_specific_scoring_has_no_shortcut_by_stripped_punctuation():
  assert answer.choice_accuracy('...', 'A', 4) == 0.0
  assert answer.temporal_iou('1 3', '1,3') == 0.0


# Temporal grounding.


@pytest.mark.parametrize(
  'said, gold, iou',
  [
    ('[1, 3]', '2,4', 1 / 3),
    ('[1, 3]', '[2, 4]', 1 / 3),
    ('[1, 3]', (2, 4), 1 / 3),
    ('[1, 3]', [2.0, 4.0], 1 / 3),
    ('[1, 3]', np.array([2.0, 4.0]), 1 / 3),
    ('[1, 3]', '2 - 4', 1 / 3),
    ('[1,3]', ' 2 , 4 ', 1 / 3),
    ('from 10.5 to 20.3', (10, 20), 9.5 / 10.3),
    ('[3.5., 7]', '3,7', 0),
    ('[10, 20]', '30,40', 0),
    ('[10, 20]', '20,30', 0),
  ],
)
def test_iou_of_two_windows(said, gold, iou):
  assert answer.temporal_iou(said, gold) == pytest.approx(iou)


def test_the_vector_of_the_specification_to_four_digits():
  assert round(answer.temporal_iou('from 10.5 to 20.3', '10,20'), 4) == 0.9223


@pytest.mark.parametrize(
  'said, window',
  [
    ('[10,20]', (10, 20)),
    ('(10, 20)', (10, 20)),
    ('[10s, 20 seconds]', (10, 20)),
    ('[00:10, 01:20.5]', (10, 80.5)),
    ('10-20', (10, 20)),
    ('10 – 20', (10, 20)),
    ('10 to 20', (10, 20)),
    ('between 10 and 20', (10, 20)),
    ('[10 - 20]', (10, 20)),
    ('01:00:10 to 1:00:20', (3610, 3620)),
    ('90:00-91:00', (5400, 5460)),
    ('10 s to 20 s', (10, 20)),
    ('10sec-20sec', (10, 20)),
    ('90 seconds to 2 minutes', (90, 120)),
    ('from 1 to 2 minutes', (60, 120)),
    ('Answer:5-10.', (5, 10)),
    ('from 1 to 3.5.', (1, 3.5)),
    ('It happens in the 5.5 - 10.25 seconds', (5.5, 10.25)),
    ('- 5 to 10', (5, 10)),
    ('[1, 2] and then [3, 4]', (3, 4)),
    ('1 to 2, then 3 to 4', (3, 4)),
    ('[1, 2], that is 3 to 4 seconds', (1, 2)),
    ('3 to 4 seconds (frames 7 to 9)', (3, 4)),
    ('frames 7 to 9, 3 to 4 s', (3, 4)),
    ('[[5, 6]]', (5, 6)),
    ('TO 5 TO 6', (5, 6)),
  ],
)
def test_a_window_that_is_named(said, window):
  assert answer.time_window(said) == pytest.approx(window)


@pytest.mark.parametrize(
  'said',
  [
    '',
    '5',
    '[5]',
    '[5, 5]',
    '[20, 10]',
    '20 to 10',
    '[3.5., 7]',
    '[1, 2, 3]',
    '1, 2',
    '10 20',
    '[-1, 5]',
    '-5 to 10',
    '[a, b]',
    '1:75 to 2:00',
    '2020-10-20',
    '1,000 to 2,000',
    'x5 to 9',
    '5 to 9x',
    '5 to 9%',
    '3.5. to 7',
    '1.2.3 to 4',
    '[1e3, 2e3]',
    '[1, ' + '9' * 400 + ']',
    '[20, 10] or 5 to 6',
    '[nan, inf]',
    '10to20',
  ],
)
def test_deviation_13_what_is_malformed_scores_zero_and_never_raises(said):
  assert answer.time_window(said) is None
  assert answer.temporal_iou(said, '1,3') == 0.0


@pytest.mark.parametrize(
  'gold',
  [
    '',
    'x',
    '3,1',
    '1',
    (3, 1),
    (1,),
    (1, 2, 3),
    (math.nan, 3),
    (0, math.inf),
    ('a', 'b'),
    (None, 1),
    None,
    3.0,
  ],
)
def test_a_gold_that_is_no_window_scores_zero(gold):
  assert answer.temporal_iou('[1, 3]', gold) == 0.0


# Open-ended.


def test_deviation_11_f1_is_over_multisets():
  assert answer.token_f1('the red car', 'a red car') == 1.0
  assert answer.token_f1('red car', 'blue red car') == pytest.approx(0.8)
  assert answer.token_f1('cat cat dog', 'dog cat cat') == 1.0
  assert answer.token_f1('cat cat', 'cat') == pytest.approx(2 / 3)  # precision 1/2, recall 1


def test_tokens_are_lower_case_without_articles_and_punctuation_but_decimals_stay_whole():
  assert answer.normalise('The Red-car, a 3.5. “An” $1,000! it’s') == [
    'red',
    'car',
    '3.5',
    '$1000',
    'its',
  ]
  assert answer.token_f1('3.5', '35') == 0.0 and answer.token_f1('3.5.', '3.5') == 1.0


def test_no_token_on_either_side_gives_zero():
  for said, gold in (('', ''), ('the', 'a'), ('!', 'red'), ('red', ''), ('red', 'blue')):
    assert answer.token_f1(said, gold) == 0.0
  assert answer.exact_match('', '') == 0.0 and answer.exact_match('the', 'a') == 0.0


def test_exact_means_equal_tokens_in_order():
  assert answer.exact_match('The red car!', 'red car') == 1.0
  assert answer.exact_match('car red', 'red car') == 0.0


_PIECES = [
  '<answer>',
  '</answer>',
  '</think>',
  '<think>',
  '<|im_end|>',
  '<tool_call>',
  'answer is ',
  'Answer:',
  'option ',
  'A',
  'b',
  'I',
  '(',
  ')',
  '[',
  ']',
  ',',
  '.',
  ':',
  '-',
  '–',
  ' to ',
  ' and ',
  ' or ',
  '5',
  '10',
  '1:30',
  's',
  ' seconds',
  ' ',
  '\n',
  '\0',
  '\ud800',
  '東',
  '9' * 50,
  "'",
  '%',
  '٣',
]


def test_random_text_never_raises_and_stays_in_range():
  rng = seeds.rng(0, 'answer fuzz')
  for _ in range(20_000):
    text = ''.join(_PIECES[i] for i in rng.integers(len(_PIECES), size=rng.integers(0, 12)))
    said = answer.extract_answer(text)
    for value in (
      answer.choice_accuracy(text, 'B', 4),
      answer.temporal_iou(text, '5,10'),
      answer.temporal_iou('[5, 10]', text),
      answer.token_f1(text, said),
      answer.exact_match(said, text),
    ):
      assert 0.0 <= value <= 1.0


def test_long_hostile_text_is_read_in_time():
  started = time.process_time()
  for piece in (
    '1',
    '1 ',
    '( ',
    'A ',
    'answer is ',
    '1:',
    '[1,',
    '<answer>',
    '<think>',
    'A, ',
    '1 to ',
    "'A",
  ):
    text = piece * (8000 // len(piece))
    (
      answer.extract_answer(text),
      answer.chosen_letter(text),
      answer.time_window(text),
      answer.normalise(text),
    )
  assert time.process_time() - started < 5.0
