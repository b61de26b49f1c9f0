"""Reasoning data from long videos: `python -m experiments.longvideo_reason --config=configs/longvideo_reason.py --config.videos=DIR`.

`--config.steps=split,caption` runs some of the six steps. Ends with a table of what became of each
step's items; the last lines on standard output are the files that the chosen steps made.
"""

import asyncio
import contextlib
import fcntl
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping

from ml_collections import ConfigDict

from experiments import runs, wiring
from experiments.launch import build, require, require_recipe, run
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.longvideo_reason import ask, caption, cutting, pipeline, rows, split
from paravt_jax.longvideo_reason.items import Video
from paravt_jax.rollout import chat_server as server

SERVER_OF = {
  'caption': 'vision',
  'ask': 'reasoner',
  'rewrite': 'reasoner',
}  # step -> section of the recipe
PLACES = {
  'ask': ('{captions}',),
  'rewrite': ('{question}', '{options}', '{answer}', '{reasons}'),
}  # what its prompt must hold


def main(config: ConfigDict) -> None:
  """Runs the chosen steps and prints the table and the files."""
  check(config)
  videos = find_videos(config)
  folder = pathlib.Path(config.output)
  with opened(folder):
    asyncio.run(check_servers(config))
    runs.write_json(folder / 'config.json', shown(config))
    work = Bars()
    line = pipeline.Pipeline(folder, videos, make_options(config), work.show)
    try:
      asyncio.run(go(config, line))
    finally:
      work.close()
      print(table(line.tallies), file=sys.stderr)
  last = list(line.tallies)[-1]
  if not line.tallies[last].done + line.tallies[last].kept and not (
    last == 'rewrite' and line.results
  ):
    raise DataError(
      f'{last}: nothing came out of {len(videos)} videos; the table above says why, '
      f'{folder}/rejected holds the replies '
      'that were no good, and an earlier step may have to run first (--config.steps)'
    )
  for path in line.files:
    print(path)


def check(config: ConfigDict) -> None:
  """Refuses knobs out of range, before anything is made."""
  require_recipe(config, 'reasoner', 'configs/longvideo_reason.py')
  names = steps(config)
  require(
    config.videos,
    'a folder of videos, as in --config.videos=DIR',
    pathlib.Path(config.videos or ' ').is_dir(),
    'videos',
  )
  root = pathlib.Path(os.path.abspath(config.media_root or config.videos))
  require(
    config.media_root,
    'a folder above the videos',
    pathlib.Path(os.path.abspath(config.videos)).is_relative_to(root),
    'media_root',
  )
  inside = pathlib.Path(os.path.abspath(config.output)).is_relative_to(
    os.path.abspath(config.videos)
  )
  require(
    config.output,
    'a folder outside of that of the videos, or clips would be taken for videos',
    not inside,
    'output',
  )
  part = config.split
  require(
    part.snap_seconds,
    'below half of clip_seconds',
    part.snap_seconds < part.clip_seconds / 2,
    'split.snap_seconds',
  )
  for section, wanted in PLACES.items():
    missing = [place for place in wanted if place not in config[section].prompt]
    require('...', f'a text that holds {", ".join(missing)}', not missing, f'{section}.prompt')
  for section in dict.fromkeys(SERVER_OF[name] for name in names if name in SERVER_OF):
    check_server(config, section)


def check_server(config: ConfigDict, section: str) -> None:
  """Refuses a server that is needed and not named."""
  knobs = config[section]
  where = 'the address of an OpenAI-compatible server, such as http://127.0.0.1:30000/v1'
  require(knobs.url, where, bool(knobs.url), f'{section}.url')
  require(knobs.model, "the model's name at that server", bool(knobs.model), f'{section}.model')


def steps(config: ConfigDict) -> tuple[str, ...]:
  """The chosen steps, in the order of the pipeline. Raises ConfigError for one that there is
  not.
  """
  names = [name.strip() for name in config.steps.split(',') if name.strip()]
  known = ','.join(pipeline.STEPS)
  require(
    config.steps, f'some of {known}', bool(names) and set(names) <= set(pipeline.STEPS), 'steps'
  )
  return tuple(step for step in pipeline.STEPS if step in names)


def find_videos(config: ConfigDict) -> list[Video]:
  """The videos below config.videos, and a line on what cannot be taken. Raises DataError when there
  are none.
  """
  videos, bad = split.find(config.videos)
  if bad:
    print(
      f'videos: {len(bad)} left out, their names are no UTF-8 (the first: {bad[0]})',
      file=sys.stderr,
    )
  if not videos:
    raise DataError(
      f'--config.videos={config.videos}: no video in there, wanted files such as '
      f'{", ".join(sorted(split.SUFFIXES)[:6])}'
    )
  return videos


