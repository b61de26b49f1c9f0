"""Reasoning data from long videos: `python -m experiments.longvideo_reason --config=configs/longvideo_reason.py --config.videos=DIR`.

`--config.steps=split,caption` runs some of the six steps. Ends with a table of what became of each
step's items; the last lines on standard output are the files that the chosen steps made.
"""

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from experiments import launch
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.longvideo_reason import cutting, pipeline, rows, split
from paravt_jax.longvideo_reason.ask import AskOptions, RewriteOptions
from paravt_jax.longvideo_reason.caption import CaptionOptions
from paravt_jax.longvideo_reason.items import Video
from paravt_jax.options import (
  NAME,
  POSITIVE,
  PROCESSES,
  PROSE,
  SEED,
  TEXT,
  Options,
  extended,
  one_of,
  require,
)
from paravt_jax.orchestrator.parts import bar
from paravt_jax.orchestrator.run_folder import to_json, write_json
from paravt_jax.rollout import chat_server as server
from paravt_jax.video.decode import DecodePool

SERVER_OF = {
  'caption': 'vision',
  'ask': 'reasoner',
  'rewrite': 'reasoner',
}  # step -> section of the recipe
PLACES = {
  'ask': ('{captions}',),
  'rewrite': ('{question}', '{options}', '{answer}', '{reasons}'),
}  # what its prompt must hold


@dataclasses.dataclass(frozen=True)
class SplitOptions(cutting.CutOptions):
  """How videos are cut, and how many at once."""

  workers: Annotated[int, PROCESSES]  # videos cut at once


@dataclasses.dataclass(frozen=True)
class DecodeOptions(Options):
  """How frames are decoded."""

  workers: Annotated[int, PROCESSES]  # processes that decode
  deadline_s: Annotated[float, POSITIVE]  # for one request to a worker, which is then killed
  backend: Annotated[str, one_of('pyav', 'decord')]  # what reads files


@dataclasses.dataclass(frozen=True)
class LongVideoRecipe(Options):
  """The pipeline from videos to rows of reasoning data."""

  SECTION: ClassVar[str] = 'reasoner'
  EXAMPLE: ClassVar[str] = 'configs/longvideo_reason.py'

  seed: Annotated[int, SEED]  # of every random draw
  videos: Annotated[str, PROSE]  # folder of videos, at any depth
  output: Annotated[str, NAME]  # folder of all that is made
  media_root: Annotated[str, TEXT]  # rows name videos by their path below it; '': `videos`
  steps: Annotated[str, PROSE]  # which of the six run, by commas
  split: SplitOptions
  caption: CaptionOptions
  ask: AskOptions
  rewrite: RewriteOptions
  trace: rows.TraceOptions  # the agent's limits, for rows that crop what the reasons cite
  vision: server.ServerOptions  # that captions
  reasoner: server.ServerOptions  # that asks and rewrites
  video: DecodeOptions


def main(recipe: LongVideoRecipe) -> None:
  """Runs the chosen steps and prints the table and the files."""
  check(recipe)
  videos = find_videos(recipe)
  folder = pathlib.Path(recipe.output)
  with opened(folder):
    asyncio.run(check_servers(recipe))
    write_json(folder / 'config.json', to_json(recipe))
    work = Bars()
    line = pipeline.Pipeline(folder, videos, make_options(recipe), work.show)
    try:
      asyncio.run(go(recipe, line))
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


def check(recipe: LongVideoRecipe) -> None:
  """Refuses knobs out of range, before anything is made."""
  names = steps(recipe)
  require(
    recipe.videos,
    'a folder of videos, as in --config.videos=DIR',
    pathlib.Path(recipe.videos or ' ').is_dir(),
    'videos',
  )
  root = pathlib.Path(os.path.abspath(recipe.media_root or recipe.videos))
  require(
    recipe.media_root,
    'a folder above the videos',
    pathlib.Path(os.path.abspath(recipe.videos)).is_relative_to(root),
    'media_root',
  )
  inside = pathlib.Path(os.path.abspath(recipe.output)).is_relative_to(
    os.path.abspath(recipe.videos)
  )
  require(
    recipe.output,
    'a folder outside of that of the videos, or clips would be taken for videos',
    not inside,
    'output',
  )
  part = recipe.split
  require(
    part.snap_seconds,
    'below half of clip_seconds',
    part.snap_seconds < part.clip_seconds / 2,
    'split.snap_seconds',
  )
  prompts = {'ask': recipe.ask.prompt, 'rewrite': recipe.rewrite.prompt}
  for section, wanted in PLACES.items():
    missing = [place for place in wanted if place not in prompts[section]]
    require('...', f'a text that holds {", ".join(missing)}', not missing, f'{section}.prompt')
  for section in dict.fromkeys(SERVER_OF[name] for name in names if name in SERVER_OF):
    check_server(recipe, section)


