"""How a run went, in one paragraph, and its alarms. Every figure is out of the run's own files."""

import itertools
from collections.abc import Mapping, Sequence

from paravt_jax.metrics import names
from paravt_jax.report.headline import gain_text, percent
from paravt_jax.report.run import Evaluation, Run

_ON = 'watch/on/alarm='
_MEANING = {
  'nonfinite': 'updates were not finite',
  'gap': 'log-probs of learner and server parted',
  'no_signal': 'groups had equal rewards, so no advantage',
  'format': 'too few episodes kept the format',
  'calls': 'too few calls per episode',
  'entropy': 'the entropy of the policy was too low',
  'slow_server': 'a server was slow beside the others',
}
_STAGES = 3  # stated of a step's time
_ENDS = 10  # steps of a cold start that its first and last figures are the means of


def paragraph(run: Run) -> str:
  """Returns the paragraph. A sentence whose figures are missing is left out."""
  sentences = (
    _steps(run),
    _accuracy(run),
    _habits(run.before, run.after),
    _losses(run.metrics),
    _alarms(run),
    _time(run.metrics),
  )
  return ' '.join(one for one in sentences if one)


def cold_start(metrics: Sequence[Mapping[str, float | None]], steps: int) -> str:
  """Returns the paragraph of a cold start. A sentence whose figures are missing is left out.

  Args:
    metrics: the records of metrics.jsonl.
    steps: of the whole run.
  """
  done = int(metrics[-1]['step'] or 0) + 1 if metrics else 0
  sentences = (
    f'Cold start: {done} of {steps} steps are done.',
    _from_to(metrics, 'sft/loss', 'Loss', '{:.3f}'),
    _from_to(metrics, 'sft/accuracy', 'Token accuracy', '{:.3f}'),
    _left_out(metrics),
    _stated_alarms(metrics, _lines(metrics, '')),
    _time(metrics),
  )
  return ' '.join(one for one in sentences if one)


def _from_to(metrics: Sequence[Mapping[str, float | None]], name: str, word: str, form: str) -> str:
  values = [value for record in metrics if (value := record.get(name)) is not None]
  if not values:
    return ''
  ends = [sum(part) / len(part) for part in (values[:_ENDS], values[-_ENDS:])]
  first, last = map(form.format, ends)
  return f'{word}: {first} in the first {min(_ENDS, len(values))} steps, {last} in the last.'


def _left_out(metrics: Sequence[Mapping[str, float | None]]) -> str:
  mark = 'data/skipped/reason='
  last = metrics[-1] if metrics else {}
  found = {name.removeprefix(mark): n for name, n in last.items() if name.startswith(mark) and n}
  reasons = ', '.join(f'{reason} {count:g}' for reason, count in found.items())
  return f'Rows left out: {reasons}.' if found else 'No row was left out.'


def alarms(run: Run) -> list[str]:
  """Returns a line for each alarm that was on: what it means and at which steps.

  'entropy (the entropy of the policy was too low) at steps 31–44'. Of the cold start too.
  """
  found = _lines(run.metrics, '')
  return found + _lines(run.sft_metrics, 'cold start, ')


def _lines(metrics: Sequence[Mapping[str, float | None]], where: str) -> list[str]:
  by_alarm: dict[str, list[int]] = {}
  for record in metrics:
    for name, value in record.items():
      if name.startswith(_ON) and value:
        by_alarm.setdefault(names.split(name)[1]['alarm'], []).append(int(record['step'] or 0))
  return [
    f'{where}{name} ({_MEANING.get(name, "its condition held")}) at {_ranges(steps)}'
    for name, steps in by_alarm.items()
  ]


def _ranges(steps: Sequence[int]) -> str:
  """[3, 4, 5, 9] -> 'steps 3-5, 9'."""
  runs = [
    [step for _, step in group]
    for _, group in itertools.groupby(enumerate(steps), lambda pair: pair[1] - pair[0])
  ]
  texts = [f'{one[0]}–{one[-1]}' if len(one) > 1 else str(one[0]) for one in runs]
  return f'step{"s" if len(steps) > 1 else ""} {", ".join(texts)}'


