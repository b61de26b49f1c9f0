"""The results of several hosts end in one file, also when a host was killed before."""

import contextlib

import pytest

from paravt_jax.eval import results
from paravt_jax.orchestrator import host_journal, hosts

ALONE = hosts.Hosts(0, 1)


def outcome(key, status=results.ANSWERED):
  """The result of one sample."""
  score = 1.0 if status == results.ANSWERED else None
  texts = dict.fromkeys(('reason', 'error', 'answer', 'gold'), '')
  return results.Outcome(
    key=key, benchmark='b', id=key, k=4, status=status, score=score, metrics={}, official=None,
    fields={}, seconds={}, tokens={}, episode=None, **texts,
  )  # fmt: skip


def left_behind(folder, *outcomes):
  """What a killed host 1 leaves."""
  with results.Journal(folder / 'host1') as journal:
    for one in outcomes:
      journal.append(one)


def keys(folder):
  return [one.key for one in results.read(folder / 'results.jsonl')]


def test_what_a_killed_host_has_answered_is_taken_over_and_not_asked_again(tmp_path):
  with results.Journal(tmp_path) as journal:
    journal.append(outcome('a'))
  left_behind(
    tmp_path, outcome('b'), outcome('a'), outcome('c', results.ERROR), outcome('d', results.ERROR)
  )
  with host_journal.opened(ALONE, tmp_path, {'a', 'b', 'c'}) as journal:
    assert journal.answered == {'a', 'b'}
    journal.append(outcome('c'))
  # the error of c runs again, that of another evaluation stays
  assert keys(tmp_path) == ['a', 'b', 'd', 'c'] and not (tmp_path / 'host1').exists()


def test_results_of_the_others_are_taken_over_at_the_end(tmp_path):
  with host_journal.opened(ALONE, tmp_path, ()) as journal:
    journal.append(outcome('a'))
    left_behind(tmp_path, outcome('b'), outcome('c', results.ERROR))
    (tmp_path / 'host1' / 'server0.log').write_text('a log stays')
  assert keys(tmp_path) == ['a', 'b', 'c']
  assert [path.name for path in (tmp_path / 'host1').iterdir()] == ['server0.log']


def test_after_an_error_they_stay_where_they_are(tmp_path):
  with contextlib.suppress(KeyboardInterrupt), host_journal.opened(ALONE, tmp_path, ()):
    left_behind(tmp_path, outcome('b'))
    raise KeyboardInterrupt
  assert keys(tmp_path) == [] and keys(tmp_path / 'host1') == ['b']


@pytest.mark.parametrize('shard', [(1, 1), (2, 3)])
def test_the_hosts_share_a_shard_without_rest(shard):
  videos = range(24)
  mine = lambda number, count: {one for one in videos if one % count == number - 1}
  parts = [mine(*host_journal.share(hosts.Hosts(index, 4), shard)) for index in range(4)]
  assert set.union(*parts) == mine(*shard) and sum(map(len, parts)) == len(mine(*shard))
