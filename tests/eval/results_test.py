"""A results folder: whole lines, settings that do not mix, shards that make a whole, and what the
numbers are of.
"""

import dataclasses
import json

import pytest

from paravt_jax.errors import ConfigError, DataError
from paravt_jax.eval import numbers, results, table
from paravt_jax.eval.results import Outcome, Plan

CALL = {'status': 'executed'}


def outcome(
  name, score=1.0, k=64, benchmark='mlvu', calls=(CALL,), stop='stop', fields=None, **more
):
  """An answered sample; score None makes it an error."""
  answered = score is not None
  episode = (
    {'parts': {'compliant': 1.0}, 'turns': [{'stop': stop, 'results': list(calls)}]}
    if answered
    else None
  )
  values = {
    'key': results.key_of(benchmark, name, k),
    'benchmark': benchmark,
    'id': name,
    'k': k,
    'status': results.ANSWERED if answered else results.ERROR,
    'reason': '' if answered else 'server',
    'error': '' if answered else 'it said 500',
    'score': score,
    'metrics': {'accuracy': score} if answered else {},
    'official': {'accuracy': score} if answered else None,
    'answer': 'A',
    'gold': 'A',
    'fields': fields or {'task_type': 'count'},
    'seconds': {'wall': 1.0},
    'tokens': {'prompt': 9, 'sampled': 3},
    'episode': episode,
  }
  return Outcome(**{**values, **more})


def plan(*names, k=(64,), shard=(1, 1), benchmark='mlvu', metric='accuracy', **common):
  keys = [results.key_of(benchmark, name, budget) for budget in k for name in names]
  about = {'parts': {'budgets': list(k), 'questions': 'q'}, 'metric': metric, 'keys': keys}
  return Plan(
    {'model': {'files': 'abc'}, 'agent': {'max_turns': 3, **common}}, {benchmark: about}, shard
  )


def numbers_of(made, outcomes):
  return numbers.summarize(made, outcomes, samples=200, seed=0)['mlvu']


def lines(folder):
  return (folder / 'results.jsonl').read_bytes().splitlines(keepends=True)


# Lines on disk


def test_what_is_written_comes_back(tmp_path):
  written = [outcome('a'), outcome('b', None), outcome('c', 0.25, official=None)]
  with results.Journal(tmp_path) as journal:
    for one in written:
      journal.append(one)
  assert results.read(tmp_path / 'results.jsonl') == written
  assert set(json.loads(lines(tmp_path)[0])) == {
    'key',
    'benchmark',
    'id',
    'k',
    'status',
    'reason',
    'error',
    'score',
    'metrics',
    'official',
    'answer',
    'gold',
    'fields',
    'seconds',
    'tokens',
    'episode',
    'lmms_eval',
    'question',
  }
  assert written[0].key == 'mlvu/a/k=64'


def test_a_line_is_on_disk_before_the_journal_is_closed(tmp_path):
  journal = results.Journal(tmp_path)
  journal.append(outcome('a'))
  assert results.read(tmp_path / 'results.jsonl') == [outcome('a')]
  journal.close()


def test_errors_and_a_torn_line_are_taken_out_and_put_again(tmp_path):
  with results.Journal(tmp_path) as journal:
    for one in (outcome('a'), outcome('b', None), outcome('c')):
      journal.append(one)
  whole = lines(tmp_path)
  (tmp_path / 'results.jsonl').write_bytes(b''.join(whole) + whole[0][:50])
  with results.Journal(tmp_path, again={'mlvu/b/k=64'}) as journal:
    assert journal.answered == {'mlvu/a/k=64', 'mlvu/c/k=64'}
    journal.append(outcome('b'))
  assert lines(tmp_path)[:2] == [whole[0], whole[2]] and [
    o.id for o in results.read(tmp_path / 'results.jsonl')
  ] == ['a', 'c', 'b']
  assert [path.name for path in tmp_path.iterdir()] == ['results.jsonl']


