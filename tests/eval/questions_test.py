"""Rows of each published schema to questions, and what is no such row."""

import re

import pytest

from paravt_jax.data.fields import Broken
from paravt_jax.eval import questions, snapshots
from paravt_jax.eval.benchmarks import BENCHMARKS
from tests.eval import fixtures

MLVU = {'video_name': 'a.mp4', 'question': 'Which?', 'task_type': 'order'}


def _first(tmp_path, name: str) -> dict:
  """The first row of a benchmark's fixture."""
  about, root = BENCHMARKS[name], fixtures.snapshot(tmp_path, name)
  return next(snapshots.rows(snapshots.row_files(root, about.rows)[0], about.columns, about.optional))[1]


@pytest.mark.parametrize('gold, letter', [
  ('eat, run', 'B'), ('eat, run.', 'B'), ('Sleep', 'C'), ('A', 'A'), ('(C)', 'C'), ('B. eat, run', 'B'), ('B: eat, run', 'B')])
def test_a_gold_answer_is_a_letter_or_the_text_of_an_option(gold: str, letter: str):
  assert questions.mlvu({**MLVU, 'candidates': ['walk', 'eat, run', 'sleep'], 'answer': gold}).gold == letter


@pytest.mark.parametrize('candidates, gold, message', [
  (['walk', 'run'], 'fly', "got 'fly', wanted one of A, B"),
  (['walk', 'run'], 'A man walks', "got 'A man walks', wanted one of A, B"),
  (['walk', 'run'], 'C', "got 'C', wanted one of A, B"),
  (['walk', 'run', 'run'], 'run', 'which may be B or C'),
  (['B', 'A'], 'A', 'which may be A or B'),
  (['walk', 'run'], None, 'got None, wanted one of A, B'),
  (['walk'], 'walk', 'wanted a list of 2 to 10 options'),
  ([str(i) for i in range(11)], '3', 'wanted a list of 2 to 10 options'),
  (['walk', ' '], 'walk', 'wanted a list of 2 to 10 options'),
  (None, 'walk', 'wanted a list of 2 to 10 options'),
])
def test_a_gold_answer_that_cannot_be_resolved_is_refused(candidates, gold, message: str):
  with pytest.raises(Broken, match=re.escape(message)):
    questions.mlvu({**MLVU, 'candidates': candidates, 'answer': gold})


def test_ten_options_are_read_up_to_j():
  question = questions.mlvu({**MLVU, 'candidates': [f'number {i}' for i in range(10)], 'answer': 'number 9'})
  assert question.gold == 'J' and len(question.options) == 10


@pytest.mark.parametrize('text, options', [
  ('Which?\n(A) one\n(B) two', ('one', 'two')),
  ('Which?\nA. one\nB. two\nlines', ('one', 'two\nlines')),
  ('Which? (A) one (B) two (C) three', ('one', 'two', 'three')),
  ('A. is a letter?\nA) one\nB) two', ('one', 'two')),
])
def test_options_at_the_end_of_a_question_are_taken_off(text: str, options: tuple[str, ...]):
  question = questions.mlvu({**MLVU, 'question': text, 'candidates': None, 'answer': 'A'})
  assert question.options == options and '(A' not in question.text and 'one' not in question.text


@pytest.mark.parametrize('text', ['Which?\n(A)\n(B) two', 'Which?\n(A) one\n(C) two', 'Which?\n(B) one\n(C) two', '(A) one\n(B) two', 'Which?'])
def test_what_does_not_end_with_lettered_options_is_refused(text: str):
  with pytest.raises(Broken, match='candidates: got None, wanted a list of 2 to 10 options'):
    questions.mlvu({**MLVU, 'question': text, 'candidates': None, 'answer': 'A'})


def test_options_in_the_question_are_not_put_twice():
  question = questions.mlvu({**MLVU, 'question': 'Which?\n(A) walk\n(B) run', 'candidates': ['walk', 'run'], 'answer': 'run'})
  assert (question.text, question.options, question.gold) == ('Which?', ('walk', 'run'), 'B')


def test_longvideobench_is_read_from_its_json_file_too():
  row = {'id': 'x_0', 'video_path': 'x.mp4', 'question': 'Which?', 'candidates': ['one', 'N/A', 'three'], 'correct_choice': 2}
  question = questions.longvideobench(row)
  assert question.options == ('one', 'three') and question.gold == 'B'


