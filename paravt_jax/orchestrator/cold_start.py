"""SFT: trains on conversations, with loss on assistant turns only, and writes records.

It ends with a Hugging Face folder that RL starts from.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from paravt_jax.data import batches, planner
from paravt_jax.errors import DataError
from paravt_jax.metrics import writer as metrics_writer
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.models import sharding
from paravt_jax.orchestrator import (
  alarms,
  binding,
  checks,
  outlook,
  parts,
  run_folder,
  sft_data,
  step_log,
)
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.learner import SFTTrainer
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.report import account

MODEL = 'hf'  # the exported folder, below the run folder


def cold_start(recipe: SFTRecipe) -> pathlib.Path:
  """Trains, resumes, or reuses a finished cold start. Returns its Hugging Face folder.

  The folder's name contains a fingerprint of the recipe's bound settings (see `binding`). Another
  recipe is another cold start. The same recipe on other devices is the same cold start.
  """
  checks.check_sft(recipe)
  hosts = hosts_.current()
  hosts_.open_devices()
  with hosts.first_before('sft/base'):
    base = recipe.model.folder or str(parts.tiny_model(recipe.seed))
  shown = run_folder.to_json(recipe)
  bound = {**binding.binding_settings(shown), 'steps': recipe.steps, 'base': base}
  name = f'{recipe.name}_{recipe.scale}-{run_folder.fingerprint(bound)}'
  path = pathlib.Path(recipe.run.folder or f'runs/{name}')
  target = path / MODEL
  hosts_.check_shared(hosts, path, recipe.hosts.shared_s, 'sft')
  done = run_folder.steps_done(path)
  if target.is_dir() and (done is None or done >= recipe.steps):
    # The finished folder is only read, so several runs may begin from it at once.
    run_folder.refuse_other_settings(path, shown)
    if recipe.data.kind == 'files':  # a world's name identifies its content
      _refuse_other_data(recipe, path)
    return target
  folder = run_folder.RunFolder.opened(path, recipe)
  run_folder.announce(recipe.name, recipe.scale, folder)
  outlook.announce(recipe)
  with folder.phase('sft'):
    train(recipe, folder, pathlib.Path(base), target)
  hosts.barrier('sft/exported')  # process 0 writes it
  return target


def _refuse_other_data(recipe: SFTRecipe, folder: pathlib.Path) -> None:
  """Raises DataError if a finished run was trained on files that differ from the present ones."""
  file = folder / 'provenance.json'
  known = json.loads(file.read_text())['sources'] if file.exists() else None
  now = sft_data.identities(sft_data.sources(recipe))
  if known is not None and known != now:
    changed = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    raise DataError(
      f'{folder} is finished, but {", ".join(changed)} is not what it was trained on: remove '
      'the folder to train again, or choose another with --config.run.folder=DIR'
    )


def train(
  recipe: SFTRecipe, folder: run_folder.RunFolder, base: pathlib.Path, target: pathlib.Path
) -> None:
  """Runs the training loop (batch, step, log, record), then the export."""
  trainer, hosts = SFTTrainer(recipe, base, folder.path), hosts_.current()
  with hosts.first_before('sft/rows'):  # a world is written once
    rows = sft_data.sources(recipe)
  provenance = {
    'tool': 'experiments.sft',
    'base': str(base),
    'sources': sft_data.identities(rows),
  }
  # The digest of every source file, so that a later run can detect other data.
  if hosts.is_first:
    run_folder.write_json(folder.path / 'provenance.json', provenance)
  counts, skipped = collections.Counter(), Skipped(folder.path / 'skipped_rows.txt')
  with trainer, parts.decode_pool(recipe.video) as pool:
    data = sft_data.make_batches(
      recipe,
      rows,
      trainer.tok,
      sft_data.frame_source(recipe, pool),
      base=str(base),
      shard=sharding.host_rows(trainer.mesh),
    )
    # Resume: parameters and optimizer from the record, then the position in the data.
    host = trainer.restore()
    if host is not None:
      data.set_state(host['data'])
      counts.update(host['skipped'])
    try:
      with _metrics_writer(recipe, folder.path, trainer.version) as writer:
        _steps(recipe, trainer, data, writer, counts, skipped)
    finally:
      data.close()
  trainer.export(target)
  if hosts.is_first:
    told = account.cold_start(metrics_writer.read(folder.path / metrics_writer.FILE), recipe.steps)
    print(told, file=sys.stderr)


def _metrics_writer(
  recipe: SFTRecipe, folder: pathlib.Path, begun: int
) -> contextlib.AbstractContextManager[MetricsWriter | None]:
  """Returns the writer of the run's metrics; a context of None in processes that write none."""
  if not hosts_.current().is_first:
    return contextlib.nullcontext()
  return MetricsWriter(
    folder,
    tensorboard=recipe.run.tensorboard,
    wandb=parts.wandb_options(recipe, folder),
    start_step=begun,
  )


