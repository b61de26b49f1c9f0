"""A results folder: its plan, its finished samples, and their numbers.

plan.json      settings that determine the results, keys of all samples by benchmark, the shard
results.jsonl  one `Outcome` per line, on disk before the next one starts
"""

import collections
import dataclasses
import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from paravt_jax import files
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.metrics.writer import unwritable

ANSWERED, ERROR = 'answered', 'error'
SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A finished sample: answered and scored, or an error, which is not counted as a wrong answer."""

  key: str  # 'videomme/<id>/k=64'
  benchmark: str
  id: str
  k: int
  status: str  # ANSWERED or ERROR
  reason: str  # short name of an error, for counts
  error: str  # full text of the error
  score: float | None  # in [0, 1]; None after an error
  metrics: Mapping[str, float]  # parts of the score, and further metrics
  official: Mapping[str, float] | None  # by the benchmark's own rule; None where it has none
  answer: str
  gold: str
  # by which scores are broken down; a sample counts under each of several values, 'a; b'
  fields: Mapping[str, str]
  seconds: Mapping[str, float]  # 'wall' and its stages
  tokens: Mapping[str, int]  # 'prompt' (given, images expanded) and 'sampled', sub-agents included
  episode: Mapping[str, Any] | None  # the JSON of report.episodes; None after an error
  # by that harness's rule; None where it has none, and in results of before it was known
  lmms_eval: Mapping[str, float] | None = None
  question: str = ''  # of an error, whose line has no episode that holds it


FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))


def key_of(benchmark: str, sample: str, k: int) -> str:
  """Returns the key of a sample at a frame budget: 'videomme/<id>/k=64'."""
  return f'{benchmark}/{sample}/k={k}'


def digest(value: Any) -> str:
  """Returns 16 hex digits that identify a JSON value."""
  return files.digest_json(value, 8)


class Journal:
  """Appends outcomes to a folder's results.jsonl, a whole line each or nothing.

  Opening removes a torn last line, and errors of an earlier run among the keys `again`: those
  samples run again. `answered` holds the keys that need no run.

  Raises:
    DataError: an existing line breaks the schema.
    ParavtError: the folder cannot be written.
  """

  def __init__(self, folder: Path, again: Container[str] = ()):
    self.path = folder / 'results.jsonl'
    lines, whole = _lines(self.path)
    kept = [
      (outcome, line)
      for outcome, line in lines
      if outcome.status == ANSWERED or outcome.key not in again
    ]
    self.answered = {outcome.key for outcome, _ in kept if outcome.status == ANSWERED}
    try:
      if len(kept) < len(lines) or not whole:
        files.write(self.path, b''.join(line for _, line in kept), sync=False)
      self._file = files.LineWriter(self.path)
    except OSError as error:
      raise unwritable(self.path, 'open', error) from error

  def append(self, outcome: Outcome) -> None:
    """Writes one line. Raises ParavtError when the disk is full; the file then ends with the
    last whole line.
    """
    line = json.dumps(
      {name: getattr(outcome, name) for name in FIELDS}, separators=(',', ':'), allow_nan=False
    )
    try:
      self._file.append(line.encode() + b'\n')
    except OSError as error:
      raise unwritable(self.path, f'write the result of {outcome.key}', error) from error

  def close(self) -> None:
    """Closes the file; further appends fail."""
    self._file.close()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: Path) -> list[Outcome]:
  """Reads the outcomes of a results.jsonl in the order of writing.

  A missing file gives none. A torn last line is left out.

  Raises:
    DataError: a line breaks the schema.
  """
  return [outcome for outcome, _ in _lines(path)[0]]


def _lines(path: Path) -> tuple[list[tuple[Outcome, bytes]], bool]:
  """Returns outcomes with their lines, and whether the last line is whole."""
  found: list[tuple[Outcome, bytes]] = []
  last = 0  # where the last whole line ends
  for number, line, end in files.read_lines(path):
    last = end
    try:
      found.append((Outcome(**json.loads(line)), line))
    except (ValueError, TypeError) as error:
      raise DataError(
        f'{path} line {number}: got {line[:60]!r}, wanted an object with exactly {list(FIELDS)}; '
        'it was written by another version, or by hand: choose another folder'
      ) from error
  return found, not path.is_file() or path.stat().st_size == last


# What results are a function of


@dataclasses.dataclass(frozen=True)
class Plan:
  """The settings and samples of a results folder."""

  common: Mapping[str, Any]  # model, protocol, limits, sampling, code, ..., in named JSON values
  # by name {'parts': what is its own (frames, questions), 'metric': which of the metrics is the
  # score, 'keys': of its samples, in order}
  benchmarks: Mapping[str, Mapping[str, Any]]
  shard: tuple[int, int]  # (number from 1, count); (1, 1) is everything

  def fingerprint(self, benchmark: str) -> str:
    """Names everything that determines the scores of a benchmark."""
    return digest([self.common, self.benchmarks[benchmark]['parts']])


def refuse_other(folder: Path, plan: Plan) -> None:
  """Raises ConfigError, with the settings that differ, when a folder has results of other
  settings or of another shard.
  """
  changed = other_settings(folder, plan)
  if changed:
    raise ConfigError(
      f'results folder {folder} was begun with other settings ({changed}); continue with the same, '
      'or choose another with --config.run.folder=DIR'
    )


def other_settings(folder: Path, plan: Plan) -> str:
  """Returns the first few settings in which a folder's results differ from a plan; '' without
  results or differences.
  """
  changed = differences(read_plan(folder), plan) if _begun(folder) else []
  return ', '.join(changed[:SHOWN]) + (', ...' if len(changed) > SHOWN else '')


def _begun(folder: Path) -> bool:
  """Whether there are results. A start that was refused (no server, no model) leaves a plan
  without results, which does not bind later runs.
  """
  results = folder / 'results.jsonl'
  return (folder / 'plan.json').exists() and results.exists() and results.stat().st_size > 0


def write_plan(folder: Path, plan: Plan) -> Plan:
  """Adds a plan to the folder's plan by an atomic rename, and returns the plan of all
  benchmarks.

  Raises:
    ConfigError: as `refuse_other`.
    DataError: the folder's plan is broken.
    ParavtError: it cannot be written.
  """
  refuse_other(folder, plan)
  if _begun(folder):
    plan = dataclasses.replace(plan, benchmarks={**read_plan(folder).benchmarks, **plan.benchmarks})
  try:
    content = json.dumps(dataclasses.asdict(plan)).encode() + b'\n'
    files.write(folder / 'plan.json', content, sync=False)
  except OSError as error:
    raise unwritable(folder / 'plan.json', 'write', error) from error
  return plan


def read_plan(folder: Path) -> Plan:
  """Reads the plan of a results folder. Raises DataError when there is none, or it is broken."""
  path = folder / 'plan.json'
  try:
    data = json.loads(path.read_text())
    return Plan(data['common'], data['benchmarks'], tuple(data['shard']))
  except FileNotFoundError as error:
    raise DataError(
      f'{folder}: got no plan.json, wanted a results folder of experiments.eval; check the path'
    ) from error
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise DataError(
      f'{path}: got {type(error).__name__} ({error}), wanted a plan of experiments.eval; '
      'move the folder away'
    ) from error


def differences(before: Plan, now: Plan, *, shards: bool = True) -> list[str]:
  """Returns 'agent.max_turns: 3 -> 2' for each setting in which two plans differ, on benchmarks
  that both have.

  shards: compares the shards too.
  """
  rows = _differences(before.common, _as_json(now.common), '')
  for name in before.benchmarks:
    if name in now.benchmarks:
      rows += _differences(
        before.benchmarks[name]['parts'], _as_json(now.benchmarks[name]['parts']), f'{name}.'
      )
  if shards and before.shard != now.shard:
    rows.append('shard: {}/{} -> {}/{}'.format(*before.shard, *now.shard))
  return rows


def _as_json(value: Any) -> Any:
  """Returns a value as JSON gives it back: tuples become lists."""
  return json.loads(json.dumps(value))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
  rows = []
  for name in sorted({*before, *now}):
    old, new = before.get(name), now.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
      rows += _differences(old, new, f'{prefix}{name}.')
    elif old != new:
      rows.append(f'{prefix}{name}: {old} -> {new}')
  return rows


def merge_shards(
  plans: Mapping[Path, Plan], outcomes: Mapping[Path, Sequence[Outcome]]
) -> tuple[Plan, list[Outcome]]:
  """Joins results folders that are the shards of one evaluation: its plan and all its outcomes.

  Raises:
    ConfigError: their settings or benchmarks differ; a shard is missing or occurs twice; or samples
      are missing (a run did not end). The message names everything that is missing.
  """
  (first, plan), *others = plans.items()
  for path, other in others:
    changed = differences(plan, other, shards=False)
    if set(plan.benchmarks) != set(other.benchmarks):
      changed.append(f'benchmarks: {sorted(plan.benchmarks)} -> {sorted(other.benchmarks)}')
    if plan.shard[1] != other.shard[1]:
      changed.append(f'shards: {plan.shard[1]} -> {other.shard[1]}')
    if changed:
      raise ConfigError(
        f'{path} was made with other settings than {first} ({", ".join(changed[:SHOWN])}); '
        'merge shards of one evaluation'
      )
  numbers = collections.Counter(plan.shard[0] for plan in plans.values())
  twice = sorted(number for number, count in numbers.items() if count > 1)
  if twice:
    raise ConfigError(f'shards {twice} of {plan.shard[1]} are given twice; name each folder once')
  faults = [
    f'shard {number}/{plan.shard[1]} is not among the folders'
    for number in range(1, plan.shard[1] + 1)
    if number not in numbers
  ]
  for path, other in plans.items():
    there = {outcome.key for outcome in outcomes[path]}
    missing = [
      key for about in other.benchmarks.values() for key in about['keys'] if key not in there
    ]
    if missing:
      faults.append(
        f'{path} lacks {len(missing)} samples '
        f'({", ".join(missing[:3])}{", ..." if len(missing) > 3 else ""})'
      )
  if faults:
    raise ConfigError(f'not complete: {"; ".join(faults)}; finish those runs and merge again')
  ordered = sorted(plans.values(), key=lambda plan: plan.shard)
  whole = {
    name: {**about, 'keys': [key for plan in ordered for key in plan.benchmarks[name]['keys']]}
    for name, about in plan.benchmarks.items()
  }
  keys = {key for about in whole.values() for key in about['keys']}
  return dataclasses.replace(plan, benchmarks=whole, shard=(1, 1)), [
    o for some in outcomes.values() for o in some if o.key in keys
  ]
