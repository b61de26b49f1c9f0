"""What is made of finished results: a comparison with its flips, one line for what is none."""

import json

import pytest

from experiments import eval as entry
from paravt_jax.eval import results
from paravt_jax.orchestrator import results_folders
from tests.eval.results_test import outcome, plan


def finished(folder, made, outcomes):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(
    json.dumps({'eval': {'bootstrap': 50, 'report_right': True}, 'seed': 0, 'shard': '1/2'})
  )
  results.write_plan(folder, made)
  with results.Journal(folder) as journal:
    for one in outcomes:
      journal.append(one)
  return str(folder)


def test_compare_prints_the_differences_and_keeps_every_flip(tmp_path, capsys):
  a = finished(tmp_path / 'a', plan('x', 'y'), [outcome('x', 0.0), outcome('y')])
  b = finished(tmp_path / 'b', plan('x', 'y', max_turns=1), [outcome('x'), outcome('y')])
  assert entry.command('--compare', [a, b]) == 0
  said = capsys.readouterr().out
  assert (
    '| mlvu | accuracy | 50.0 | 100.0 | +50.0 [' in said
    and 'agent.max_turns: 3 -> 1' in said
    and '`mlvu/x/k=64`' in said
  )
  kept = json.loads((tmp_path / 'b' / 'compare_a.json').read_text())
  assert [flip['key'] for flip in kept['benchmarks']['mlvu']['won']] == ['mlvu/x/k=64']


def test_compare_warns_at_the_top_where_the_questions_are_not_the_same(tmp_path, capsys):
  a = finished(tmp_path / 'a', plan('x', 'y', 'z'), [outcome(name) for name in 'xyz'])
  b = finished(tmp_path / 'b', plan('x', 'v'), [outcome('x'), outcome('v')])
  other = plan('x', 'v')
  other.benchmarks['mlvu']['parts']['questions'] = 'others'
  c = finished(tmp_path / 'c', other, [outcome('x'), outcome('v')])
  assert entry.command('--compare', [a, b]) == 0
  title, _, warning, *_ = capsys.readouterr().out.splitlines()
  assert title == '# a against b' and warning == (
    '**Warning: not the same samples.** mlvu: 2 samples are in a only, 1 in b only; '
    'the 1 of both are compared.'
  )
  assert json.loads((tmp_path / 'b' / 'compare_a.json').read_text())['warnings'] == [
    'mlvu: 2 samples are in a only, 1 in b only; the 1 of both are compared.'
  ]
  assert entry.command('--compare', [b, c]) == 0
  assert (
    'mlvu: the samples have the same names, but other texts or options.'
    in (capsys.readouterr().out.splitlines()[2])
  )
  assert entry.command('--compare', [b, b]) == 0
  assert 'Warning' not in capsys.readouterr().out


def test_compare_warns_of_missing_samples_and_refuses_a_folder_without_any(tmp_path, capsys):
  a = finished(tmp_path / 'a', plan('x', 'y'), [outcome('x'), outcome('y')])
  b = finished(tmp_path / 'b', plan('x', 'y'), [outcome('x')])
  assert entry.command('--compare', [a, b]) == 0
  assert 'mlvu: ' + b + '/results.jsonl lacks 1 of 2 samples' in capsys.readouterr().out
  kept = (tmp_path / 'b' / 'compare_a.json').read_bytes()
  (tmp_path / 'b' / 'results.jsonl').unlink()
  assert entry.command('--compare', [a, b]) == 2
  said = capsys.readouterr().err
  assert 'there is nothing to compare: mlvu: ' in said and 'lacks 2 of 2 samples' in said
  assert (tmp_path / 'b' / 'compare_a.json').read_bytes() == kept


@pytest.mark.parametrize('arguments', [[], ['a'], ['a', 'b', 'c'], ['a', '--b']])
def test_compare_wants_two_results_folders(arguments, capsys):
  assert entry.command('--compare', arguments) == 2
  assert 'wanted two results folders' in capsys.readouterr().err


def test_folders_without_a_common_benchmark_or_without_results_are_refused_in_one_line(
  tmp_path, capsys
):
  a = finished(tmp_path / 'a', plan('x'), [])
  b = finished(tmp_path / 'b', plan('x', benchmark='lvbench'), [])
  assert (
    entry.command('--compare', [a, b]) == 2 and entry.command('--compare', [a, str(tmp_path)]) == 2
  )
  first, second = capsys.readouterr().err.splitlines()
  assert 'wanted a benchmark in both' in first and 'wanted a results folder' in second


def test_the_worst_benchmark_decides_the_error_rate():
  assert (
    results_folders.error_rate(
      {
        'a': {'errors': 1, 'samples': 4},
        'b': {'errors': 1, 'samples': 100},
        'c': {'errors': 0, 'samples': 0},
      }
    )
    == 0.25
  )
