"""Alarms: what a run watches in its own metrics, and when it warns or stops.

Each alarm has a condition on the metrics of a step. The alarm is on once the condition has held for
`steps` steps in a row, and off at the first step where it does not hold. A step without the metrics
of a condition says nothing: it neither continues the row nor breaks it. With action 'warn' an alarm
prints one line when it goes on and one when it goes off. With 'stop' it ends the run.

A run that starts again reads its rows from metrics.jsonl and continues them, so that a run that is
often interrupted has its alarms too. After a stop the row begins anew: the run is stopped again only
where the condition holds for `steps` new steps.

Process 0 has the metrics of all hosts, so it alone decides and tells the others.
"""

import dataclasses
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated

from tqdm import tqdm

from paravt_jax.errors import AlarmError, ParavtError, SyncError
from paravt_jax.metrics import names
from paravt_jax.options import COUNT, PART, POSITIVE, Options, one_of

ACTIONS = ('off', 'warn', 'stop')
SPEED = 'server/speed'


@dataclasses.dataclass(frozen=True)
class AlarmOptions(Options):
  """What every alarm has."""

  # warn: a line on the terminal when it goes on or off; stop: it ends the run
  action: Annotated[str, one_of(*ACTIONS)]
  steps: Annotated[int, COUNT]  # steps in a row in which its condition holds


@dataclasses.dataclass(frozen=True)
class NonfiniteOptions(AlarmOptions):
  """Alarm: an update was skipped as not finite, or the loss or the gradient is not finite."""


@dataclasses.dataclass(frozen=True)
class GapOptions(AlarmOptions):
  """Alarm: log-probs of learner and server differ more than `rollout.gap_limit` and
  `rollout.gap_ratio` allow.
  """


@dataclasses.dataclass(frozen=True)
class NoSignalOptions(AlarmOptions):
  """Alarm: the rewards of too many groups are all equal, so they have no advantage."""

  share: Annotated[float, PART]  # of the groups, from which the condition holds; 1: all of them


@dataclasses.dataclass(frozen=True)
class FormatOptions(AlarmOptions):
  """Alarm: too few episodes keep the format."""

  share: Annotated[float, PART]  # of the episodes, below which the condition holds


@dataclasses.dataclass(frozen=True)
class CallsOptions(AlarmOptions):
  """Alarm: too few calls."""

  floor: Annotated[float, POSITIVE]  # executed calls per episode, below which the condition holds


@dataclasses.dataclass(frozen=True)
class EntropyOptions(AlarmOptions):
  """Alarm: the policy has collapsed."""

  floor: Annotated[float, POSITIVE]  # mean entropy in nats, below which the condition holds


@dataclasses.dataclass(frozen=True)
class SlowServerOptions(AlarmOptions):
  """Alarm: one rollout server is slow beside the others of the run (`server.watch` has the knobs
  for lost ones).
  """

  # of the median of the others' tokens per second of a request, below which the condition holds
  share: Annotated[float, PART]


@dataclasses.dataclass(frozen=True)
class SFTWatchOptions(Options):
  """Alarms on the metrics of SFT."""

  nonfinite: NonfiniteOptions

  @classmethod
  def published(cls) -> 'SFTWatchOptions':
    """Returns a warning after three such steps: one or two may be a bad batch."""
    return cls(nonfinite=NonfiniteOptions(action='warn', steps=3))


@dataclasses.dataclass(frozen=True)
class WatchOptions(SFTWatchOptions):
  """Alarms on the metrics of a run (`server.watch` is about server processes)."""

  gap: GapOptions
  no_signal: NoSignalOptions
  format: FormatOptions
  calls: CallsOptions
  entropy: EntropyOptions
  slow_server: SlowServerOptions

  @classmethod
  def published(cls) -> 'WatchOptions':
    """Returns warnings, except for the gap: tokens of other weights must not train a policy.

    The floors lie far below what a run of `make rl` has at its worst step: they tell of a collapse.
    """
    return cls(
      nonfinite=NonfiniteOptions(action='warn', steps=3),
      gap=GapOptions(action='stop', steps=1),
      # the tiny run has such steps, alone, once its questions are mostly solved
      no_signal=NoSignalOptions(action='warn', steps=5, share=1.0),
      # the tiny run: at least 0.91
      format=FormatOptions(action='warn', steps=5, share=0.5),
      # the tiny run: at least 1.0; below 0.1 nine of ten episodes look nowhere
      calls=CallsOptions(action='warn', steps=5, floor=0.1),
      # the tiny run: at least 0.12 nats
      entropy=EntropyOptions(action='warn', steps=5, floor=0.02),
      # requests differ in length, so that servers of one kind differ too
      slow_server=SlowServerOptions(action='warn', steps=5, share=0.5),
    )


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a step says of a condition."""

  holds: bool
  text: str  # what was got and wanted
  about: str = ''  # what it is about; a row is of one thing


Condition = Callable[[Mapping[str, float]], Finding | None]


@dataclasses.dataclass(frozen=True)
class Stop:
  """That a run must end, and why."""

  alarm: str
  since: int  # the first step of the row
  text: str  # where, what was got, what was wanted

  @property
  def is_sound(self) -> bool:
    """Returns whether the weights are as good as those from before the row.

    An update that is not finite is skipped, groups without signal move nothing, and a slow server
    only costs time.
    """
    return self.alarm in ('nonfinite', 'no_signal', 'slow_server')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What the alarms say of a step."""

  metrics: dict[str, float]  # watch/on
  lines: tuple[str, ...]  # for the terminal
  stop: Stop | None


