"""The rules of lmms-eval, quirks and all, against literals."""

import pytest

from paravt_jax.eval import lmms_eval
from paravt_jax.eval.sample import Sample
from paravt_jax.types import Task


@pytest.mark.parametrize(
  'text, bare',
  [
    ('<think>A?</think> B', 'B'),
    ('<think>A</think>B<think>C</think>', 'B'),
    ('A, then </think> C', 'C'),  # the opening stood in the prompt
    ('<think>never closed B', '<think>never closed B'),
    ('<analysis>A</analysis>D', 'D'),
  ],
)
def test_closed_thoughts_are_taken_out(text: str, bare: str):
  assert lmms_eval.without_thoughts(text) == bare


@pytest.mark.parametrize(
  'text, letter',
  [
    ('B', 'B'),
    ('"C."', 'C'),
    ('A man walks, so (C)', 'A'),  # what it begins with goes first, an article too
    ('It is (A), no, it is D', 'D'),  # then what it ends with
    (
      'the answer is clearly Bob, (C) not',
      'C',
    ),  # behind the phrase the first of each letter, the last of these
    ('the answer is Bob', 'B'),  # in a word too
    ('not (A), not (B).', 'B'),  # of one kind the last
    ('<answer>C</answer>', 'C'),  # any letter in any word, for want of another
    ('<answer>E</answer>', ''),  # past D nothing is read
    ('<answer>B. A dog</answer>', 'B'),
    ('정답은 C 입니다', 'C'),
    ('b', ''),
    (' ', ''),
    ('?!', ''),
  ],
)
def test_a_letter_is_read_by_the_kind_of_its_mention(text: str, letter: str):
  assert lmms_eval.letter(text) == letter


@pytest.mark.parametrize(
  'text, letter',
  [
    ('The best answer is C', 'C'),
    ('The answer: D', 'D'),
    ('D. A book', 'D'),
    ('Because of B', 'B'),  # "Because" begins with one, and it counts
    ('a cat', ''),  # the harness draws one here
    ('E', 'E'),
  ],
)
def test_longvideobench_takes_the_first_capital(text: str, letter: str):
  assert lmms_eval.first_letter(text) == letter


@pytest.mark.parametrize(
  'text, times',
  [
    ('The event happens in the 24.3 - 30.4 seconds.', (24.3, 30.4)),
    ('It happens from 9 to 3', (3.0, 9.0)),  # put in order; "to" is a dash
    ('3 - 5\nthe event happens in 7 - 9', (7.0, 9.0)),  # lines that speak of it go first
    ('3 - 5, no words of it', (3.0, 5.0)),
    ('happens in 1:05 - 1:20', (65.0, 80.0)),
    ('starts at 00:00:18 and ends at 00:00:23', (18.0, 23.0)),
    ('start: 2.5\nend: 4', (2.5, 4.0)),  # the first number of each line
    ('start 2 and end 4', None),  # one line has but one
    ('happens in 3s - 5s', (3.0, 5.0)),
    ('never', None),
  ],
)
def test_times_are_read_in_turn(text: str, times):
  assert lmms_eval.times(text) == times


@pytest.mark.parametrize(
  'text, gold, option, right',
  [
    ('b', 'B', 'a red dog', True),
    ('A or B', 'B', 'a red dog', True),  # anywhere, alone
    ('I see a red dog', 'B', 'a red dog', True),  # the option's text
    ('a blue dog', 'B', 'a red dog', True),  # the letter within a word, and a word of the option
    ('a green cat', 'B', 'a red dog', False),
    ('C', 'B', '', False),
  ],
)
def test_a_choice_of_mmvu_is_right_by_letter_or_words(
  text: str, gold: str, option: str, right: bool
):
  assert lmms_eval.chooses(text, gold, option) is right


@pytest.mark.parametrize(
  'text, gold, right',
  [
    ('It is depth-first search (DFS).', 'Depth-First Search (DFS)', True),
    ('search', 'Depth-First Search', True),
    ('', 'oxygen', True),  # no text is a part of any
    ('3.505 m', 'about 3.5', True),
    ('3.6 m', 'about 3.5', False),
    ('search that goes depth first', 'depth first search', True),
    ('it needs o(n^2) time', 'always O(n²)', True),
    ('nitrogen', 'oxygen', False),
  ],
)
def test_a_text_of_mmvu_is_right_without_a_judge(text: str, gold: str, right: bool):
  assert lmms_eval.says(text, gold) is right


def test_scores_are_of_what_follows_the_thought():
  sample = lambda benchmark, kind, gold, *options: Sample(
    benchmark, Task('1', ('a.mp4',), 'What?', kind, gold, options), {}
  )
  text = '<think>A, or 1 - 2?</think>\n<answer>C</answer>'
  assert lmms_eval.score_letter(sample('mlvu', 'mcq', 'C', 'x', 'y', 'z'), text) == {
    'accuracy': 1.0
  }
  assert lmms_eval.score_first_letter(
    sample('longvideobench', 'mcq', 'C', 'x', 'y', 'z'), text
  ) == {'accuracy': 1.0}
  assert lmms_eval.score_mmvu(sample('mmvu', 'mcq', 'C', 'x', 'y', 'z'), text) == {
    'accuracy': 1.0,
    'accuracy_mcq': 1.0,
  }
  assert lmms_eval.score_mmvu(sample('mmvu', 'oe', 'C'), text) == {
    'accuracy': 1.0,
    'accuracy_oe': 1.0,
  }
  assert lmms_eval.score_times(
    sample('charades', 'tvg', '0,10'), '<think>1 - 2</think> It happens in 0 - 5 seconds'
  ) == {'iou': 0.5, 'r@0.3': 1.0, 'r@0.5': 1.0, 'r@0.7': 0.0}
