"""The published rules, quirks and all, against literals."""

import pytest

from paravt_jax.eval import official
from paravt_jax.eval.sample import Sample
from paravt_jax.types import Task


def _sample(benchmark: str, gold: str, kind: str = 'mcq') -> Sample:
  return Sample(benchmark, Task('1', ('a.mp4',), 'What?', kind, gold), {})


@pytest.mark.parametrize(
  'text, letter',
  [
    ('<think>A or B?</think><answer>C</answer>', 'C'),  # the single letter in the tag
    ('<answer> D </answer>', 'D'),
    ('<answer>The cup, B or C</answer>', 'B'),  # the first stand-alone one inside it
    ('<answer>B</answer> no, <answer>C</answer>', 'B'),  # the first tag, where ours takes the last
    ('<answer>the cup</answer> I say E', 'I'),  # nothing inside: on with the whole text
    ('J', 'J'),
    ('K', 'K'),  # past J it is but the first character
    ('The Answer is B, not C', 'B'),
    ('A hint? Answer: B', 'B'),
    ('A cat sits, so answer: F', 'F'),  # what is stated goes before the article
    ('the answer is(C)', 'C'),  # nothing stated right after "is": the first alone
    ('A man walks', 'A'),  # an article counts
    ('(G) because', 'G'),
    ('because of Ben', 'b'),  # no letter: the first character
    ('<think>\nso B it is', 'B'),
    ('   ', ''),
  ],
)
def test_the_letter_is_read_as_the_driver_reads_it(text: str, letter: str):
  assert official.letter(text) == letter


@pytest.mark.parametrize(
  'text, times',
  [
    ('<time>00:19.7 - 00:25.6</time>', (19.7, 25.6)),
    ('about 3 - 9, <time>5 - 7</time>', (5.0, 7.0)),  # a tag goes first
    ('<time>soon</time> then 3 - 9', (3.0, 9.0)),
    ('The event happens in the 24.3 - 30.4 seconds.', (24.3, 30.4)),
    ('from 1:05 – 1:20', (65.0, 80.0)),
    (
      '2 - 4, or rather 10:00 - 10:30',
      (600.0, 630.0),
    ),  # a clock range goes before an earlier plain one
    ('59:00 - 60:00', (0.0, 60.0)),  # beyond an hour; "00 - 60" is what is left of it
    ('1:20 - 1:05', (1.0, 20.0)),  # a clock range that ends too early
    ('9 - 3 or 4 - 6', (9.0, 3.0)),  # the first range ends too early: the first two numbers
    ('It starts at 5 and ends at 8', (5.0, 8.0)),  # "at" hides them: the first two numbers
    ('end: 8, start: 5', (5.0, 8.0)),
    ('start 12 to finish 4', (12.0, 4.0)),  # in no order
    ('5 seconds to 8 seconds', (5.0, 8.0)),
    ('only 5', None),
    ('', None),
  ],
)
def test_times_are_read_as_the_driver_reads_them(text: str, times: tuple[float, float] | None):
  assert official.times(text) == times


def test_the_letter_must_be_the_gold_one_in_open_ended_rows_too():
  assert official.score_letter(_sample('videomme', 'B'), '<answer>B</answer>') == {'accuracy': 1.0}
  assert official.score_letter(_sample('videomme', 'C'), '<answer>B</answer>') == {'accuracy': 0.0}
  assert official.score_letter(
    _sample('mmvu', 'depth-first search', 'oe'), '<answer>depth-first search</answer>'
  ) == {'accuracy': 0.0}
  assert official.score_letter(_sample('mmvu', '5', 'oe'), '5') == {'accuracy': 1.0}


def test_the_letters_of_mmvu_are_reported_over_all_rows_and_over_those_that_have_some():
  assert official.score_mmvu(_sample('mmvu', 'B'), '<answer>B</answer>') == {
    'accuracy': 1.0,
    'accuracy_mcq': 1.0,
  }
  assert official.score_mmvu(_sample('mmvu', 'C'), '<answer>B</answer>') == {
    'accuracy': 0.0,
    'accuracy_mcq': 0.0,
  }
  assert official.score_mmvu(
    _sample('mmvu', 'depth-first search', 'oe'), '<answer>depth-first search</answer>'
  ) == {'accuracy': 0.0}


def test_recall_counts_a_threshold_that_is_just_reached():
  # [0, 5] in [0, 10]: 5 / 10
  assert official.score_times(_sample('charades', '0,10', 'tvg'), 'in the 0.0 - 5.0 seconds') == {
    'iou': 0.5,
    'r@0.3': 1.0,
    'r@0.5': 1.0,
    'r@0.7': 0.0,
  }
  # [24.3, 30.4] and [25, 31]: 5.4 / 6.7
  assert official.score_times(_sample('charades', '24.3,30.4', 'tvg'), '25 - 31')[
    'iou'
  ] == pytest.approx(5.4 / 6.7)
  assert official.score_times(_sample('charades', '0,10', 'tvg'), 'no idea')['iou'] == 0.0
  assert official.score_times(_sample('charades', '0,10', 'tvg'), '20 - 30')['iou'] == 0.0
  assert official.iou((3, 3), (3, 3)) == 0.0


@pytest.mark.parametrize(
  'text, accuracy, form',
  [
    ('<think>x</think> <answer>B</answer>', 1.0, 1.0),
    ('<think>x</think>\n<answer>B</answer> and more', 1.0, 1.0),
    ('<think>x</think><answer>B.</answer>', 0.0, 1.0),  # nothing but the letter
    ('Sure! <think>x</think><answer>B</answer>', 1.0, 0.0),  # it does not begin so
    ('<think>x</think> so <answer>B</answer>', 1.0, 0.0),
    ('<think>x</think><answer>Therefore the final answer is: B</answer>', 1.0, 1.0),
    ('Therefore the final answer is: B', 0.0, 0.0),
    (' B ', 1.0, 0.0),
    ('<think>never closed <answer>C</answer>', 0.0, 0.0),
  ],
)
def test_longvideo_reason_wants_the_very_letter_and_the_form(
  text: str, accuracy: float, form: float
):
  assert official.score_longvideo_reason(_sample('longvideo_reason', 'B'), text) == {
    'accuracy': accuracy,
    'format': form,
  }