def test_errors_of_benchmarks_that_are_not_asked_for_now_stay(tmp_path):
  """They once left the file, and the score over all samples rose with them."""
  with results.Journal(tmp_path) as journal:
    for one in (outcome('a'), outcome('b', None)):
      journal.append(one)
  with results.Journal(tmp_path, again={'charades/x/k=64'}) as journal:
    assert journal.answered == {'mlvu/a/k=64'}
  assert [one.status for one in results.read(tmp_path / 'results.jsonl')] == ['answered', 'error']


@pytest.mark.parametrize('line', [b'{"key": 1}\n', b'[]\n', b'nonsense\n'])
def test_a_line_of_another_schema_is_refused_with_its_place(tmp_path, line):
  (tmp_path / 'results.jsonl').write_bytes(line)
  with pytest.raises(
    DataError, match=r'results.jsonl line 1: got .* wanted an object with exactly'
  ):
    results.Journal(tmp_path)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'score': 'x'}, "score is 'x', wanted float or null"),
    ({'score': True}, 'score is True'),
    ({'key': ['a']}, "key is ['a'], wanted str"),
    ({'k': 6.5}, 'k is 6.5, wanted int'),
    ({'fields': None}, 'fields is None, wanted Mapping'),
  ],
)
def test_a_value_of_another_type_is_refused_with_its_place(tmp_path, changes, said):
  row = dataclasses.asdict(outcome('a')) | changes
  (tmp_path / 'results.jsonl').write_text(json.dumps(row) + '\n')
  with pytest.raises(DataError) as caught:
    results.read(tmp_path / 'results.jsonl')
  assert f'({said}' in str(caught.value) and 'results.jsonl line 1' in str(caught.value)


# Settings


def test_a_folder_goes_on_with_its_own_settings_and_takes_further_benchmarks(tmp_path):
  results.write_plan(tmp_path, plan('a'))
  (tmp_path / 'results.jsonl').write_bytes(b'{}\n')
  got = results.write_plan(tmp_path, plan('x', benchmark='lvbench'))
  assert set(got.benchmarks) == {'mlvu', 'lvbench'}
  assert results.read_plan(tmp_path) == got
  results.refuse_other(tmp_path, plan('a'))


@pytest.mark.parametrize(
  ('now', 'said'),
  [
    (plan('a', max_turns=2), 'agent.max_turns: 3 -> 2'),
    (plan('a', shard=(2, 3)), 'shard: 1/1 -> 2/3'),
    (plan('a', k=(16,)), r'mlvu.budgets: \[64\] -> \[16\]'),
    (
      dataclasses.replace(plan('a'), common={'agent': {'max_turns': 3}, 'model': {'files': 'xyz'}}),
      'model.files: abc -> xyz',
    ),
  ],
)
def test_deviation_20_results_of_other_settings_are_never_gone_on_with(tmp_path, now, said):
  """The release took up results whatever they had been made with."""
  results.write_plan(tmp_path, plan('a'))
  results.write_plan(tmp_path, now)  # nothing was begun yet
  results.write_plan(tmp_path, plan('a'))
  (tmp_path / 'results.jsonl').write_bytes(b'{}\n')
  before = (tmp_path / 'plan.json').read_bytes()
  with pytest.raises(ConfigError, match=f'begun with other settings .*{said}.*--config.run.folder'):
    results.write_plan(tmp_path, now)
  assert (tmp_path / 'plan.json').read_bytes() == before


def test_a_folder_without_a_plan_is_no_results_folder(tmp_path):
  with pytest.raises(DataError, match=r'got no plan.json, wanted a results folder'):
    results.read_plan(tmp_path)
  (tmp_path / 'plan.json').write_text('{"common": 1}')
  with pytest.raises(DataError, match=r'plan.json: got KeyError'):
    results.read_plan(tmp_path)
  with pytest.raises(DataError, match=r'got no plan.json, wanted a results folder'):
    results.read_plan(tmp_path / 'plan.json')


@pytest.mark.parametrize(
  'changes',
  [
    {'common': None},
    {'common': [1]},
    {'benchmarks': 3},
    {'benchmarks': {'mlvu': None}},
    {'benchmarks': {'mlvu': {'parts': {}, 'metric': 'accuracy', 'keys': None}}},
    {'benchmarks': {'mlvu': {'parts': {}, 'metric': 'accuracy', 'keys': [1]}}},
    {'shard': []},
    {'shard': 'x'},
    {'shard': {}},
    {'shard': [1, '1']},
  ],
)
def test_a_plan_with_values_of_other_types_is_refused(tmp_path, changes):
  (tmp_path / 'plan.json').write_text(json.dumps(dataclasses.asdict(plan('a')) | changes))
  with pytest.raises(DataError, match=r'plan.json: got .*wanted a plan of experiments.eval'):
    results.read_plan(tmp_path)


