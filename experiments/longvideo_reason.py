"""Reasoning data from long videos: `python -m experiments.longvideo_reason --config=configs/longvideo_reason.py --config.videos=DIR`.

`--config.steps=split,caption` runs some of the six steps. Ends with a table of what became of each
step's items; the last lines on standard output are the files that the chosen steps made.
"""

import asyncio
import contextlib
import pathlib
import sys
from collections.abc import Mapping

from experiments import launch
from paravt_jax.errors import DataError
from paravt_jax.longvideo_reason import pipeline, split
from paravt_jax.longvideo_reason import recipe as recipes
from paravt_jax.longvideo_reason.items import Video
from paravt_jax.longvideo_reason.recipe import LongVideoRecipe
from paravt_jax.orchestrator.parts import bar
from paravt_jax.orchestrator.run_folder import locked, to_json, write_json
from paravt_jax.rollout import chat_server as server
from paravt_jax.video.decode import DecodePool


def main(recipe: LongVideoRecipe) -> None:
  """Runs the selected steps, then prints the table and the files."""
  recipes.check(recipe)
  videos = find_videos(recipe)
  folder = pathlib.Path(recipe.output)
  with locked(folder, 'output'):
    asyncio.run(check_servers(recipe))
    write_json(folder / 'config.json', to_json(recipe))
    work = Bars()
    line = pipeline.Pipeline(folder, videos, recipes.make_options(recipe), work.show)
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


def find_videos(recipe: LongVideoRecipe) -> list[Video]:
  """Returns the videos below recipe.videos, and a line about files that cannot be used.

  Raises DataError if there are no videos.
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


def clients(recipe: LongVideoRecipe) -> dict[str, server.Server]:
  """Returns a client for each server that a selected step needs, by section."""
  options = recipes.servers_of(recipe)
  return {
    section: server.Server(options[section], f'--config.{section}')
    for section in sorted(recipes.needed_servers(recipe))
  }


async def check_servers(recipe: LongVideoRecipe) -> None:
  """Checks that every server exists, accepts the key, and knows the model, before anything
  starts.
  """
  for client in clients(recipe).values():
    async with client:
      await client.check()


async def go(recipe: LongVideoRecipe, line: pipeline.Pipeline) -> None:
  """Runs the steps, with their clients and the processes that decode."""
  async with contextlib.AsyncExitStack() as stack:
    found = {
      section: await stack.enter_async_context(client)
      for section, client in clients(recipe).items()
    }
    video = recipe.video
    frames = 'caption' in line.tallies and recipe.caption.send == 'frames'
    pool = (
      stack.enter_context(DecodePool(video.workers, video.deadline_s, video.backend))
      if frames
      else None
    )
    try:
      await line.run(pipeline.Servers(found.get('vision'), found.get('reasoner')), pool)
    finally:
      for section, client in found.items():
        outcomes = (
          ', '.join(f'{name} {count}' for name, count in sorted(client.counts.items()))
          or 'not asked'
        )
        print(f'\n{section} ({client.options.model}): {outcomes}', file=sys.stderr)


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
    """Closes all bars."""
    for one in self._bars.values():
      one.close()


def table(tallies: Mapping[str, pipeline.Tally]) -> str:
  """Returns one line per step: items, done now, done before, waiting, rejected and failed by
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