def check_server(recipe: LongVideoRecipe, section: str) -> None:
  """Refuses a server that is needed and not named."""
  knobs = servers_of(recipe)[section]
  where = 'the address of an OpenAI-compatible server, such as http://127.0.0.1:30000/v1'
  require(knobs.url, where, bool(knobs.url), f'{section}.url')
  require(knobs.model, "the model's name at that server", bool(knobs.model), f'{section}.model')


def steps(recipe: LongVideoRecipe) -> tuple[str, ...]:
  """The chosen steps, in the order of the pipeline. Raises ConfigError for one that there is
  not.
  """
  names = [name.strip() for name in recipe.steps.split(',') if name.strip()]
  known = ','.join(pipeline.STEPS)
  require(
    recipe.steps, f'some of {known}', bool(names) and set(names) <= set(pipeline.STEPS), 'steps'
  )
  return tuple(step for step in pipeline.STEPS if step in names)


def find_videos(recipe: LongVideoRecipe) -> list[Video]:
  """The videos below recipe.videos, and a line on what cannot be taken. Raises DataError when there
  are none.
  """
  videos, bad = split.find(recipe.videos)
  if bad:
    print(
      f'videos: {len(bad)} left out, their names are no UTF-8 (the first: {bad[0]})',
      file=sys.stderr,
    )
  if not videos:
    raise DataError(
      f'--config.videos={recipe.videos}: no video in there, wanted files such as '
      f'{", ".join(sorted(split.SUFFIXES)[:6])}'
    )
  return videos


def make_options(recipe: LongVideoRecipe) -> pipeline.Options:
  """The recipe as the pipeline takes it."""
  return pipeline.Options(
    steps=steps(recipe),
    media_root=os.path.abspath(recipe.media_root or recipe.videos),
    seed=recipe.seed,
    split_workers=recipe.split.workers,
    cut=extended(cutting.CutOptions, recipe.split),
    caption=recipe.caption,
    ask=recipe.ask,
    rewrite=recipe.rewrite,
    trace=recipe.trace,
  )


def servers_of(recipe: LongVideoRecipe) -> dict[str, server.ServerOptions]:
  """The recipe's servers, by section."""
  return {'vision': recipe.vision, 'reasoner': recipe.reasoner}


def clients(recipe: LongVideoRecipe) -> dict[str, server.Server]:
  """A client for each server that a chosen step needs, by section."""
  needed = {SERVER_OF[step] for step in steps(recipe) if step in SERVER_OF}
  options = servers_of(recipe)
  return {
    section: server.Server(options[section], f'--config.{section}') for section in sorted(needed)
  }


async def check_servers(recipe: LongVideoRecipe) -> None:
  """Refuses servers that are not there, that refuse the key, or that do not know the model, before
  anything starts.
  """
  for client in clients(recipe).values():
    async with client:
      await client.check()


async def go(recipe: LongVideoRecipe, line: pipeline.Pipeline) -> None:
  """The run, with its clients and the processes that decode."""
  async with contextlib.AsyncExitStack() as stack:
    found = {
      section: await stack.enter_async_context(client)
      for section, client in clients(recipe).items()
    }
    frames = 'caption' in line.tallies and recipe.caption.send == 'frames'
    pool = stack.enter_context(_decode_pool(recipe.video)) if frames else None
    try:
      await line.run(pipeline.Servers(found.get('vision'), found.get('reasoner')), pool)
    finally:
      for section, client in found.items():
        outcomes = (
          ', '.join(f'{name} {count}' for name, count in sorted(client.counts.items()))
          or 'not asked'
        )
        print(f'\n{section} ({client.options.model}): {outcomes}', file=sys.stderr)


def _decode_pool(video: DecodeOptions) -> DecodePool:
  return DecodePool(video.workers, video.deadline_s, video.backend)


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


class Bars:
  """One progress bar per step, opened when the step begins."""

  def __init__(self):
    self._bars = {}

  def show(self, step: str, done: int, total: int) -> None:
    """Moves a step's bar to `done` of `total`."""
    if step not in self._bars:
      self.close()
      self._bars[step] = bar(total, step, done)
    self._bars[step].update(done - self._bars[step].n)

  def close(self) -> None:
    """Ends all bars."""
    for one in self._bars.values():
      one.close()


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
  sys.exit(launch.run(main, LongVideoRecipe))