def _steps(
  recipe: SFTRecipe,
  trainer: SFTTrainer,
  data: batches.Batches,
  writer: MetricsWriter | None,
  counts: collections.Counter,
  skipped: 'Skipped',
) -> None:
  hosts = hosts_.current()
  channel = hosts.channel('sft/steps', (batches.Batch,))
  before = sum(counts[reason] for reason in LeftOut.REASONS)
  left_out = LeftOut(before, data.get_state()['drawn'])
  watch, lines = alarms.sft_alarms(recipe.watch), None
  if writer is not None:
    watch.replay(metrics_writer.read(writer.path))
    # the progress bar shows the steps, also without a terminal
    path = writer.path.with_name(step_log.FILE)
    lines = step_log.StepLog(path, recipe.steps, servers_wait=False, shown=False)
  bar = parts.bar(recipe.steps, 'sft', trainer.version, hosts.is_first)
  with (
    run_folder.Interrupts() as interrupts,
    bar as progress,
    Ahead(trainer, data, recipe.steps - trainer.version) as ahead,
  ):
    while trainer.version < recipe.steps:
      number = trainer.version
      metrics, where = one_step(trainer, ahead, counts, skipped, channel)
      left_out.tell(counts, where['drawn'], skipped.latest)
      stop = None
      if writer is not None and lines is not None:
        found = watch.step(number, metrics)
        writer.write(number, {**metrics, **found.metrics})
        lines.write(number, metrics, found)
        stop = found.stop
      glance = f'loss {metrics["sft/loss"]:.3f} acc {metrics["sft/accuracy"]:.3f}'
      progress.set_postfix_str(glance, refresh=False)
      progress.update()
      every, done = recipe.run.checkpoint_every, trainer.version
      told = channel.exchange((interrupts.asked, stop))  # process 0's alarm counts for all
      stop, ends = told[0][1], any(asked or halt is not None for asked, halt in told)
      if ends or run_folder.saves(every, done, recipe.steps):
        trainer.save({'data': where, 'skipped': dict(counts)})
      if stop is not None:
        raise alarms.error(stop, [done])
      if ends:
        raise KeyboardInterrupt


@dataclasses.dataclass(frozen=True)
class _ReadyBatch:
  """A batch on the mesh, and the position in the data after it."""

  batch: batches.Batch  # without its arrays
  inputs: dict[str, jax.Array]
  where: dict[str, Any]


class Ahead:
  """Puts the next batch on the mesh while the present step runs.

  `next` raises what the next batch raised. Close it, or use it as a context manager, before the
  data are closed.
  """

  def __init__(self, trainer: SFTTrainer, data: batches.Batches, count: int):
    """Starts on the first of `count` batches."""
    self._trainer, self._data, self._left = trainer, data, count
    self._pool = concurrent.futures.ThreadPoolExecutor(1, 'transfer')
    self._next: concurrent.futures.Future[_ReadyBatch] | None = None
    self._start()

  def __enter__(self) -> 'Ahead':
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def next(self) -> _ReadyBatch:
    """Returns the next batch, and starts on the one after it."""
    if self._next is None:
      raise IndexError('no batch is left')
    ready = self._next.result()
    self._start()
    return ready

  def _start(self) -> None:
    self._next = self._pool.submit(self._fetch) if self._left else None
    self._left -= 1

  def _fetch(self) -> _ReadyBatch:
    batch = next(self._data)
    where = self._data.get_state()
    inputs = self._trainer.put(batch.arrays, batch.used)
    return _ReadyBatch(dataclasses.replace(batch, arrays={}), inputs, where)

  def close(self) -> None:
    """Waits for the batch that is under way."""
    self._pool.shutdown(wait=True, cancel_futures=True)


