"""Rows of each published schema to questions, and what is no such row."""

import re

import numpy as np
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


@pytest.mark.parametrize('candidates, gold, golds, faults', [
  (['walk', 'run'], 'fly', (), ('gold nowhere',)),
  (['walk', 'run'], 'A man walks', (), ('gold nowhere',)),
  (['walk', 'run'], 'C', (), ('gold nowhere',)),
  (['walk', 'run'], None, (), ('gold nowhere',)),
  (['walk', 'run', 'run'], 'run', ('B', 'C'), ('gold twice',)),
  (['walk', 'run', 'run'], 'C', ('C', 'B'), ('gold twice',)),              # the same options, whichever letter the row names
  (['B', 'A'], 'A', ('B', 'A'), ('gold ambiguous',)),
  (['', 'walk', 'run', ''], 'walk', ('B',), ('option empty',)),
  (['walk', '', 'run'], '', ('B',), ('option empty',)),                    # an empty gold is the empty option
  (['walk', 'run'], '', (), ('gold nowhere',)),
  (['walk'], 'walk', ('A',), ('options missing',)),
  (['', '', '', ''], '', (), ('options missing', 'gold nowhere')),
  (None, 'walk', (), ('options missing', 'gold nowhere')),
  (None, 'B', ('B',), ('options missing',)),
  ([str(i) for i in range(11)], '3', ('D',), ('options over ten',)),
  ([str(i) for i in range(11)], '10', (), ('options over ten', 'gold nowhere')),
])
def test_a_row_that_is_broken_as_published_is_kept_and_says_why(candidates, gold, golds, faults):
  question = questions.mlvu({**MLVU, 'candidates': candidates, 'answer': gold})
  assert (question.golds, question.faults) == (golds, faults)


@pytest.mark.parametrize('gold', [' b', 'B ', 'b.', '(B)', 'B) run', 'Run', 'run.', 'RUN', ' run '])
def test_a_gold_is_read_in_spite_of_case_spaces_and_points(gold: str):
  row = {'uid': '1', 'question': 'Which?\n(A) walk\n(B) run', 'answer': gold, 'video_path': 'a.mp4'}
  question = questions.lvbench(row)
  assert (question.gold, question.golds, question.faults) == ('B', ('B',), ())


@pytest.mark.parametrize('options', [
  ['A. x', 'B. y', 'C. z'], ('x', 'y', 'z'), np.array(['x', 'y', 'z'], object), '["x", "y", "z"]', "['x', 'y', 'z']",
  {'A': 'x', 'B': 'y', 'C': 'z'}, '{"A": "x", "B": "y", "C": "z"}'])
def test_options_are_read_in_whatever_a_file_keeps_them(options):
  row = {'question_id': '1', 'videoID': 'v', 'question': 'Which?', 'options': options, 'answer': 'C', 'duration': None}
  question = questions.videomme(row)
  assert (question.options, question.gold, question.faults, question.fields) == (('x', 'y', 'z'), 'C', (), {})


@pytest.mark.parametrize('choice, golds', [
  (1, ('B',)), ('1', ('B',)), (1.0, ('B',)), (np.int64(2), ('C',)), ('c', ('C',)), (4, ()), (-1, ()), (None, ()), (True, ())])
def test_the_choice_of_longvideobench_is_an_index_however_it_is_written(tmp_path, choice, golds):
  question = questions.longvideobench({**_first(tmp_path, 'longvideobench'), 'correct_choice': choice})
  assert question.golds == golds and question.faults == (() if golds else ('gold nowhere',))


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
def test_what_does_not_end_with_lettered_options_is_asked_as_it_is(text: str):
  question = questions.mlvu({**MLVU, 'question': text, 'candidates': None, 'answer': 'A'})
  assert (question.text, question.options, question.faults) == (text, (), ('options missing',))


def test_an_option_in_the_question_may_be_empty():
  question = questions.mlvu({**MLVU, 'question': 'Which?\n(A) one\n(B)\n(C) two', 'answer': 'C'})
  assert (question.options, question.gold, question.faults) == (('one', '', 'two'), 'C', ('option empty',))


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


@pytest.mark.parametrize('name, change, faults', [
  ('videomme', {'answer': 'E'}, 'gold nowhere'),
  ('videomme', {'question': ' '}, 'question empty'),
  ('videomme', {'options': 'A. x'}, 'options missing'),
  ('videomme', {'options': None}, 'options missing'),
  ('videomme', {'options': 'N/A', 'answer': None}, 'options missing; gold nowhere'),
  ('longvideobench', {'correct_choice': 4}, 'gold nowhere'),
  ('lvbench', {'question': 'Which?\n(A) one\n(C) two'}, 'options missing'),
  ('lvbench', {'answer': 'F'}, 'gold nowhere'),
  ('mmvu', {'question_type': 'essay'}, 'type unknown'),
  ('mmvu', {'question_type': ['multiple-choice']}, 'type unknown'),
  ('mmvu', {'question_type': {}}, 'type unknown'),
  ('mmvu', {'choices': {'A': 'x', 'C': 'y'}, 'answer': 'C'}, 'option empty'),
  ('mmvu', {'choices': None}, 'options missing'),
  ('mmvu', {'question_type': 'open-ended', 'answer': None}, 'gold nowhere'),
  ('charades', {'timestamp': [4.0, 4.0]}, 'gold nowhere'),
  ('charades', {'timestamp': [4.0]}, 'gold nowhere'),
  ('charades', {'timestamp': [1.0, float('nan')]}, 'gold nowhere'),
  ('charades', {'caption': None}, 'question empty'),
  ('longvideo_reason', {'answer': '<answer>E</answer>'}, 'gold nowhere'),
])
def test_every_benchmarks_broken_rows_are_kept_and_say_why(tmp_path, name: str, change: dict, faults: str):
  row = _first(tmp_path, name)
  assert BENCHMARKS[name].read(row).faults == ()
  assert '; '.join(BENCHMARKS[name].read({**row, **change}).faults) == faults


@pytest.mark.parametrize('name, change, message', [
  ('mmvu', {'video': 'https://example.org/0.mp4'}, 'video: got'),
  ('videomme', {'videoID': None}, 'videoID: got None, wanted a text'),
  ('longvideo_reason', {'videos': ['a.mp4', 'b.mp4']}, 'videos: got'),
])
def test_a_row_without_a_video_is_refused(tmp_path, name: str, change: dict, message: str):
  with pytest.raises(Broken, match=re.escape(message)):
    BENCHMARKS[name].read({**_first(tmp_path, name), **change})


def test_mmvu_is_read_from_a_path_beside_its_address_and_refused_without_either(tmp_path):
  row = _first(tmp_path, 'mmvu')
  bare = {name: value for name, value in row.items() if name != 'video'}
  assert questions.mmvu({**bare, 'video_path': 'Art/0.mp4'}).video == 'Art/0.mp4'
  with pytest.raises(Broken, match='got neither this column nor video_path'):
    questions.mmvu(bare)