def test_lvbench_takes_options_from_a_column_where_the_question_has_none():
  row = {'uid': '1', 'question': 'Which?', 'answer': 'B', 'video_path': 'a.mp4', 'options': ['one', 'two']}
  assert questions.lvbench(row).options == ('one', 'two')


def test_a_row_of_several_types_names_them_all(tmp_path):
  row = {'uid': '1', 'question': 'Which?\n(A) x\n(B) y', 'answer': 'B', 'video_path': 'a.mp4', 'type': 'live',
         'question_type': ['entity recognition', 'event understanding']}
  assert questions.lvbench(row).fields == {'type': 'live', 'question_type': 'entity recognition; event understanding'}


@pytest.mark.parametrize('stamps, gold', [
  ([24.296875, 30.40625], '24.296875,30.40625'),      # half precision's 24.3 and 30.4
  ([0.0, 3.5], '0,3.5'),
  ([24.25, 30.4], '24.25,30.4'),             # not of half precision: as they are
  ([1.0, 70000.0], '1,70000'),
  ('[24.3, 30.4]', '24.3,30.4'),
])
def test_a_window_of_half_precision_is_read_as_what_was_meant(stamps, gold: str):
  assert questions.charades({'video': 'a.mp4', 'caption': 'x', 'timestamp': stamps}).gold == gold


def test_an_address_of_mmvu_is_the_path_in_its_data_set(tmp_path):
  row = _first(tmp_path, 'mmvu')
  assert questions.mmvu(row).video == 'videos/Art/0.mp4'
  assert questions.mmvu({**row, 'video': 'videos/Art/0.mp4'}).video == 'videos/Art/0.mp4'
  assert questions.mmvu({**row, 'video': 'https://x.org/d/resolve/1a2b/videos/Art%20Work/0.mp4?download=true'}).video == 'videos/Art Work/0.mp4'
  assert questions.mmvu({**row, 'subject': 'Painting'}).fields['subject'] == 'Painting'
  assert questions.mmvu({**row, 'metadata': None}).fields['subject'] == 'Art'


@pytest.mark.parametrize('problem', [
  'What?\nA. one\nB. two\nC. three', 'What?\n\n', 'What?\nC. But the user wants a question that needs several steps.'])
def test_a_row_of_longvideo_reason_without_four_options_is_kept_as_it_is(problem: str):
  row = {'problem': problem, 'problem_type': 'plot', 'videos': ['a.mp4'], 'answer': 'C'}
  question = questions.longvideo_reason(row)
  assert (question.text, question.options, question.gold) == (problem.strip(), (), 'C')
  assert question.fields == {'problem_type': 'plot', 'options': 'broken'}


@pytest.mark.parametrize('name, change, message', [
  ('videomme', {'answer': 'E'}, 'answer: got'),
  ('videomme', {'question': ' '}, 'question: got'),
  ('videomme', {'options': 'A. x'}, 'options: got'),
  ('longvideobench', {'correct_choice': 4}, 'correct_choice: got 4, wanted one of [0, 1, 2, 3]'),
  ('longvideobench', {'correct_choice': -1}, 'correct_choice: got -1'),
  ('lvbench', {'question': 'Which?\n(A) one\n(C) two'}, 'no options (A), (B)'),
  ('mmvu', {'question_type': 'essay'}, 'question_type: got'),
  ('mmvu', {'choices': {'A': 'x', 'C': 'y'}}, 'choices: got'),
  ('mmvu', {'video': 'https://example.org/0.mp4'}, 'video: got'),
  ('charades', {'timestamp': [4.0, 4.0]}, 'timestamp: got [4.0, 4.0]'),
  ('charades', {'timestamp': [4.0]}, 'timestamp: got [4.0]'),
  ('charades', {'timestamp': [1.0, float('nan')]}, 'timestamp: got nan'),
  ('longvideo_reason', {'answer': '<answer>E</answer>'}, "answer: got 'E'"),
  ('longvideo_reason', {'videos': ['a.mp4', 'b.mp4']}, 'videos: got'),
])
def test_fields_are_validated(tmp_path, name: str, change: dict, message: str):
  row = _first(tmp_path, name)
  assert BENCHMARKS[name].read(row)
  with pytest.raises(Broken, match=re.escape(message)):
    BENCHMARKS[name].read({**row, **change})
