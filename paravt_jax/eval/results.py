"""Reads and writes a results folder: its plan and its finished samples.

plan.json      settings that determine the results, keys of all samples by benchmark, the shard
results.jsonl  one `Outcome` per line; each line is on disk before the next line is written
"""

import collections
import dataclasses
import functools
import json
import types
import typing
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
  """The result of one sample: an answer with its score, or an error.

  An error is not counted as a wrong answer.
  """

  key: str  # 'videomme/<id>/k=64'
  benchmark: str
  id: str
  k: int
  status: str  # ANSWERED or ERROR
  reason: str  # short name of the error, used for counts
  error: str  # full text of the error
  score: float | None  # in [0, 1]; None after an error
  metrics: Mapping[str, float]  # parts of the score, and other metrics
  official: (
    Mapping[str, float] | None
  )  # metrics by the benchmark's published rule, None without one
  answer: str
  gold: str
  # fields for score breakdowns. A sample with 'a; b' counts under both values
  fields: Mapping[str, str]
  seconds: Mapping[str, float]  # 'wall', and the seconds of each stage
  tokens: Mapping[str, int]  # 'prompt' (with expanded images) and 'sampled', including sub-agents
  episode: Mapping[str, Any] | None  # the JSON of report.episodes; None after an error
  # metrics by the rule of lmms-eval. None without one, and in results older than this field
  lmms_eval: Mapping[str, float] | None = None
  question: str = ''  # question of an error, because its line has no episode


FIELDS = tuple(field.name for field in dataclasses.fields(Outcome))


@functools.cache
def _types_of(kind: type) -> Mapping[str, tuple[type, ...]]:
  """Returns the types that each field of a dataclass may have, without those of members."""
  found = {}
  for name, hint in typing.get_type_hints(kind).items():
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found[name] = tuple(typing.get_origin(one) or one for one in kinds)
  return found


def _check_types(record: Any) -> None:
  """Checks the types of a dataclass's fields, not those of their members.

  Raises:
    TypeError: a field has another type. The message names the first.
  """
  for name, wanted in _types_of(type(record)).items():
    value = getattr(record, name)
    is_number = float in wanted and type(value) is int  # JSON may write 1.0 as 1
    if isinstance(value, bool) or not (is_number or isinstance(value, wanted)):
      names = ' or '.join('null' if kind is type(None) else kind.__name__ for kind in wanted)
      raise TypeError(f'{name} is {value!r:.40}, wanted {names}')


def key_of(benchmark: str, sample: str, k: int) -> str:
  """Returns the key of a sample at frame budget `k`, such as 'videomme/<id>/k=64'."""
  return f'{benchmark}/{sample}/k={k}'


def digest(value: Any) -> str:
  """Returns 16 hex digits that identify a JSON value."""
  return files.digest_json(value, 8)


class Journal:
  """Appends outcomes to a folder's results.jsonl. Each append writes a complete line or nothing.

  Opening removes an incomplete last line. It also removes earlier errors of the keys in `again`, so
  that these samples run again. `answered` is the set of keys that need no run.

  Raises:
    DataError: an existing line does not match the schema.
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
    """Writes one line.

    Raises:
      ParavtError: the disk is full. The file then ends with the last complete line.
    """
    line = json.dumps(
      {name: getattr(outcome, name) for name in FIELDS}, separators=(',', ':'), allow_nan=False
    )
    try:
      self._file.append(line.encode() + b'\n')
    except OSError as error:
      raise unwritable(self.path, f'write the result of {outcome.key}', error) from error

  def close(self) -> None:
    """Closes the file. Later appends fail."""
    self._file.close()

  def __enter__(self) -> 'Journal':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def read(path: Path) -> list[Outcome]:
  """Returns the outcomes of a results.jsonl in file order, [] for a missing file.

  An incomplete last line is ignored.

  Raises:
    DataError: a line does not match the schema.
  """
  return [outcome for outcome, _ in _lines(path)[0]]


def _lines(path: Path) -> tuple[list[tuple[Outcome, bytes]], bool]:
  """Returns outcomes with their lines, and whether the last line is complete."""
  found: list[tuple[Outcome, bytes]] = []
  last = 0  # end of the last complete line, in bytes
  for number, line, end in files.read_lines(path):
    last = end
    try:
      outcome = Outcome(**json.loads(line))
      _check_types(outcome)
      found.append((outcome, line))
    except (ValueError, TypeError) as error:
      raise DataError(
        f'{path} line {number}: got {line[:60]!r} ({error}), wanted an object with exactly '
        f'{list(FIELDS)}; it was written by another version, or by hand: choose another folder'
      ) from error
  return found, not path.is_file() or path.stat().st_size == last


# Plans: the settings that determine results


@dataclasses.dataclass(frozen=True)
class Plan:
  """The settings and samples of a results folder."""

  common: Mapping[str, Any]  # named JSON values: model, protocol, limits, sampling, code, ...
  # {name: {'parts': settings of this benchmark (frames, questions), 'metric': name of its score,
  # 'keys': keys of its samples, in order}}
  benchmarks: Mapping[str, Mapping[str, Any]]
  shard: tuple[int, int]  # (number from 1, count); (1, 1) is the whole evaluation

  def fingerprint(self, benchmark: str) -> str:
    """Returns a digest of all settings that determine a benchmark's scores."""
    return digest([self.common, self.benchmarks[benchmark]['parts']])


