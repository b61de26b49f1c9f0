"""What each step did, in plain words: one line in steps.log, and for RL on stderr without a terminal.

On a terminal the progress bar stands in its place. Alarms are printed in both cases.
"""

import datetime
import pathlib
import sys
from collections.abc import Mapping

from paravt_jax import files
from paravt_jax.metrics import names, writer
from paravt_jax.orchestrator import alarms

FILE = 'steps.log'  # in the run folder; a run that starts again appends to it
# metric and word of the means that a line states
_MEANS = (
  ('reward/total', 'reward'),
  ('accuracy', 'accuracy'),
  ('format_compliance', 'format'),
  ('calls/executed', 'calls'),
  ('sft/loss', 'loss'),
  ('sft/accuracy', 'token accuracy'),
)
_LEAST_S = 0.05  # shorter stages are not stated


class StepLog:
  """Writes the lines of a run."""

  def __init__(self, path: pathlib.Path, steps: int, *, servers_wait: bool, shown: bool = True):
    """Remembers what every line states.

    Args:
      path: of the file.
      steps: of the whole run.
      servers_wait: whether servers have nothing to do while the learner works.
      shown: whether lines go to stderr, too, where that is no terminal.
    """
    self._path, self._steps = path, steps
    self._servers_wait, self._shown = servers_wait, shown

  def write(self, number: int, metrics: Mapping[str, float], found: alarms.Outcome) -> None:
    """Writes a step's line, and those of its alarms.

    Raises:
      ParavtError: the file cannot be written.
    """
    line = describe(number, self._steps, self._servers_wait, metrics)
    stops = [] if found.stop is None else [f'alarm {found.stop.alarm} stops the run']
    now = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
    text = ''.join(f'{now} {one}\n' for one in (line, *found.lines, *stops))
    try:
      with files.LineWriter(self._path) as file:
        file.append(text.encode())
    except OSError as error:
      raise writer.unwritable(self._path, f'write step {number}', error) from error
    if self._shown and not sys.stderr.isatty():
      print(line, file=sys.stderr, flush=True)
    alarms.show(found)


def describe(number: int, steps: int, servers_wait: bool, metrics: Mapping[str, float]) -> str:
  """Returns the line of a step. What its metrics lack is left out.

  'step 7 (8 of 120 done): 8 groups, 64 episodes, 2,345 tokens; reward 1.83, accuracy 0.72, format
  0.98, calls 1.38; 3.7 s (rollout 2.9, learn 0.6); the learner waited 2.9 s for rollouts'

  Args:
    number: of the step, from 0, as in metrics.jsonl.
  """
  counts = (
    ('groups/accepted', 'groups'),
    ('episodes/kept', 'episodes'),
    ('policy/tokens', 'tokens'),
    ('sft/documents', 'documents'),
    ('sft/tokens', 'tokens'),
  )
  parts = [
    ', '.join(f'{metrics[name]:,.0f} {word}' for name, word in counts if name in metrics),
    _losses(metrics),
    ', '.join(f'{word} {metrics[name]:.2f}' for name, word in _MEANS if name in metrics),
    _times(metrics),
    _sent(metrics),
    _waits(servers_wait, metrics),
  ]
  return f'step {number} ({number + 1} of {steps} done): ' + '; '.join(
    part for part in parts if part
  )


def _losses(metrics: Mapping[str, float]) -> str:
  """Returns what was lost or skipped, '' in the usual case that nothing was."""
  groups = sum(value for name, value in metrics.items() if name.startswith('groups/dropped'))
  skipped = metrics.get('optim/skipped', 0.0)
  found = [f'groups lost: {groups:g}' if groups else '']
  found.append(f'updates skipped as not finite: {skipped:g}' if skipped else '')
  return ', '.join(one for one in found if one)


def _times(metrics: Mapping[str, float]) -> str:
  if 'time/step' not in metrics:
    return ''
  stages = [(metrics.get(f'time/{stage}', 0.0), stage) for stage in names.TIME]
  shown = ', '.join(f'{stage} {s:.1f}' for s, stage in sorted(stages, reverse=True) if s > _LEAST_S)
  return f'{metrics["time/step"]:.1f} s' + (f' ({shown})' if shown else '')


def _sent(metrics: Mapping[str, float]) -> str:
  """Returns how large the newest weights are, as a server reads them."""
  size = metrics.get('sync/bytes', 0.0)
  return f'weights sent: {size / 1e6:.1f} MB' if size else ''


def _waits(servers_wait: bool, metrics: Mapping[str, float]) -> str:
  """Returns who waited for whom."""
  rollout, data = (metrics.get(f'time/{stage}', 0.0) for stage in ('rollout', 'data'))
  busy = sum(metrics.get(f'time/{stage}', 0.0) for stage in ('learn', 'publish', 'sync'))
  waits = [f'the learner waited {rollout:.1f} s for rollouts'] if rollout > _LEAST_S else []
  waits += [f'the learner waited {data:.1f} s for data'] if data > _LEAST_S else []
  if servers_wait and busy > _LEAST_S:
    waits.append(f'the servers {busy:.1f} s for the learner')
  return ', '.join(waits)
