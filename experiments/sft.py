"""Cold-start SFT: `python -m experiments.sft --config=configs/sft.py[:scale] [--config.knob=value]`.

Trains on conversations (loss on assistant turns only), checkpoints, and ends with a Hugging Face folder that RL starts from.
The last line on standard output is that folder.
"""

import collections
import pathlib
import sys
import time

import jax
from ml_collections import ConfigDict

from experiments import runs, wiring
from experiments.launch import build, require, require_recipe, run
from paravt_jax.data import batches, conversations, fields, sft
from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.train import checkpoint, state, step, sums
from paravt_jax.video.decode import DecodePool

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
  require(config.data.kind, "'world' or 'files'", config.data.kind in ('world', 'files'), 'data.kind')
  require(config.optimizer.learning_rate, 'above 0', config.optimizer.learning_rate > 0, 'optimizer.learning_rate')


def sources(config: ConfigDict, counts: collections.Counter) -> list[batches.Source]:
  """The conversations of the recipe's files, a source each, with the weights that the recipe gives."""
  if config.data.kind == 'world':
    world, root = wiring.make_world(config)
    files = world.sft
  else:
    files, root = wiring.existing(config.data.train, 'data.train'), pathlib.Path(config.data.media_root)
  options = fields.RowOptions(skip_bad_rows=config.data.skip_bad_rows, require_media=False)
  found = []
  for file in files:
    name = file.stem.removeprefix('paravt_sft_')
    weight, first, last = config.sources.get(name, (1.0, 0, None))
    found.append(batches.Source(name, conversations.sft_conversations([file], root, options, counts), float(weight), first, last))
  return found


def make_batches(config: ConfigDict, tok, pool: DecodePool, counts: collections.Counter):
  """The endless iterator of packed batches."""
  section, video = config.train, config.video
  frame_options = build(sft.FrameOptions, config.frames, 'frames', min_pixels=video.min_pixels, max_pixels=video.max_pixels)
  options = build(
    batches.BatchOptions,
    config.batches,
    'batches',
    micro_batches=section.micro_batches,
    rows=section.rows,
    row_tokens=section.row_tokens,
    row_images=section.row_images,
    image_patches=section.image_patches,
  )
  frames = batches.FrameBank(pool, 1.0, video.min_pixels, video.max_pixels) if config.data.kind == 'world' else pool
  return batches.batches(sources(config, counts), tok, frames, frame_options, options, config.seed)


def train(config: ConfigDict, folder: runs.RunFolder, base: str, target: pathlib.Path) -> None:
  """The loop: batch, step, log, checkpoint; then the export."""
  model_config, params, tok = wiring.load_model(base)
  mesh = wiring.make_mesh(config)
  optimizer = wiring.make_optimizer(config, model_config)
  update = step.make_sft_step(model_config, optimizer, mesh, wiring.model_options(config.train, 1.0, ()))
  records, counts = folder.path / 'checkpoints', collections.Counter()
  learner = state.from_params(model_config, optimizer, mesh, params)
  with wiring.decode_pool(config) as pool:
    data = make_batches(config, tok, pool, counts)
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
          learner, metrics = one_step(update, learner, data, mesh, counts)
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


def one_step(update, learner: state.State, data, mesh, counts: collections.Counter) -> tuple[state.State, dict[str, float]]:
  """One update and what is logged of it; the time waited for data is told apart."""
  begin = time.monotonic()
  batch = next(data)
  ready = time.monotonic()
  learner, found = update(learner, step.put_batch(mesh, batch.arrays, batch.used))
  metrics = sums.reduce(found)  # waits for the device
  end = time.monotonic()
  counts.update(batch.dropped)
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