def test_a_fingerprint_is_of_the_settings_and_the_questions_of_a_benchmark_and_of_nothing_else():
  one = plan('a').fingerprint('mlvu')
  assert one == plan('a', shard=(1, 4)).fingerprint('mlvu')
  assert (
    len({one, plan('a', max_turns=2).fingerprint('mlvu'), plan('a', k=(16,)).fingerprint('mlvu')})
    == 3
  )


# Numbers


def test_deviation_19_an_error_is_counted_and_is_neither_dropped_nor_a_wrong_answer():
  """The release scored API errors as wrong answers."""
  got = numbers_of(
    plan('a', 'b', 'c', 'd'), [outcome('a'), outcome('b'), outcome('c', 0.0), outcome('d', None)]
  )
  assert (got['samples'], got['answered'], got['errors'], got['reasons']) == (
    4,
    3,
    1,
    {'server': 1},
  )
  assert (got['score'], got['score_answered']) == (0.5, pytest.approx(2 / 3))
  assert (got['score_official'], got['score_official_answered']) == (0.5, pytest.approx(2 / 3))
  assert got['interval'] == pytest.approx([0.150036, 0.849964], abs=1e-5)  # Wilson, 2 of 4
  cell = got['metrics']['accuracy']
  assert (cell['all'], cell['answered']) == (0.5, pytest.approx(2 / 3)) and got[
    'metric'
  ] == 'accuracy'


def test_the_numbers_do_not_depend_on_the_order_of_lines_and_the_last_of_a_key_counts():
  made = plan('a', 'b')
  first = numbers.summarize(
    made, [outcome('a', None), outcome('b'), outcome('a')], samples=50, seed=0
  )
  assert first == numbers.summarize(
    made, [outcome('a'), outcome('b'), outcome('stranger', 0.0)], samples=50, seed=0
  )
  assert (first['mlvu']['samples'], first['mlvu']['errors'], first['mlvu']['score']) == (2, 0, 1.0)


def test_breakdowns_count_errors_too_and_budgets_ascend():
  some = [outcome('a', k=k) for k in (4, 16)] + [
    outcome('b', 0.0, k=4, fields={'task_type': 'order'}),
    outcome('b', None, k=16, fields={'task_type': 'order'}),
  ]
  got = numbers_of(plan('a', 'b', k=(16, 4)), some)['breakdowns']
  assert list(got) == ['k', 'task_type'] and list(got['k']) == ['4', '16']
  assert [
    (cell['samples'], cell['errors'], cell['score'], cell['score_answered'])
    for cell in got['k'].values()
  ] == [(2, 0, 0.5, 0.5), (2, 1, 0.5, 1.0)]
  assert (got['task_type']['order']['errors'], got['task_type']['order']['score']) == (1, 0.0)
  assert numbers_of(plan('a'), [outcome('a')])['breakdowns'] == {}  # one value says nothing


def test_calls_are_counted_by_form_and_those_that_did_not_run_by_reason():
  calls = (
    {'status': 'executed', 'call': {'name': 'crop_video', 'arguments': {}, 'well_formed': False}},
    {'status': 'executed', 'call': {'name': 'crop_video', 'arguments': {}, 'well_formed': True}},
    {
      'status': 'bad_arguments',
      'call': {'name': 'crop_video', 'arguments': {}, 'well_formed': False},
    },
    {'status': 'parse_failure', 'call': {'reason': 'not_json', 'text': '{'}},
  )
  got = numbers_of(plan('a'), [outcome('a', calls=calls)])
  assert (
    got['calls_well_formed'],
    got['calls_other'],
    got['calls_per_sample'],
    got['calls_failed'],
  ) == (1.0, 2.0, 2.0, 2.0)
  assert got['calls_failed_by_reason'] == {'bad_arguments': 1, 'parse_failure': 1}


