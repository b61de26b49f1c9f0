"""Cold-start SFT: `python -m experiments.sft --config=configs/sft.py[:scale] [--config.knob=value]`.

Trains on conversations (loss on assistant turns only), checkpoints, and ends with a Hugging Face folder that RL starts from.
The last line on standard output is that folder.
"""

import collections
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
from ml_collections import ConfigDict

from experiments import runs, wiring
from experiments.launch import build, require, require_recipe, run
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, fields, manifest, provenance, sft, table
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import checkpoint, sharding, state, step, sums
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore

MODEL = 'hf'  # the exported folder, below the run's


def main(config: ConfigDict) -> None:
  """Runs the recipe in its folder and prints where the model is."""
  print(cold_start(config))


def cold_start(config: ConfigDict) -> pathlib.Path:
  """Trains (or goes on, or finds it done) and returns the Hugging Face folder.

  The folder's name holds a fingerprint of the recipe, so that another recipe is another cold start.
  """
  check(config)
  base = config.model.folder or str(wiring.tiny_model(config.seed))
  recipe = {**{key: value for key, value in config.to_dict().items() if key != 'run'}, 'base': base}
  folder = runs.RunFolder.named(
    config, folder=config.run.folder, default=f'{config.name}_{config.scale}-{runs.fingerprint(recipe)}'
  )
  target = folder.path / MODEL
  if not target.is_dir():
    runs.announce(config, folder)
    with folder.phase('sft'):
      train(config, folder, base, target)
  return target


def check(config: ConfigDict) -> None:
  """Refuses knobs out of range, before anything is made."""
  require_recipe(config, 'sources', 'configs/sft.py')
  require(config.steps, 'at least 1', config.steps >= 1, 'steps')
  wiring.require_rows(config)
  data = config.data
  require(data.kind, "'world' or 'files'", data.kind in ('world', 'files'), 'data.kind')
  require(data.max_bad_share, 'between 0 and 1', 0 <= data.max_bad_share <= 1, 'data.max_bad_share')
  require(data.manifest, 'empty where data.train names files', not (data.manifest and data.train), 'data.manifest')
  require(config.video.cache_gb, '0 (no bound) or more', config.video.cache_gb >= 0, 'video.cache_gb')
  for knob in ('lookahead', 'prefetch'):
    require(config.batches[knob], 'at least 1', config.batches[knob] >= 1, f'batches.{knob}')
  require(config.optimizer.learning_rate, 'above 0', config.optimizer.learning_rate > 0, 'optimizer.learning_rate')


def sources(config: ConfigDict) -> list[batches.Source]:
  """The sources of the recipe: its world, its manifest's, or a source per file; their rows are parsed when they are drawn."""
  section = config.data
  if section.kind == 'world':
    world, root = wiring.make_world(config)
    entries = manifest.of_files(world.sft)
  else:
    root = pathlib.Path(section.media_root)
    entries = (
      manifest.read(section.manifest) if section.manifest else manifest.of_files(wiring.existing(section.train, 'data.train'))
    )
  options = fields.RowOptions(skip_bad_rows=section.skip_bad_rows, require_media=False)
  tables = {entry.name: table.Table(entry.files, root, options, section.cache_folder or None) for entry in entries}
  chosen = {name: tuple(value) for name, value in config.sources.items()}
  unknown = sorted(set(chosen) - set(tables))
  if unknown and section.kind == 'files':  # the tiny recipe names the world's, which is no fault
    print(f'sources: no data is named {", ".join(unknown)} (there is {", ".join(tables)}); left out', file=sys.stderr)
  found = manifest.weighted(entries, chosen, {name: len(rows) for name, rows in tables.items()})
  return [
    batches.Source(entry.name, tables[entry.name], weight, entry.first, entry.last, tables[entry.name].identity)
    for entry, weight in found
  ]


def frame_options(config: ConfigDict) -> sft.FrameOptions:
  """How frames are sampled."""
  return build(
    sft.FrameOptions, config.frames, 'frames', min_pixels=config.video.min_pixels, max_pixels=config.video.max_pixels
  )


def batch_options(config: ConfigDict) -> batches.BatchOptions:
  """The sizes of a batch, on all hosts, and how it is made."""
  section = config.train
  return build(
    batches.BatchOptions,
    config.batches,
    'batches',
    micro_batches=section.micro_batches,
    rows=section.rows,
    row_tokens=section.row_tokens,
    row_images=section.row_images,
    image_patches=section.image_patches,
    row_stills=section.row_stills,
    still_patches=section.still_patches,
    workers=config.video.workers,
    skip_bad_rows=config.data.skip_bad_rows,
    max_bad_share=config.data.max_bad_share,
  )


