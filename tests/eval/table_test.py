"""Tables: every number with its interval, published ones apart."""

from paravt_jax.eval import numbers, table
from tests.eval.results_test import outcome, plan


def page(outcomes, published):
  made = plan(*sorted({one.id for one in outcomes}))
  return table.markdown(numbers.summarize(made, outcomes, samples=100, seed=0), 'ours', published)


def test_a_score_says_how_sure_it_is_and_how_many_errors_there_were():
  text = page([outcome('a'), outcome('b', 0.0), outcome('c', None), outcome('d')], {})
  row = next(line for line in text.splitlines() if line.startswith('| mlvu | accuracy |'))
  assert (
    '| 50.0 [15.0, 85.0] | 66.7 [20.8, 93.9] | 50.0 [15.0, 85.0] | 4 | 1 | 1.00 | 100.0 |' in row
  )
  assert '| mlvu | server | 1 |' in text and 'published' not in text


def test_published_rows_stand_beside_ours_marked_and_only_for_benchmarks_that_were_put():
  text = page([outcome('a')], {'mlvu': {'ParaVT-8B': 65.0}, 'lvbench': {'ParaVT-8B': 39.8}})
  assert '| ParaVT-8B | published | 65.0 |' in text and '39.8' not in text
  assert '| ours | measured here | 100.0 [20.7, 100.0] |' in text
  assert text.index('measured here') < text.index('| published |')


def test_what_was_cut_off_says_so_and_is_not_set_beside_published_rows():
  text = table.markdown(
    numbers.summarize(plan('a', 'b', 'c'), [outcome('a')], samples=100, seed=0),
    'ours',
    {'mlvu': {'ParaVT-8B': 65.0}},
  )
  assert '**Not complete: mlvu.**' in text and '| 1 of 3 | 0 |' in text and 'ParaVT-8B' not in text


def test_calls_stand_by_form_with_what_did_not_run_by_reason():
  call = {
    'status': 'executed',
    'call': {'name': 'crop_video', 'arguments': {}, 'well_formed': False},
  }
  text = page(
    [
      outcome(
        'a', calls=(call, {'status': 'timeout', 'call': {'name': 'crop_video', 'arguments': {}}})
      )
    ],
    {},
  )
  assert '| mlvu | 1.00 | 1.00 | 1.00 | 1.00 | timeout 1 |' in text


def test_bars_and_line_ends_do_not_break_a_table():
  assert table.table(('a',), [['x|y\nz']]) == '| a |\n| --- |\n| x\\|y z |'


def test_rules_stand_beside_each_other_and_a_published_row_says_which_one_made_it():
  made = plan('a')
  found = numbers.summarize(
    made,
    [outcome('a', official={'accuracy': 0.0}, lmms_eval={'accuracy': 1.0})],
    samples=100,
    seed=0,
  )
  assert (found['mlvu']['score_official'], found['mlvu']['score_lmms_eval']) == (0.0, 1.0)
  text = table.markdown(
    found,
    'ours',
    {'mlvu': {'ParaVT-8B': 65.0, 'other': 60.0, 'third': 50.0}},
    {'ParaVT-8B': 'official', 'other': 'lmms_eval'},
  )
  assert (
    '| ParaVT-8B | published | 65.0 | official |' in text
    and '| other | published | 60.0 | lmms-eval |' in text
  )
  assert '| third | published | 50.0 | unknown |' in text
  assert '| ours, lmms-eval rule | measured here | 100.0 [20.7, 100.0] | lmms-eval |' in text
  assert '| ours, official rule | measured here | 0.0 [0.0, 79.3] | official |' in text


def test_rows_that_are_broken_as_published_are_counted_once_however_often_they_were_put():
  fields = {'options': 'broken', 'broken': 'option empty; gold nowhere'}
  some = [outcome('a', k=k, fields=fields) for k in (16, 64)] + [
    outcome('b', fields={'options': 'broken'}),
    outcome('c'),
  ]
  found = numbers.summarize(plan('a', 'b', 'c', k=(16, 64)), some, samples=100, seed=0)
  assert found['mlvu']['broken'] == {
    'rows': 2,
    'gold nowhere': 1,
    'option empty': 1,
    'options missing': 1,
  }
  assert (
    'mlvu: 2 rows are broken as published: 1 gold nowhere, 1 option empty, 1 options missing.'
    in table.markdown(found, 'ours', {})
  )
