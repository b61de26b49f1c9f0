"""Puts the questions of suites to an agent. Every finished sample is written to disk at once."""

from collections.abc import Mapping, Sequence

from paravt_jax.eval import protocols, results
from paravt_jax.eval.run import EvalOptions, Record, each
from paravt_jax.eval.sample import Sample
from paravt_jax.orchestrator import eval_speed, parts, rollouts
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator import suites as suites_
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.orchestrator.suites import Suite
from paravt_jax.rollout.agent import Agent

Question = tuple[Sample, int]  # a sample, and K


def list_unanswered(
  suites: Sequence[Suite], shard: tuple[int, int], journal: results.Journal
) -> dict[str, list[Question]]:
  """Returns the questions of each suite that have no answer yet. Errors count as unanswered."""
  found: dict[str, list[Question]] = {}
  for suite in suites:
    found[suite.name] = [
      (sample, k)
      for sample, k in suite.questions(shard)
      if results.key_of(suite.name, sample.task.id, k) not in journal.answered
    ]
  return found


async def put(
  agents: Mapping[str, Agent],
  suites: Sequence[Suite],
  todo: Mapping[str, list[Question]],
  journal: results.Journal,
  *,
  protocol: protocols.Protocol,
  options: EvalOptions,
  server: rollouts.Checked,
  interrupts: Interrupts,
  speed: eval_speed.Speed,
  title: str = '{}',
) -> None:
  """Puts the questions, one suite after another.

  Args:
    agents: suite name -> agent.
    todo: suite name -> its questions.
    title: of the progress bar; '{}' becomes the suite's name.

  Raises:
    KeyboardInterrupt: after Ctrl-C; finished samples are in the journal.
    RolloutError: no server is left.
  """
  for suite in suites:
    questions = todo[suite.name]
    samples = {sample.task.id: sample for sample, _ in questions}
    show = hosts_.current().is_first
    with parts.bar(len(questions), title.format(suite.name), show=show) as progress:

      def keep(record: Record, suite=suite, samples=samples, progress=progress) -> None:
        line = suites_.outcome(suite, samples[record.task.id], record, protocol)
        journal.append(line)
        speed.add(line)
        progress.update()

      tasks = ((sample.task, k) for sample, k in questions)
      work = each(agents[suite.name], tasks, lambda _, suite=suite: suite.reward, options, keep)
      await rollouts.unless_stopped(work, _OfAll(interrupts), server)


class _OfAll(Interrupts):
  """Ctrl-C in some process of the run: all end, since none could have the whole result."""

  def __init__(self, own: Interrupts):
    super().__init__()
    self._own, self._hosts = own, hosts_.current()

  def check(self) -> None:
    """Raises KeyboardInterrupt if an end was requested in some process."""
    if self._own.asked:
      self._hosts.tell('interrupt')
    self._own.check()
    if self._hosts.was_told('interrupt'):
      raise KeyboardInterrupt