class Alarms:
  """The state of all alarms of a run. It prints nothing and reads no clock."""

  def __init__(self, options: SFTWatchOptions, conditions: Mapping[str, Condition]):
    """Begins with all alarms off.

    Args:
      conditions: by alarm, as the fields of `options`.
    """
    self._options: dict[str, AlarmOptions] = {name: getattr(options, name) for name in conditions}
    self._conditions = {
      name: one for name, one in conditions.items() if self._options[name].action != 'off'
    }
    self._rows: dict[str, tuple[int, str, int]] = {}  # alarm: steps, what it is about, first step

  def step(self, number: int, metrics: Mapping[str, float]) -> Outcome:
    """Looks at the metrics of a step."""
    on: dict[str, float] = {}
    lines: list[str] = []
    stops: list[Stop] = []
    for name, condition in self._conditions.items():
      finding = condition(metrics)
      is_on = self._look(name, self._options[name], number, finding, lines, stops)
      on[f'watch/on/alarm={name}'] = float(is_on)
    stop = stops[0] if stops else None
    return Outcome({'watch/on': sum(on.values()), **on}, tuple(lines), stop)

  def _look(
    self,
    name: str,
    options: AlarmOptions,
    number: int,
    finding: Finding | None,
    lines: list[str],
    stops: list[Stop],
  ) -> bool:
    """Returns whether an alarm is on after a step. Adds what changed to `lines` and `stops`."""
    was, _, first = self._rows.get(name, (0, '', number))
    if finding is not None:
      self._note(name, number, finding)
    now, _, since = self._rows.get(name, (0, '', number))
    was_on, is_on = was >= options.steps, now >= options.steps
    if was_on and (not is_on or since != first):
      lines.append(f'step {number}: alarm {name} is off; it held since step {first}')
    if finding is None or not is_on or (was_on and since == first):
      return is_on
    text = f'step {number}: {finding.text}{_row(now, since)}'
    if options.action == 'stop':
      stops.append(Stop(name, since, text))
      del self._rows[name]
    else:
      lines.append(f'alarm {name}: {text}')
    return True

  def replay(self, records: Iterable[Mapping[str, float | None]]) -> None:
    """Takes up the rows of a run that starts again.

    Args:
      records: of metrics.jsonl, up to the step that the run continues from.
    """
    for record in records:
      known = {name: math.nan if value is None else value for name, value in record.items()}
      self.step(int(known['step']), known)

  def _note(self, name: str, number: int, finding: Finding) -> None:
    """Continues, begins or ends the row of an alarm."""
    count, about, since = self._rows.pop(name, (0, finding.about, number))
    if finding.holds and about == finding.about:
      self._rows[name] = (count + 1, about, since)
    elif finding.holds:
      self._rows[name] = (1, finding.about, number)


def show(found: Outcome) -> None:
  """Prints the lines of alarms on stderr, beside a progress bar."""
  for line in found.lines:
    tqdm.write(line, file=sys.stderr)
  sys.stderr.flush()


def _row(count: int, since: int) -> str:
  return f', {count} steps in a row since step {since}' if count > 1 else ''


def rl_alarms(options: WatchOptions, gap_limit: float, gap_ratio: float) -> Alarms:
  """Returns the alarms of RL. `gap_limit` and `gap_ratio` are knobs of rollout."""
  return Alarms(
    options,
    {
      'nonfinite': _nonfinite('policy/loss'),
      'gap': _gap(gap_limit, gap_ratio),
      'no_signal': _no_signal(options.no_signal.share),
      'format': _floor('format_compliance', options.format.share, 'format.share'),
      'calls': _floor('calls/executed', options.calls.floor, 'calls.floor'),
      'entropy': _floor('policy/entropy', options.entropy.floor, 'entropy.floor'),
      'slow_server': _slow_server(options.slow_server.share),
    },
  )


def sft_alarms(options: SFTWatchOptions) -> Alarms:
  """Returns the alarms of SFT."""
  return Alarms(options, {'nonfinite': _nonfinite('sft/loss')})


def _nonfinite(loss: str) -> Condition:
  def find(metrics: Mapping[str, float]) -> Finding:
    skipped = metrics.get('optim/skipped', 0.0)
    bad = [name for name in (loss, 'optim/grad_norm') if not math.isfinite(metrics.get(name, 0.0))]
    text = f'{skipped:g} updates were skipped as not finite, wanted 0 (optim/skipped)'
    if bad and not skipped:
      text = f'{bad[0]} is {metrics[bad[0]]}, wanted a finite number'
    return Finding(skipped > 0 or bool(bad), text)

  return find


