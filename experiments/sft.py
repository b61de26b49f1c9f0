"""Cold-start SFT: `python -m experiments.sft --config=configs/sft.py[:scale] [--config.knob=value]`.

Trains on conversations (loss on assistant turns only), checkpoints, and ends with a Hugging Face
folder that RL starts from. The last line on standard output is that folder.
"""

import collections
import json
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from experiments import binding, crosschecks, runs, sft_data, wiring
from experiments.launch import require, require_recipe, run
from paravt_jax.data import planner
from paravt_jax.errors import DataError
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import checkpoint, sharding, state, step, sums

MODEL = 'hf'  # the exported folder, below the run's


def main(config: ConfigDict) -> None:
  """Runs the recipe in its folder and prints where the model is."""
  print(cold_start(config))


def cold_start(config: ConfigDict) -> pathlib.Path:
  """Trains (or goes on, or finds it done) and returns the Hugging Face folder.

  The folder's name holds a fingerprint of what binds in the recipe, so that another recipe is
  another cold start, and the same on other devices is not.
  """
  check(config)
  base = config.model.folder or str(wiring.tiny_model(config.seed))
  recipe = {**binding.bound(runs.shown(config)), 'steps': config.steps, 'base': base}
  path = pathlib.Path(
    config.run.folder or f'runs/{config.name}_{config.scale}-{runs.fingerprint(recipe)}'
  )
  target = path / MODEL
  done = runs.steps_done(path)
  if target.is_dir() and (
    done is None or done >= config.steps
  ):  # only read, so that several runs may begin from it at once
    runs.refuse_other_settings(path, runs.shown(config))
    if config.data.kind == 'files':  # a world's name tells its content
      refuse_other_data(config, path)
    return target
  folder = runs.RunFolder(path, runs.shown(config))
  runs.announce(config, folder)
  with folder.phase('sft'):
    train(config, folder, base, target)
  return target


def refuse_other_data(config: ConfigDict, folder: pathlib.Path) -> None:
  """Raises DataError when a finished run was trained on other files than there are now."""
  known = (
    json.loads((folder / 'provenance.json').read_text())['sources']
    if (folder / 'provenance.json').exists()
    else None
  )
  now = sft_data.identities(sft_data.sources(config))
  if known is not None and known != now:
    changed = sorted(name for name in {*known, *now} if known.get(name) != now.get(name))
    raise DataError(
      f'{folder} is finished, but {", ".join(changed)} is not what it was trained on: remove '
      'the folder to train anew, or choose another '
      'with --config.run.folder=DIR'
    )


def check(config: ConfigDict) -> None:
  """Refuses knobs out of range, before anything is made."""
  require_recipe(config, 'sources', 'configs/sft.py')
  data = config.data
  require(
    data.manifest,
    'empty where data.train names files',
    not (data.manifest and data.train),
    'data.manifest',
  )
  crosschecks.require_rows(config)
  crosschecks.require_schedule(config, config.steps, 'steps')
  crosschecks.require_world(config)
  crosschecks.require_batches(config)


def train(config: ConfigDict, folder: runs.RunFolder, base: str, target: pathlib.Path) -> None:
  """The loop: batch, step, log, checkpoint; then the export."""
  model_config, params, tok = wiring.load_model(base)
  mesh = wiring.make_mesh(config)
  optimizer = wiring.make_optimizer(config, model_config)
  update = step.make_sft_step(
    model_config, optimizer, mesh, wiring.model_options(config.train, 1.0, ())
  )
  records, counts, skipped = (
    folder.path / 'checkpoints',
    collections.Counter(),
    Skipped(folder.path / 'skipped_rows.txt'),
  )
  rows = sft_data.sources(config)
  runs.write_json(
    folder.path / 'provenance.json',
    {'tool': 'experiments.sft', 'base': base, 'sources': sft_data.identities(rows)},
  )
  learner = state.from_params(model_config, optimizer, mesh, params)
  with wiring.decode_pool(config) as pool:
    data = sft_data.make_batches(
      config,
      rows,
      tok,
      sft_data.frame_source(config, pool),
      base=base,
      shard=sharding.host_rows(mesh),
    )
    start = 0
    checkpoint.sweep(records)
    if checkpoint.latest(records) is not None:
      record = checkpoint.restore(records, state.abstract(model_config, optimizer, mesh))
      learner, start = record.state, record.step
      data.set_state(record.host['data'])
      counts.update(record.host['skipped'])
    left_out = LeftOut(sum(counts[reason] for reason in LeftOut.REASONS), data.get_state()['drawn'])
    writer = MetricsWriter(
      folder.path,
      tensorboard=config.run.tensorboard,
      wandb=wiring.wandb_options(config, folder.path),
      start_step=start,
    )
    try:
      with runs.Interrupts() as interrupts, wiring.bar(config.steps, 'sft', start) as progress:
        for number in range(start, config.steps):
          learner, metrics = one_step(update, learner, data, mesh, counts, skipped)
          done = number + 1
          left_out.tell(counts, data.get_state()['drawn'], skipped.latest)
          writer.write(number, metrics)
          progress.set_postfix_str(
            f'loss {metrics["sft/loss"]:.3f} acc {metrics["sft/accuracy"]:.3f}', refresh=False
          )
          progress.update()
          if interrupts.asked or runs.saves(config.run.checkpoint_every, done, config.steps):
            checkpoint.save(
              records,
              done,
              learner,
              {'data': data.get_state(), 'skipped': dict(counts)},
              keep=config.run.keep,
            )
          interrupts.check()
    finally:
      writer.close()
      data.close()
  weights.save_hf(target, model_config, jax.device_get(learner.params), base)