def test_calls_truncations_and_format_are_means_over_answered_samples():
  failed = {'status': 'bad_arguments'}
  got = numbers_of(
    plan('a', 'b', 'c'),
    [
      outcome('a', calls=(CALL, CALL, failed)),
      outcome('b', calls=(), stop='length'),
      outcome('c', None),
    ],
  )
  assert (
    got['calls_per_sample'],
    got['calls_failed'],
    got['truncated'],
    got['format_compliance'],
  ) == (1.0, 0.5, 0.5, 1.0)


def test_a_metric_that_some_rows_lack_is_a_mean_over_those_that_have_it():
  """Open-ended rows of a benchmark have an F1, multiple-choice ones have none."""
  got = numbers_of(
    plan('a', 'b'),
    [
      outcome('a', metrics={'accuracy': 1.0}),
      outcome('b', 0.0, metrics={'accuracy': 0.0, 'f1': 0.5}),
    ],
  )
  assert (got['metrics']['f1']['all'], got['metrics']['accuracy']['all']) == (0.5, 0.5)


def test_an_error_counts_for_the_metrics_of_its_kind_of_question():
  """A multiple-choice row that failed once lowered the F1 of the open-ended ones."""
  mcq, oe = {'question_type': 'multiple-choice'}, {'question_type': 'open-ended'}
  rows = [
    outcome('a', fields=mcq),
    outcome('b', None, fields=mcq),
    outcome('c', None, fields=oe),
    outcome('d', fields=oe, metrics={'accuracy': 1.0, 'f1': 1.0}),
  ]
  got = numbers_of(plan('a', 'b', 'c', 'd'), rows)['metrics']
  assert (got['f1']['all'], got['f1']['answered'], got['accuracy']['all']) == (0.5, 1.0, 0.5)
  alone = numbers_of(plan('b', 'd'), [rows[1], rows[3]])[
    'metrics'
  ]  # no multiple-choice row was answered
  assert (alone['f1']['all'], alone['accuracy']['all']) == (1.0, 0.5)


def test_a_row_counts_under_each_of_its_values():
  rows = [
    outcome('a', fields={'type': 'reasoning; summary'}),
    outcome('b', 0.0, fields={'type': 'reasoning'}),
  ]
  cells = numbers_of(plan('a', 'b'), rows)['breakdowns']['type']
  assert {name: (cell['samples'], cell['score']) for name, cell in cells.items()} == {
    'reasoning': (2, 0.5),
    'summary': (1, 1.0),
  }


def test_what_was_cut_off_says_how_many_samples_are_missing():
  assert (
    numbers_of(plan('a', 'b', 'c'), [outcome('a')])['missing'] == 2
    and numbers_of(plan('a'), [outcome('a')])['missing'] == 0
  )


def test_temporal_grounding_is_a_mean_iou_with_a_bootstrap_interval():
  values = {'a': 0.25, 'b': 0.5, 'c': 1.0}
  some = [
    outcome(name, iou, metrics={'iou': iou}, official={'iou': 0.0}) for name, iou in values.items()
  ]
  got = numbers_of(plan(*values, metric='iou'), some)
  assert (got['metric'], got['score'], got['score_official']) == (
    'mIoU',
    pytest.approx(1.75 / 3),
    0.0,
  )
  assert 0.25 <= got['interval'][0] < got['score'] < got['interval'][1] <= 1.0


def test_a_benchmark_without_a_rule_of_its_own_has_no_official_score_and_no_samples_give_none():
  got = numbers_of(plan('a'), [outcome('a', official=None)])
  assert (got['score_official'], got['official']) == (None, {})
  empty = numbers_of(plan(), [])
  assert (empty['samples'], empty['score'], empty['interval'], empty['calls_per_sample']) == (
    0,
    None,
    [0.0, 1.0],
    None,
  )


# Two folders