def frame_source(config: ConfigDict, pool: DecodePool) -> sft.Frames:
  """Where frames come from: the synthetic videos from memory, others from the store of frames, decoded once."""
  video = config.video
  if config.data.kind == 'world':
    return batches.FrameBank(pool, 1.0, video.min_pixels, video.max_pixels)
  return FrameStore(video.cache_folder or None, pool, video.cache_mb << 20, video.cache_gb << 30 or None)


def make_batches(
  config: ConfigDict,
  tok: ChatTokenizer,
  frames: sft.Frames,
  *,
  base: str = '',
  shard: tuple[int, int] = (0, 1),
) -> batches.Batches:
  """The endless iterator of packed batches. base: the folder of the tokenizer, for lengths to be kept between runs."""
  cache = None
  if config.data.cache_folder and base:
    cache = batches.Cache(pathlib.Path(config.data.cache_folder), provenance.digest(pathlib.Path(base) / 'tokenizer.json'))
  return batches.batches(
    sources(config), tok, frames, frame_options(config), batch_options(config), config.seed, shard=shard, cache=cache
  )


def train(config: ConfigDict, folder: runs.RunFolder, base: str, target: pathlib.Path) -> None:
  """The loop: batch, step, log, checkpoint; then the export."""
  model_config, params, tok = wiring.load_model(base)
  mesh = wiring.make_mesh(config)
  optimizer = wiring.make_optimizer(config, model_config)
  update = step.make_sft_step(model_config, optimizer, mesh, wiring.model_options(config.train, 1.0, ()))
  records, counts, skipped = folder.path / 'checkpoints', collections.Counter(), Skipped(folder.path / 'skipped_rows.txt')
  learner = state.from_params(model_config, optimizer, mesh, params)
  with wiring.decode_pool(config) as pool:
    data = make_batches(config, tok, frame_source(config, pool), base=base, shard=sharding.host_rows(mesh))
    start = 0
    checkpoint.sweep(records)
    if checkpoint.latest(records) is not None:
      record = checkpoint.restore(records, state.abstract(model_config, optimizer, mesh))
      learner, start = record.state, record.step
      data.set_state(record.host['data'])
    writer = MetricsWriter(
      folder.path, tensorboard=config.run.tensorboard, wandb=wiring.wandb_options(config, folder.path), start_step=start
    )
    try:
      with runs.Interrupts() as interrupts, wiring.bar(config.steps, 'sft', start) as progress:
        for number in range(start, config.steps):
          learner, metrics = one_step(update, learner, data, mesh, counts, skipped)
          done = number + 1
          writer.write(number, metrics)
          progress.set_postfix_str(f'loss {metrics["sft/loss"]:.3f} acc {metrics["sft/accuracy"]:.3f}', refresh=False)
          progress.update()
          if interrupts.asked or done % config.run.checkpoint_every == 0 or done == config.steps:
            checkpoint.save(records, done, learner, {'data': data.get_state()}, keep=config.run.keep)
          interrupts.check()
    finally:
      writer.close()
      data.close()
  weights.save_hf(target, model_config, jax.device_get(learner.params), base)


class Skipped:
  """skipped_rows.txt: the first row of each reason that was left out, a line each: source, row, reason, fault."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    lines = path.read_text().splitlines() if path.exists() else []
    self._known = {line.split('\t')[2] for line in lines if line.count('\t') >= 3}

  def add(self, examples: Mapping[str, str]) -> None:
    """Appends a line for each reason that is new."""
    for reason in examples.keys() - self._known:
      with self._path.open('a', encoding='utf-8', errors='replace') as file:
        file.write(' '.join(examples[reason].splitlines()) + '\n')
      self._known.add(reason)


def one_step(
  update, learner: state.State, data, mesh, counts: collections.Counter, skipped: Skipped
) -> tuple[state.State, dict[str, float]]:
  """One update and what is logged of it; the time waited for data is told apart."""
  begin = time.monotonic()
  batch = next(data)
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
    **{f'data/skipped/reason={reason}': float(count) for reason, count in counts.items()},
  }
  return learner, metrics


if __name__ == '__main__':
  sys.exit(run(main))