def _gap(limit: float, ratio: float) -> Condition:
  """Returns the condition that learner and server disagree on tokens of the current version."""

  def find(metrics: Mapping[str, float]) -> Finding:
    # mean nats that rounding costs the learner itself on sampled tokens, from the canary of the
    # version that sampled them; 0 in float32
    rounding = metrics.get('policy/rounding', 0.0)
    gap = metrics.get('policy/gap_current_mean', 0.0)  # 0 without a token of the current version
    allowed = limit + ratio * rounding
    text = (
      f'mean |log-prob(learner) - log-prob(server)| is {gap:.2e}, wanted at most {allowed:.2e}, '
      f'that is rollout.gap_limit={limit:g} and rollout.gap_ratio={ratio:g} times {rounding:.2e}, '
      'what rounding costs the learner itself on its canary'
    )
    return Finding(not gap <= allowed, text)  # nan also counts as disagreement

  return find


def _no_signal(share: float) -> Condition:
  def find(metrics: Mapping[str, float]) -> Finding | None:
    found = metrics.get('groups/no_signal')
    if found is None:
      return None
    text = f'groups/no_signal is {found:g}, wanted less than {share:g} (watch.no_signal.share)'
    return Finding(not found < share, text)

  return find


def _floor(metric: str, floor: float, knob: str) -> Condition:
  def find(metrics: Mapping[str, float]) -> Finding | None:
    found = metrics.get(metric)
    if found is None:
      return None
    return Finding(
      not found >= floor, f'{metric} is {found:.3g}, wanted at least {floor:g} (watch.{knob})'
    )

  return find


def _slow_server(share: float) -> Condition:
  """Returns the condition that one server is slow. It needs two servers that answered enough."""

  def find(metrics: Mapping[str, float]) -> Finding | None:
    speeds = {
      names.split(name)[1]['server']: value
      for name, value in metrics.items()
      if name.startswith(f'{SPEED}/server=')
    }
    if len(speeds) < 2:
      return None
    slowest = min(speeds, key=lambda one: (speeds[one], one))
    usual = statistics.median(value for one, value in speeds.items() if one != slowest)
    text = (
      f'server {slowest} samples {speeds[slowest]:.3g} tokens/s in a request, the others '
      f'{usual:.3g}, wanted at least {share:g} of that (watch.slow_server.share)'
    )
    return Finding(speeds[slowest] < share * usual, text, slowest)

  return find


# What may be the matter, and what to do about it.
_ADVICE = {
  'nonfinite': 'lower optimizer.learning_rate or optimizer.clip_norm; the weights are those from '
  'before the skipped updates',
  'gap': 'they do not run the same weights, images or temperature, or the server rounds more (its '
  'dtype or kernels; then raise rollout.gap_ratio); see metrics.jsonl (policy/gap_*) and '
  'server*.log',
  'no_signal': 'the questions are all solved or all hopeless: choose others (data.train), or raise '
  'rollout.group_size or sampling.temperature',
  'format': 'the policy forgets the format: lower optimizer.learning_rate, or raise '
  'reward.format_weight',
  'calls': 'the policy has stopped to crop: lower optimizer.learning_rate, or choose smaller '
  'frames.budgets',
  'entropy': 'the policy has collapsed: lower optimizer.learning_rate, or raise rl.beta',
  'slow_server': 'see its log and what else its device does; a server that is ended is started '
  'again',
}


def saves_on(stop: Stop, records: Sequence[int], keep: int) -> bool:
  """Returns whether the present state is recorded before the run ends.

  It is not where the step trained on wrong tokens (gap), nor where one more record would remove the
  newest from before the row.

  Args:
    records: steps with a record, in any order.
    keep: records that stay on disk.
  """
  if stop.alarm == 'gap' or stop.is_sound:
    return stop.is_sound
  newer = sum(one >= stop.since for one in records)  # the policy of step n is that of record n
  return newer == len(records) or newer + 2 <= keep


def error(stop: Stop, records: Sequence[int]) -> ParavtError:
  """Returns the one line that ends the run: where, got, wanted, and the way out.

  Args:
    records: steps with a record, that of the end included.
  """
  off = f'--config.watch.{stop.alarm}.action=warn goes on regardless'
  good = max((one for one in records if one < stop.since), default=None)
  if stop.alarm == 'gap':
    return SyncError(f'{stop.text}: {_ADVICE["gap"]}')
  if stop.is_sound:
    back = 'the same command continues from here'
  elif good is None:
    back = f'no record is left from before step {stop.since}: start again in another run.folder'
  elif all(one <= good for one in records):
    back = f'the same command continues from checkpoints/{good:08d}, from before the first of them'
  else:
    back = (
      f'to go back before step {stop.since}, remove the folders after checkpoints/{good:08d}, then '
      'run the same command'
    )
  return AlarmError(f'{stop.text}: {_ADVICE[stop.alarm]}; {back}; {off}')