def test_a_comparison_is_paired_and_lists_the_flips():
  first = [
    outcome('a'),
    outcome('b', 0.0),
    outcome('c', 0.0, answer='x'),
    outcome('d'),
    outcome('e'),
  ]
  second = [
    outcome('e', None),
    outcome('d', 0.0),
    outcome('c', answer='y'),
    outcome('b'),
    outcome('a'),
    outcome('f'),
  ]
  got = numbers.compare(
    first, second, {'mlvu': 'accuracy'}, {'mlvu': {'mlvu/never/k=64'}}, samples=300, seed=0
  )['mlvu']
  assert (got['pairs'], got['unpaired'], got['first'], got['second'], got['difference']) == (
    4,
    3,
    0.5,
    0.75,
    0.25,
  )
  assert got['low'] < 0.25 < got['high']
  assert (got['only_first'], got['only_second'], got['p']) == (1, 2, 1.0)
  assert [flip['key'] for flip in got['won']] == ['mlvu/b/k=64', 'mlvu/c/k=64']
  assert got['won'][1] == {'key': 'mlvu/c/k=64', 'gold': 'A', 'first': 'x', 'second': 'y'}
  assert [flip['key'] for flip in got['lost']] == ['mlvu/d/k=64']


def test_without_a_pair_nothing_is_known():
  got = numbers.compare(
    [outcome('a')], [outcome('b')], {'mlvu': 'accuracy'}, {'mlvu': set()}, samples=10, seed=0
  )['mlvu']
  assert (got['pairs'], got['unpaired'], got['difference'], got['low'], got['p']) == (
    0,
    2,
    None,
    None,
    1.0,
  )
  assert '| mlvu |' in table.comparison({'mlvu': got}, 'one', 'two', 5)


def test_other_questions_are_not_compared():
  with pytest.raises(DataError, match="mlvu/a/k=64: got the gold answers 'A' and 'B'"):
    numbers.compare(
      [outcome('a')],
      [outcome('a', gold='B')],
      {'mlvu': 'accuracy'},
      {'mlvu': set()},
      samples=10,
      seed=0,
    )


def shards():
  """Two shards of a whole of three."""
  plans = {'p1': plan('a', 'c', shard=(1, 2)), 'p2': plan('b', shard=(2, 2))}
  return plans, {'p1': [outcome('a'), outcome('c', None)], 'p2': [outcome('b', 0.0)]}


def test_shards_make_a_whole_errors_included():
  made, outcomes = results.merge_shards(*shards())
  assert made.shard == (1, 1) and made.fingerprint('mlvu') == plan('a').fingerprint('mlvu')
  assert made.benchmarks['mlvu']['keys'] == ['mlvu/a/k=64', 'mlvu/c/k=64', 'mlvu/b/k=64']
  assert (numbers_of(made, outcomes)['samples'], numbers_of(made, outcomes)['errors']) == (3, 1)


def test_a_merge_says_all_that_is_missing():
  plans, outcomes = shards()
  plans['p1'] = dataclasses.replace(plans['p1'], shard=(1, 3))
  plans['p2'] = dataclasses.replace(plans['p2'], shard=(2, 3))
  outcomes['p2'] = []
  with pytest.raises(
    ConfigError,
    match=r'not complete: shard 3/3 is not among the folders; p2 lacks 1 samples \(mlvu/b/k=64\)',
  ):
    results.merge_shards(plans, outcomes)


@pytest.mark.parametrize(
  ('other', 'said'),
  [
    (plan('b', shard=(2, 2), max_turns=1), 'other settings than p1 .*agent.max_turns: 3 -> 1'),
    (plan('b', shard=(2, 2), benchmark='lvbench'), r'benchmarks: \[.mlvu.\] -> \[.lvbench.\]'),
    (plan('b', shard=(2, 4)), 'shards: 2 -> 4'),
    (plan('b', shard=(1, 2)), r'shards \[1\] of 2 are given twice'),
  ],
)
def test_what_does_not_belong_together_is_not_merged(other, said):
  plans, outcomes = shards()
  with pytest.raises(ConfigError, match=said):
    results.merge_shards({**plans, 'p2': other}, outcomes)


def test_repeated_frames_are_a_mean_over_answered_samples():
  some = [outcome('a', calls=({**CALL, 'repeated': 3}, CALL)), outcome('b'), outcome('c', None)]
  some[0].episode.update(repeated=4, others=[{'repeated': 1}])
  assert numbers_of(plan('a', 'b', 'c'), some)['frames_repeated'] == 4.0