def make_options(config: ConfigDict) -> pipeline.Options:
  """The recipe as the pipeline takes it."""
  cut = {key: value for key, value in config.split.items() if key != 'workers'}
  return pipeline.Options(
    steps=steps(config),
    media_root=os.path.abspath(config.media_root or config.videos),
    seed=config.seed,
    split_workers=config.split.workers,
    cut=build(cutting.CutOptions, cut, 'split'),
    caption=build(caption.CaptionOptions, config.caption, 'caption'),
    ask=build(ask.AskOptions, config.ask, 'ask'),
    rewrite=build(ask.RewriteOptions, config.rewrite, 'rewrite'),
    trace=build(rows.TraceOptions, config.trace, 'trace'),
  )


def clients(config: ConfigDict) -> dict[str, server.Server]:
  """A client for each server that a chosen step needs, by section."""
  options = {
    'vision': build(server.ServerOptions, config.vision, 'vision'),
    'reasoner': build(server.ServerOptions, config.reasoner, 'reasoner'),
  }
  needed = {SERVER_OF[step] for step in steps(config) if step in SERVER_OF}
  return {
    section: server.Server(options[section], f'--config.{section}') for section in sorted(needed)
  }


async def check_servers(config: ConfigDict) -> None:
  """Refuses servers that are not there, that refuse the key, or that do not know the model, before
  anything starts.
  """
  for client in clients(config).values():
    async with client:
      await client.check()


async def go(config: ConfigDict, line: pipeline.Pipeline) -> None:
  """The run, with its clients and the processes that decode."""
  async with contextlib.AsyncExitStack() as stack:
    found = {
      section: await stack.enter_async_context(client)
      for section, client in clients(config).items()
    }
    frames = 'caption' in line.tallies and config.caption.send == 'frames'
    pool = stack.enter_context(wiring.decode_pool(config)) if frames else None
    try:
      await line.run(pipeline.Servers(found.get('vision'), found.get('reasoner')), pool)
    finally:
      for section, client in found.items():
        outcomes = (
          ', '.join(f'{name} {count}' for name, count in sorted(client.counts.items()))
          or 'not asked'
        )
        print(f'\n{section} ({client.options.model}): {outcomes}', file=sys.stderr)


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[None]:
  """Holds the output folder for this process alone. Raises ConfigError when another one has it, or
  it cannot be made.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / '.lock').open('w')
  except OSError as error:
    raise ConfigError(
      f'--config.output={folder}: {error.strerror}; name a folder that can be written'
    ) from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise ConfigError(
        f'--config.output={folder}: in use by another process; wait for it, or name another folder'
      ) from None
    yield


def shown(config: ConfigDict) -> dict:
  """The recipe as it may be written down: keys are blotted out."""
  values = runs.shown(config)
  for section in set(SERVER_OF.values()):
    if values[section]['api_key']:
      values[section]['api_key'] = '(set)'
  return values


class Bars:
  """One progress bar per step, opened when the step begins."""

  def __init__(self):
    self._bars = {}

  def show(self, step: str, done: int, total: int) -> None:
    """Moves a step's bar to `done` of `total`."""
    if step not in self._bars:
      self.close()
      self._bars[step] = wiring.bar(total, step, done)
    self._bars[step].update(done - self._bars[step].n)

  def close(self) -> None:
    """Ends all bars."""
    for bar in self._bars.values():
      bar.close()


def table(tallies: Mapping[str, pipeline.Tally]) -> str:
  """One line per step: items, done now, done before, waiting, and what was rejected or failed, by
  reason.
  """
  lines = [
    f'{"step":<8} {"items":>7} {"done":>7} {"before":>7} {"waiting":>7}  rejected / failed '
    '(tried again next time)'
  ]
  for step, tally in tallies.items():
    rejected = (
      ', '.join(f'{reason} {count}' for reason, count in tally.rejected.most_common()) or '-'
    )
    failed = ', '.join(f'{reason} {count}' for reason, count in tally.failed.most_common()) or '-'
    again = ', '.join(f'{what} ({count})' for what, count in tally.again.most_common())
    lines.append(
      f'{step:<8} {tally.items:>7} {tally.done:>7} {tally.kept:>7} {tally.waiting:>7}  '
      f'{rejected} / {failed}' + (f'; made again, changed: {again}' if again else '')
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(run(main))