class LeftOut:
  """Reports on the terminal that rows are left out because they are too long.

  It reports the first such row. It reports again once their share of the drawn rows exceeds SHARE.
  """

  SHARE = 0.05  # of the drawn rows; above it the run trains on other data than the recipe names
  REASONS = (planner.TOO_LONG, planner.TOO_MANY_IMAGES)

  def __init__(self, before: int, drawn: int):
    self._first, self._warned = before > 0, self._is_large(before, drawn)

  def tell(self, counts: Mapping[str, int], drawn: int, examples: Mapping[str, str]) -> None:
    """Reports if there is something new.

    Args:
      counts: rows left out so far, by reason.
      drawn: rows drawn so far.
      examples: rows left out of this batch, one line per reason.
    """
    count = self.count(counts)
    if count and not self._first:
      example = next(
        (examples[reason].split('\t') for reason in self.REASONS if reason in examples),
        ['', 'a row', '', ''],
      )
      self._warn_left_out(
        f'left out as too long: {example[1]} ({example[-1]}); more are only counted (data/skipped)'
      )
      self._first = True
    if not self._warned and self._is_large(count, drawn):
      self._warn_left_out(
        f'warning: {count} of {drawn} rows drawn were left out as too long, more than '
        f'{self.SHARE:g} of them; raise '
        'train.row_tokens or train.row_images, or show fewer frames (frames.max_frames)'
      )
      self._warned = True

  def count(self, counts: Mapping[str, int]) -> int:
    """Returns how many of the counted rows were too long."""
    return sum(counts.get(reason, 0) for reason in self.REASONS)

  def _is_large(self, count: int, drawn: int) -> bool:
    return drawn >= planner.JUDGED and count > self.SHARE * drawn

  def _warn_left_out(self, text: str) -> None:
    if hosts_.current().is_first:
      print(f'\nsft: {text}', file=sys.stderr, flush=True)


class Skipped:
  """Writes skipped_rows.txt: the first row that was left out for each reason.

  One line each: source, row, reason, fault.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    lines = path.read_text().splitlines() if path.exists() else []
    self.latest: Mapping[str, str] = {}  # the rows left out of the last batch
    self._known = {line.split('\t')[2] for line in lines if line.count('\t') >= 3}

  def add(self, examples: Mapping[str, str]) -> None:
    """Appends a line for each reason that is new."""
    self.latest = examples
    if not hosts_.current().is_first:
      return
    for reason in examples.keys() - self._known:
      with self._path.open('a', encoding='utf-8', errors='replace') as file:
        file.write(' '.join(examples[reason].splitlines()) + '\n')
      self._known.add(reason)


def refuse_other_plans(plans: Sequence[int]) -> None:
  """Raises DataError unless all hosts planned the same batch.

  Different plans would lose or duplicate rows silently.
  """
  if len(set(plans)) > 1:
    raise DataError(
      f'SFT data: the hosts planned different batches ({list(plans)}), wanted one; they do not see '
      'the same files, or not the same recipe: '
      'see to their disks, then continue from the last checkpoint with the same command'
    )


def whole_batch(parts: Sequence[batches.Batch]) -> batches.Batch:
  """Returns the batch of all hosts, without arrays, from the parts of each.

  Raises:
    DataError: the hosts planned different batches.
  """
  refuse_other_plans([part.plan for part in parts])
  samples, dropped = collections.Counter(), collections.Counter()
  for part in parts:
    samples.update(part.samples)
    dropped.update(part.dropped)
  return dataclasses.replace(
    parts[0],
    samples=dict(samples),
    tokens=sum(part.tokens for part in parts),
    targets=sum(part.targets for part in parts),
    dropped=dict(dropped),
    # of one reason the first host's example counts, as one host lists its first
    examples=dict(collections.ChainMap(*(part.examples for part in parts))),
    fill=sum(part.fill for part in parts) / len(parts),
    repeated=sum(part.repeated for part in parts),
  )


def one_step(
  trainer: SFTTrainer,
  ahead: Ahead,
  counts: collections.Counter,
  skipped: Skipped,
  channel: hosts_.Channel,
) -> tuple[dict[str, float], dict[str, Any]]:
  """Makes one update. Returns its metrics, with the time spent waiting for data, and the position
  in the data after it.
  """
  begin = time.monotonic()
  ready = ahead.next()
  batch = whole_batch(channel.exchange(ready.batch))
  waited = time.monotonic()
  metrics = trainer.train_on(ready.inputs)
  end = time.monotonic()
  counts.update(batch.dropped)
  skipped.add(batch.examples)
  return metrics | {
    'sft/documents': float(sum(batch.samples.values())),
    'pack/fill': batch.fill,
    'time/data': waited - begin,
    'time/learn': end - waited,
    'time/step': end - begin,
    'learner/tokens_per_second': batch.tokens / (end - begin),
    'data/repeated': float(batch.repeated),
    **{f'data/skipped/reason={reason}': float(count) for reason, count in counts.items()},
  }, ready.where
