"""A run folder as values: numbers from the summary, else from the episodes; what is missing becomes
a note.
"""

import json
import math
import shutil

import numpy as np
import pytest

from paravt_jax.errors import DataError
from paravt_jax.report import run as runs
from paravt_jax.report.episodes import Entry
from tests.report import made_run


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return made_run.write_run(tmp_path_factory.mktemp('runs') / 'made', questions=6, steps=5, seed=0)


def _entry(number: int, budget: int, right: float) -> Entry:
  scored = made_run.episode(made_run.task(number), budget, 0.5, 0, np.random.default_rng(number))
  return Entry(0, type(scored)(scored.episode, scored.reward, {**scored.parts, 'accuracy': right}))


def test_a_whole_run_is_read_without_notes(folder):
  run = runs.load(folder)
  summary = json.loads((folder / 'summary.json').read_text())
  assert run.notes == ()
  assert (len(run.metrics), run.git[:4], run.minutes['rl']) == (5, '0123', 14.2)
  assert run.after.accuracy == summary['after']['accuracy'] and list(run.after.by_k) == [4, 16, 64]
  assert run.after.by_k[4].calls > run.after.by_k[64].calls
  assert set(run.after.by_type) == {'mcq', 'oe', 'tvg'}


def test_without_a_summary_the_numbers_come_from_the_episodes(folder, tmp_path):
  shutil.copytree(folder / 'eval_before', tmp_path / 'eval_before')
  run = runs.load(tmp_path)
  whole = runs.load(folder).before
  assert (run.before.accuracy, run.before.calls, run.before.episodes) == pytest.approx(
    (whole.accuracy, whole.calls, 18)
  )
  assert run.after is None and run.gain is None
  assert any('come from 18 logged episodes' in note for note in run.notes)
  assert any('summary.json is missing: the run did not reach its end' in note for note in run.notes)


def test_an_empty_folder_gives_notes_only(tmp_path):
  run = runs.load(tmp_path)
  assert (run.before, run.after, run.metrics, run.config) == (None, None, [], {})
  assert [note.split()[0] for note in run.notes] == [
    'config.json',
    'summary.json',
    'eval_before/results.jsonl',
    'eval_after/results.jsonl',
    'episodes/train.jsonl',
    'metrics.jsonl',
  ]


def test_broken_files_are_named_and_what_precedes_the_break_is_kept(folder, tmp_path):
  (tmp_path / 'config.json').write_text('[1')
  (tmp_path / 'metrics.jsonl').write_text('no\n{"step": 1}\n')
  (tmp_path / 'episodes').mkdir()
  first = (folder / 'episodes' / 'train.jsonl').read_text().splitlines()[0]
  (tmp_path / 'episodes' / 'train.jsonl').write_text(first + '\n{}\n')
  answers = (folder / 'eval_before' / 'results.jsonl').read_text().splitlines()
  (tmp_path / 'eval_before').mkdir()
  (tmp_path / 'eval_before' / 'results.jsonl').write_text('\n'.join([*answers[:3], '{"ben']))
  run = runs.load(tmp_path)
  assert len(run.entries['train']) == 1 and len(run.entries['before']) == 2
  text = '\n'.join(run.notes)
  assert (
    'config.json is no JSON object' in text
    and 'metrics.jsonl line 1' in text
    and 'train.jsonl line 2' in text
    and 'eval_before/results.jsonl line 4 is broken' in text
  )


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
  with pytest.raises(DataError, match='no such folder; wanted a run folder'):
    runs.load(tmp_path / 'nowhere')


def test_of_a_long_training_log_the_ends_are_kept(tmp_path, monkeypatch):
  monkeypatch.setattr(runs, 'TRAIN_KEPT', 2)
  made = made_run.write_run(tmp_path / 'made', questions=1, steps=5, seed=0)
  lines = (made / 'episodes' / 'train.jsonl').read_text().splitlines()
  (made / 'episodes' / 'train.jsonl').write_text(
    '\n'.join([*lines, *lines]) + '\n'
  )  # steps 0 1 2 3 0 1 2 3
  assert [entry.step for entry in runs.load(made).entries['train']] == [0, 1, 2, 3]


def test_the_paired_gain_averages_over_the_budgets_of_a_question_first():
  before = [_entry(1, 4, 0.0), _entry(1, 16, 0.0), _entry(2, 4, 0.0), _entry(3, 4, 1.0)]
  after = [
    _entry(1, 4, 1.0),
    _entry(1, 16, 0.0),
    _entry(2, 4, 1.0),
    _entry(9, 4, 1.0),
  ]  # 3 and 9 have no partner
  # per question: 1 -> .5, 2 -> 1; mean .75, sd .35355, half = 1.96 * .35355 / sqrt 2 = .49
  assert runs.paired_gain(before, after) == pytest.approx((0.75, 0.26, 1.24), abs=1e-3)


def test_the_gain_is_the_one_that_the_run_printed(tmp_path):
  """Page and table once drew an interval each, and differed in the last digit."""
  (tmp_path / 'summary.json').write_text(
    json.dumps(
      {'gain': {'difference': 0.25, 'low': 0.1, 'high': 0.375, 'pairs': 12, 'unpaired': 0}}
    )
  )
  assert runs.load(tmp_path).gain == (0.25, 0.1, 0.375)


@pytest.mark.parametrize(
  'saved',
  [
    None,
    'much',
    {'difference': 0.25, 'low': None, 'high': 0.3},
    {'difference': 0.25, 'low': 0, 'high': math.inf},
  ],
)
def test_a_gain_that_says_nothing_is_no_gain(tmp_path, saved):
  (tmp_path / 'summary.json').write_text(json.dumps({'gain': saved}))
  assert runs.load(tmp_path).gain is None


def test_fewer_than_two_pairs_have_no_gain():
  assert runs.paired_gain([_entry(1, 4, 0.0)], [_entry(1, 4, 1.0)]) is None
  assert runs.paired_gain([], []) is None


def test_a_curve_leaves_out_what_was_not_finite_or_not_logged():
  records = [
    {'step': 0, 'accuracy': 0.5},
    {'step': 1, 'accuracy': None},
    {'step': 2},
    {'step': 3, 'accuracy': 1.0},
  ]
  assert runs.curve(records, 'accuracy') == [(0, 0.5), (3, 1.0)]


def test_knobs_are_flattened_to_dotted_names():
  assert runs.flatten({'a': {'b': 1, 'c': {}}, 'd': [4, 8]}) == [
    ('a.b', '1'),
    ('a.c', '{}'),
    ('d', '[4, 8]'),
  ]