def refuse_other(folder: Path, plan: Plan) -> None:
  """Checks that a folder has no results of other settings or of another shard.

  Raises:
    ConfigError: it has such results. The message lists the settings that differ.
  """
  changed = other_settings(folder, plan)
  if changed:
    raise ConfigError(
      f'results folder {folder} was begun with other settings ({changed}); continue with the same, '
      'or choose another with --config.run.folder=DIR'
    )


def other_settings(folder: Path, plan: Plan) -> str:
  """Returns the first few settings that differ between a folder's results and a plan.

  The result is '' without results or differences.
  """
  changed = differences(read_plan(folder), plan) if _begun(folder) else []
  return ', '.join(changed[:SHOWN]) + (', ...' if len(changed) > SHOWN else '')


def _begun(folder: Path) -> bool:
  """Whether the folder has results.

  A failed start (no server, no model) leaves a plan without results. Later runs may replace it.
  """
  results = folder / 'results.jsonl'
  return (folder / 'plan.json').exists() and results.exists() and results.stat().st_size > 0


def write_plan(folder: Path, plan: Plan) -> Plan:
  """Merges a plan into the folder's plan and returns the plan of all benchmarks.

  An atomic rename replaces the file.

  Raises:
    ConfigError: as `refuse_other`.
    DataError: the folder's plan is broken.
    ParavtError: the plan cannot be written.
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
  """Returns the plan of a results folder. Raises DataError if it is missing or broken."""
  path = folder / 'plan.json'
  try:
    data = json.loads(path.read_text())
    plan = Plan(data['common'], data['benchmarks'], tuple(data['shard']))
    _check_plan(plan)
    return plan
  except (FileNotFoundError, NotADirectoryError) as error:
    raise DataError(
      f'{folder}: got no plan.json, wanted a results folder of experiments.eval; check the path'
    ) from error
  except (ValueError, KeyError, TypeError, OSError) as error:
    raise DataError(
      f'{path}: got {type(error).__name__} ({error}), wanted a plan of experiments.eval; '
      'move the folder away'
    ) from error


def _check_plan(plan: Plan) -> None:
  """Raises TypeError if a plan that was read has values of other types."""
  _check_types(plan)
  for name, about in plan.benchmarks.items():
    kinds = {'parts': dict, 'metric': str, 'keys': list}
    wrong = [key for key, kind in kinds.items() if not isinstance(about[key], kind)]
    if wrong or not all(isinstance(key, str) for key in about['keys']):
      raise TypeError(f'benchmarks.{name}: {", ".join(wrong) or "a key"} is of another type')
  if len(plan.shard) != 2 or not all(type(number) is int for number in plan.shard):
    raise TypeError(f'shard is {list(plan.shard)}, wanted two integers')


def differences(before: Plan, now: Plan, *, shards: bool = True) -> list[str]:
  """Returns a line such as 'agent.max_turns: 3 -> 2' for each setting that differs.

  Only benchmarks in both plans are compared.

  Args:
    shards: whether to compare the shards too.
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
  """Returns a value after a round trip through JSON, so that tuples become lists."""
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
  """Returns the plan and all outcomes of an evaluation from the results folders of its shards.

  Raises:
    ConfigError: settings or benchmarks differ. A shard is missing or occurs twice. Samples are
      missing, because a run did not end. The message names all missing parts.
  """
  (first, plan), *others = plans.items()
  # Check that all shards have the same settings.
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
  # Check that each shard occurs once and is complete.
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
  # Join the keys in shard order.
  ordered = sorted(plans.values(), key=lambda plan: plan.shard)
  whole = {
    name: {**about, 'keys': [key for plan in ordered for key in plan.benchmarks[name]['keys']]}
    for name, about in plan.benchmarks.items()
  }
  keys = {key for about in whole.values() for key in about['keys']}
  return dataclasses.replace(plan, benchmarks=whole, shard=(1, 1)), [
    o for some in outcomes.values() for o in some if o.key in keys
  ]
