"""The results of an evaluation that several hosts share: one results folder, one journal a host.

A video's questions go to one host, so that its frames are decoded once. Process 0 writes the
folder's results.jsonl. Another host writes host<n>/results.jsonl below it, and process 0 takes the
lines over at the end, or when the evaluation goes on after an end, with any number of hosts.
"""

import contextlib
import pathlib
from collections.abc import Container, Iterator

from paravt_jax.eval import results
from paravt_jax.orchestrator.hosts import Hosts


def share(hosts: Hosts, shard: tuple[int, int]) -> tuple[int, int]:
  """Returns this host's part of a shard, as a shard (number from 1, count) of the whole."""
  number, count = shard
  return number + count * hosts.index, count * hosts.count


@contextlib.contextmanager
def opened(hosts: Hosts, folder: pathlib.Path, again: Container[str]) -> Iterator[results.Journal]:
  """Opens this host's journal. Its `answered` are the keys that no host needs to run.

  After a body without an error, process 0 has the results of all hosts in the folder.

  Args:
    folder: the results folder, which process 0 has made.
    again: keys whose earlier errors run again.
  """
  channel = hosts.channel(f'results/{folder}')
  if hosts.is_first:
    with results.Journal(folder, again) as journal:
      _take_over(journal, folder, again)
      channel.exchange(sorted(journal.answered))
      yield journal
      channel.exchange([])  # the others have closed theirs
      _take_over(journal, folder, ())
    return
  answered = channel.exchange([])[0]
  with results.Journal(hosts.folder(folder)) as journal:
    journal.answered = set(answered)
    yield journal
  channel.exchange([])


def _take_over(journal: results.Journal, folder: pathlib.Path, again: Container[str]) -> None:
  """Moves the results of other hosts' journals into the folder's; errors in `again` are dropped."""
  for path in sorted(folder.glob('host*/results.jsonl')):
    for outcome in results.read(path):
      is_answer = outcome.status == results.ANSWERED
      if outcome.key in journal.answered or (not is_answer and outcome.key in again):
        continue
      journal.append(outcome)
      if is_answer:
        journal.answered.add(outcome.key)
    path.unlink()
    with contextlib.suppress(OSError):  # a server's log may be there
      path.parent.rmdir()
