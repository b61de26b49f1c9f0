"""Ablations over seeds: means, intervals, and what a table says of runs that differ in what they
hold.
"""

import dataclasses
import json
import math

import pytest
from scipy import stats

from paravt_jax.errors import DataError
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.report import ablation
from paravt_jax.report.ablation import Result, Settings, Value

SETTINGS = Settings('configs/para_grpo.py:tiny', (), {'grpo': (), 'para_grpo': ()}, 'para_grpo', {})


def result(accuracy, calls=1.5, gain=0.25, compliance=1.0, by_k=None):
  """A finished run, as experiments.rl writes its summary."""
  by_k = by_k or {'4': accuracy, '64': accuracy}
  after = {
    'accuracy': accuracy,
    'format_compliance': compliance,
    'calls_per_episode': calls,
    'accuracy_by_k': by_k,
    'calls_by_k': dict.fromkeys(by_k, calls),
    'sampled_accuracy': accuracy,
  }
  return Result(
    {'after': after, 'before': {'accuracy': accuracy - gain}, 'gain': {'difference': gain}}, []
  )


def test_three_seeds_give_their_mean_and_students_interval():
  found = ablation.interval([0.5, 0.6, 0.7])
  # deviation .1, over sqrt(3) .05774, times t(2) = 4.303
  assert (found.mean, found.low, found.high, found.seeds) == (
    pytest.approx(0.6),
    pytest.approx(0.35156, abs=1e-5),
    pytest.approx(0.84844, abs=1e-5),
    3,
  )


def test_one_seed_has_a_mean_and_no_interval_and_none_has_neither():
  assert ablation.interval([0.5]) == Value(0.5, -math.inf, math.inf, 1)
  assert (
    ablation.interval([]) == ablation.interval([None, None]) == Value(None, -math.inf, math.inf, 0)
  )


def test_a_run_without_the_number_is_left_out_of_its_mean():
  assert ablation.interval([0.5, None, 0.5]) == Value(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize('freedom', [1, 2, 3, 10, 11, 20, 100])
def test_the_quantiles_of_students_t(freedom):
  assert ablation.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=3e-3)


def test_the_difference_to_the_reference_is_paired_by_seed():
  results = {
    'grpo': {0: result(0.5), 1: result(0.7), 2: result(0.9)},
    'para_grpo': {0: result(0.6), 1: result(0.8)},
  }
  found = ablation.numbers(results, 'para_grpo')['grpo']['against']
  assert (found.mean, found.low, found.high, found.seeds) == (
    pytest.approx(-0.1),
    pytest.approx(-0.1),
    pytest.approx(-0.1),
    2,
  )
  assert ablation.numbers({'grpo': results['grpo']}, 'para_grpo')['grpo']['against'].mean is None


def test_the_columns_are_format_calls_accuracy_by_k_in_number_order_and_gain():
  columns = list(
    ablation.measures({'grpo': {0: result(0.5, by_k={'16': 0.5, '4': 0.25, '128': 0.75})}})
  )
  assert columns == [
    'format',
    'calls',
    'accuracy',
    'acc K=4',
    'acc K=16',
    'acc K=128',
    'gain',
    'calls K=4',
    'calls K=16',
    'calls K=128',
    'sampled acc',
  ]


def test_the_table_has_a_row_per_set_with_intervals_where_there_are_seeds():
  results = {'grpo': {0: result(0.5)}, 'para_grpo': {0: result(0.625), 1: result(0.75)}}
  head, rule, grpo, para = (
    [cell.strip() for cell in line.strip('|').split('|')]
    for line in ablation.table(results, SETTINGS).splitlines()
  )
  assert (
    head[:4] == ['set', 'seeds', 'format', 'calls']
    and head[-1] == 'accuracy − para_grpo'
    and rule[1] == '---:'
  )
  assert grpo[:5] == ['grpo', '1', '1.000', '1.500', '0.500'] and grpo[-1] == '-0.125'
  # deviation .08839, over sqrt(2) .0625, times t(1) = 12.706
  assert (
    para[:5] == ['para_grpo', '2', '1.000 ±.000', '1.500 ±.000', '0.688 ±.794'] and para[-1] == ''
  )
  assert para[head.index('gain')] == '+0.250 ±.000'


def test_a_run_that_was_not_evaluated_is_a_dash(tmp_path):
  bare = Result({'before': None, 'after': None, 'gain': None}, [])
  row = ablation.table({'grpo': {0: bare}}, SETTINGS).splitlines()[2]
  assert [cell.strip() for cell in row.strip('|').split('|')][:5] == ['grpo', '1', '-', '-', '-']
  (tmp_path / 'summary.json').write_text(json.dumps(bare.summary))
  assert ablation.glance(tmp_path) == 'not evaluated'


def test_only_runs_that_reached_their_end_are_loaded(tmp_path):
  whole, begun = tmp_path / 'grpo-seed0', tmp_path / 'grpo-seed1'
  for folder in (whole, begun):
    folder.mkdir()
    with MetricsWriter(folder, tensorboard=False, wandb=None, start_step=0) as writer:
      writer.write(0, {'accuracy': 0.5})
  (whole / 'summary.json').write_text(json.dumps(result(0.5).summary))
  found = ablation.load({'grpo': {0: whole, 1: begun}, 'para_grpo': {0: tmp_path / 'none'}})
  assert {name: list(seeds) for name, seeds in found.items()} == {'grpo': [0]}
  assert found['grpo'][0].metrics[0]['accuracy'] == 0.5
  assert ablation.glance(whole) == 'accuracy 0.250 -> 0.500, 1.50 calls per episode, format 1.000'


def test_a_broken_summary_is_named(tmp_path):
  (tmp_path / 'summary.json').write_text('{')
  with pytest.raises(DataError, match=r'summary.json: not JSON .* move the folder away'):
    ablation.load({'grpo': {0: tmp_path}})


def test_runs_of_different_versions_of_the_code_are_told_of():
  made = lambda *commits: {
    'grpo': {
      seed: dataclasses.replace(result(0.5), commit=commit) for seed, commit in enumerate(commits)
    }
  }
  assert ablation.table(made('a' * 40, 'b' * 40, 'a' * 40), SETTINGS).endswith(
    '\n\nMade by different versions of the code: aaaaaaaaaaaa (2 runs), bbbbbbbbbbbb (1 runs).'
  )
  assert 'aaaaaaaaaaaa+changes (1 runs)' in ablation.table(
    made('a' * 40, 'a' * 40 + '+changes'), SETTINGS
  )
  assert 'versions' not in ablation.table(made('a' * 40, 'a' * 40), SETTINGS)
