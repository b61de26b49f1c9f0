"""The typed recipe of the pipeline; the numbers stand in configs/longvideo_reason.py."""

import dataclasses
import os
import pathlib
from typing import Annotated, ClassVar

from paravt_jax.longvideo_reason import cutting, pipeline, rows
from paravt_jax.longvideo_reason.ask import AskOptions, RewriteOptions
from paravt_jax.longvideo_reason.caption import CaptionOptions
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
from paravt_jax.rollout import chat_server as server

# step -> section of the recipe
SERVER_OF = {'caption': 'vision', 'ask': 'reasoner', 'rewrite': 'reasoner'}
# section -> what its prompt must hold
PLACES = {
  'ask': ('{captions}',),
  'rewrite': ('{question}', '{options}', '{answer}', '{reasons}'),
}


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


def check(recipe: LongVideoRecipe) -> None:
  """Refuses knobs out of range, before anything is made."""
  steps(recipe)
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
  for section in needed_servers(recipe):
    check_server(recipe, section)


def check_server(recipe: LongVideoRecipe, section: str) -> None:
  """Raises ConfigError if a needed server has no URL or model name."""
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


def make_options(recipe: LongVideoRecipe) -> pipeline.Options:
  """Returns the options of the pipeline from a recipe."""
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


def needed_servers(recipe: LongVideoRecipe) -> list[str]:
  """The sections of the servers that the chosen steps need, in the order of the steps."""
  return list(dict.fromkeys(SERVER_OF[step] for step in steps(recipe) if step in SERVER_OF))
