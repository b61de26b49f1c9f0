"""What an answer earns on each benchmark, by our rules and by theirs."""

import pytest

from paravt_jax.eval import benchmarks
from paravt_jax.eval.sample import Sample
from paravt_jax.types import Task


def _sample(name: str, kind: str, gold: str, options: int = 0) -> Sample:
  return Sample(
    name, Task('1', ('a.mp4',), 'What?', kind, gold, tuple('option' for _ in range(options))), {}
  )


@pytest.mark.parametrize(
  'text, accuracy',
  [
    ('<think>\nlong enough</think>\n<answer>B</answer>', 1.0),
    ('<think>\nlong enough</think>\nB', 1.0),
    ('<think>\nnever closed B', 0.0),
    ('<answer>B</answer> or <answer>C</answer>', 0.0),  # the last one counts
    ('B', 0.0),  # no thought was closed and no answer opened: there is none
    ('', 0.0),
  ],
)
def test_multiple_choice_is_scored_by_our_own_rule(text: str, accuracy: float):
  assert benchmarks.scores(_sample('videomme', 'mcq', 'B', 4), text) == {'accuracy': accuracy}


def test_an_answer_that_a_protocol_reads_by_its_own_rule_is_scored_as_it_is_given():
  sample = _sample('videomme', 'mcq', 'B', 4)
  assert benchmarks.scores(sample, '(b)', '(b)') == {'accuracy': 1.0}
  assert benchmarks.scores(sample, '<answer>B</answer>', '') == {'accuracy': 0.0}


def test_a_letter_beyond_the_options_is_no_answer():
  assert benchmarks.scores(_sample('mlvu', 'mcq', 'C', 4), '<answer>C</answer>') == {
    'accuracy': 1.0
  }
  assert benchmarks.scores(_sample('mlvu', 'mcq', 'E', 4), '<answer>E</answer>') == {
    'accuracy': 0.0
  }


def test_both_kinds_of_rows_are_scored_in_their_own_way_apart_and_together():
  assert benchmarks.scores(_sample('mmvu', 'mcq', 'B', 5), '<answer>B</answer>') == {
    'accuracy': 1.0,
    'accuracy_mcq': 1.0,
  }
  sample = _sample('mmvu', 'oe', 'The depth-first search')
  assert benchmarks.scores(sample, '<think>\nx</think><answer>depth-first search.</answer>') == {
    'accuracy': 1.0,
    'f1': 1.0,
    'accuracy_oe': 1.0,
  }
  # "breadth-first search": breadth, first, search against depth, first, search: 2 * 2 / 6
  assert benchmarks.scores(sample, '<answer>breadth-first search</answer>') == {
    'accuracy': 0.0,
    'f1': pytest.approx(2 / 3),
    'accuracy_oe': 0.0,
  }


def test_grounding_is_scored_by_overlap_and_thresholds_that_are_reached():
  sample = _sample('charades', 'tvg', '0,10')
  # [0, 5] in [0, 10] is just 0.5
  assert benchmarks.scores(
    sample, '<answer>The event happens in the 0.0 - 5.0 seconds.</answer>'
  ) == {'iou': 0.5, 'r@0.3': 1.0, 'r@0.5': 1.0, 'r@0.7': 0.0}
  assert benchmarks.scores(sample, '<answer>[0, 7]</answer>')['r@0.7'] == 1.0
  assert benchmarks.scores(sample, '<answer>never</answer>') == {
    'iou': 0.0,
    'r@0.3': 0.0,
    'r@0.5': 0.0,
    'r@0.7': 0.0,
  }


def test_longvideo_reason_is_given_a_score_for_its_form():
  sample = _sample('longvideo_reason', 'mcq', 'B', 4)
  assert benchmarks.scores(sample, '<think>\nx</think>\n<answer>B</answer>') == {
    'accuracy': 1.0,
    'format': 1.0,
  }
  assert benchmarks.scores(sample, '<answer>B</answer>') == {'accuracy': 1.0, 'format': 0.0}


@pytest.mark.parametrize(
  'gold, answer, accuracy',
  [
    ('oxygen (O2)', 'oxygen', 1.0),
    ('oxygen (O2)', 'oxygen (O2)', 1.0),
    ('oxygen (O2)', 'O2', 0.0),
    ('O(n)', 'O(n)', 1.0),
    ('O(n)', 'O', 0.0),
    ('(crypsis)', 'crypsis', 1.0),
  ],
)
def test_an_open_ended_gold_counts_without_its_parenthesis(gold: str, answer: str, accuracy: float):
  assert (
    benchmarks.scores(_sample('mmvu', 'oe', gold), f'<answer>{answer}</answer>')['accuracy']
    == accuracy
  )