class LeftOut:
  """Says on the terminal that rows are left out as too long: at the first one, and once their share
  of the draws passes SHARE.
  """

  SHARE = 0.05  # of the rows drawn: beyond it the run trains on other data than the recipe names
  REASONS = (planner.TOO_LONG, planner.TOO_MANY_IMAGES)

  def __init__(self, before: int, drawn: int):
    self._first, self._warned = before > 0, self._is_large(before, drawn)

  def tell(self, counts: Mapping[str, int], drawn: int, examples: Mapping[str, str]) -> None:
    """counts: rows left out so far, by reason; drawn: rows drawn so far; examples: of this batch, a
    line for each reason.
    """
    count = self.count(counts)
    if count and not self._first:
      example = next(
        (examples[reason].split('\t') for reason in self.REASONS if reason in examples),
        ['', 'a row', '', ''],
      )
      self._say(
        f'left out as too long: {example[1]} ({example[-1]}); more are only counted (data/skipped)'
      )
      self._first = True
    if not self._warned and self._is_large(count, drawn):
      self._say(
        f'warning: {count} of {drawn} rows drawn were left out as too long, more than '
        f'{self.SHARE:g} of them; raise '
        'train.row_tokens or train.row_images, or show fewer frames (frames.max_frames)'
      )
      self._warned = True

  def count(self, counts: Mapping[str, int]) -> int:
    """How many of the counts are rows that were too long."""
    return sum(counts.get(reason, 0) for reason in self.REASONS)

  def _is_large(self, count: int, drawn: int) -> bool:
    return drawn >= planner.JUDGED and count > self.SHARE * drawn

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      print(f'\nsft: {text}', file=sys.stderr, flush=True)


class Skipped:
  """skipped_rows.txt: the first row of each reason that was left out, a line each: source, row,
  reason, fault.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    lines = path.read_text().splitlines() if path.exists() else []
    self.latest: Mapping[str, str] = {}  # of the last batch
    self._known = {line.split('\t')[2] for line in lines if line.count('\t') >= 3}

  def add(self, examples: Mapping[str, str]) -> None:
    """Appends a line for each reason that is new."""
    self.latest = examples
    for reason in examples.keys() - self._known:
      with self._path.open('a', encoding='utf-8', errors='replace') as file:
        file.write(' '.join(examples[reason].splitlines()) + '\n')
      self._known.add(reason)


def refuse_other_plans(plan: int) -> None:
  """Raises DataError unless all hosts planned the same batch: rows would be lost or come twice, and
  nobody would know.
  """
  plans = multihost_utils.process_allgather(np.uint32(plan & 0xFFFFFFFF)).reshape(-1).tolist()
  if len(set(plans)) > 1:
    raise DataError(
      f'SFT data: the hosts planned different batches ({plans}), wanted one; they do not see '
      'the same files, or not the same recipe: '
      'see to their disks, then go on from the last checkpoint with the same command'
    )


def one_step(
  update, learner: state.State, data, mesh, counts: collections.Counter, skipped: Skipped
) -> tuple[state.State, dict[str, float]]:
  """One update and what is logged of it; the time waited for data is told apart."""
  begin = time.monotonic()
  batch = next(data)
  refuse_other_plans(batch.plan)
  ready = time.monotonic()
  learner, found = update(learner, step.put_batch(mesh, batch.arrays, batch.used))
  metrics = sums.reduce(found)  # waits for the device
  end = time.monotonic()
  counts.update(batch.dropped)
  skipped.add(batch.examples)
  metrics |= {
    'sft/documents': float(sum(batch.samples.values())),
    'pack/fill': batch.fill,
    'time/data': ready - begin,
    'time/learn': end - ready,
    'time/step': end - begin,
    'learner/tokens_per_second': batch.tokens / (end - begin),
    'data/repeated': float(batch.repeated),
    **{f'data/skipped/reason={reason}': float(count) for reason, count in counts.items()},
  }
  return learner, metrics


if __name__ == '__main__':
  sys.exit(run(main))