def _steps(run: Run) -> str:
  if not run.metrics:
    return ''
  done = int(run.metrics[-1]['step'] or 0) + 1
  rollout = run.config.get('rollout')
  wanted = rollout.get('steps') if isinstance(rollout, Mapping) else None
  text = f'{done} of {wanted} steps' if wanted else f'{done} steps'
  minutes = run.minutes
  if 'rl' in minutes:
    total = sum(minutes.values())
    text += f' took {minutes["rl"]:.1f} minutes of the {total:.1f} that the whole run took'
  else:
    text += ' are done'
  return f'{text}.'


def _accuracy(run: Run) -> str:
  if run.before is None or run.after is None:
    return 'It was not evaluated both before and after training.'
  sides = [f'{percent(one.accuracy)}{_interval(one)}' for one in (run.before, run.after)]
  return f'Accuracy: {sides[0]} before, {sides[1]} after{gain_text(run)}.'


def _interval(side: Evaluation) -> str:
  if side.interval is None:
    return ''
  return ' [{:.1f}, {:.1f}]'.format(*(100 * bound for bound in side.interval))


def _habits(before: Evaluation | None, after: Evaluation | None) -> str:
  if before is None or after is None or before.calls is None or after.calls is None:
    return ''
  kept = [percent(one.format_compliance) for one in (before, after)]
  return (
    f'Format compliance: {kept[0]} before, {kept[1]} after. Executed calls per episode: '
    f'{before.calls:.2f} before, {after.calls:.2f} after.'
  )


def _losses(metrics: Sequence[Mapping[str, float | None]]) -> str:
  if not metrics:
    return ''
  groups: dict[str, float] = {}
  for record in metrics:
    for name, value in record.items():
      if name.startswith('groups/dropped/') and value:
        reason = names.split(name)[1].get('reason', '')
        groups[reason] = groups.get(reason, 0.0) + value
  reasons = ', '.join(f'{reason} {count:g}' for reason, count in groups.items())
  lost = f'{sum(groups.values()):g} ({reasons})' if groups else 'none'
  counted = {name: _total(metrics, f'server/{name}') for name in ('lost', 'restarts')}
  if not any('server/lost' in record for record in metrics):
    return f'Groups lost: {lost}.'
  if not any(counted.values()):
    return f'Groups lost: {lost}. No server was lost.'
  servers = f'Servers lost: {counted["lost"]:g}, started again: {counted["restarts"]:g}.'
  return f'Groups lost: {lost}. {servers}'


def _total(metrics: Sequence[Mapping[str, float | None]], name: str) -> float:
  """Returns the sum of a counter that starts again from zero whenever the run does."""
  values = [0.0, *(record.get(name) or 0.0 for record in metrics)]
  return sum(now - before if now >= before else now for before, now in itertools.pairwise(values))


def _alarms(run: Run) -> str:
  return _stated_alarms(run.metrics, alarms(run))


def _stated_alarms(metrics: Sequence[Mapping[str, float | None]], lines: Sequence[str]) -> str:
  watched = any(name == 'watch/on' for record in metrics for name in record)
  if lines:
    return f'Alarms: {"; ".join(lines)}.'
  return 'No alarm was raised.' if watched else ''


def _time(metrics: Sequence[Mapping[str, float | None]]) -> str:
  whole = sum(record.get('time/step') or 0.0 for record in metrics)
  if not whole:
    return ''
  spent = {
    stage: sum(record.get(f'time/{stage}') or 0.0 for record in metrics) for stage in names.TIME
  }
  most = sorted(spent, key=lambda stage: -spent[stage])[:_STAGES]
  shares = ', '.join(f'{stage} {percent(spent[stage] / whole)}' for stage in most if spent[stage])
  return f'A step took {whole / len(metrics):.1f} s on average ({shares}).'
