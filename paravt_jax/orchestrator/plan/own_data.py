"""The documents of one step from a recipe's own rows, with their real lengths.

Videos are probed and not decoded. SFT batches are planned as the run plans its first one. RL
prompts are those of the rows; what episodes write behind them has the stated shape.
"""

import collections
import concurrent.futures
import pathlib

import numpy as np

from paravt_jax import packing, seeds
from paravt_jax.chat import prompts, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, fields, rows, sft
from paravt_jax.data.conversations import VideoRef
from paravt_jax.errors import DataError, MediaError, ParavtError
from paravt_jax.options import extended
from paravt_jax.orchestrator import corpus, parts, sft_data
from paravt_jax.orchestrator.plan import shapes
from paravt_jax.orchestrator.plan.job import Recipe
from paravt_jax.orchestrator.plan.shapes import Document, OwnData, Shape
from paravt_jax.orchestrator.recipes import RLRecipe, SFTRecipe
from paravt_jax.types import Task
from paravt_jax.video import sampling
from paravt_jax.video.decode import DecodePool


def read(recipe: Recipe, shape: Shape) -> tuple[OwnData | None, str]:
  """Returns a step's data from the recipe's rows, and words that say what was read or why not.

  Rows, their videos and the model's tokenizer must be there. Without them the result is None, and
  the plan counts with stated shapes.
  """
  if not isinstance(recipe, RLRecipe | SFTRecipe) or recipe.data.kind != 'files':
    return None, 'stated shapes'
  manifest = recipe.data.manifest if isinstance(recipe, SFTRecipe) else ''
  if not recipe.data.train and not manifest:
    return None, 'stated shapes: data.train is empty'
  if not recipe.model.folder:
    return None, 'stated shapes: model.folder is empty, so there is no tokenizer'
  try:
    tok = ChatTokenizer.load(recipe.model.folder)
    with parts.decode_pool(recipe.video) as pool:
      if isinstance(recipe, SFTRecipe):
        return _of_sft(recipe, tok, pool)
      return _of_rl(recipe, shape, tok, pool)
  except ParavtError as error:
    return None, f'stated shapes: {" ".join(str(error).split())}'


def _of_sft(recipe: SFTRecipe, tok: ChatTokenizer, pool: DecodePool) -> tuple[OwnData, str]:
  """Plans the first batch of the run."""
  cache = recipe.data.cache_folder
  data = recipe.data.replace(cache_folder=cache if pathlib.Path(cache).is_dir() else '')
  sources = sft_data.sources(recipe.replace(data=data))
  options, frame_options = sft_data.batch_options(recipe), sft_data.frame_options(recipe)
  with concurrent.futures.ThreadPoolExecutor(recipe.video.workers) as threads:
    planner, _ = batches.make_planner(
      sources, tok, pool, frame_options, options, recipe.seed, threads, None
    )
    plan = planner.plan()
  media = sft.media_sizes(pool, frame_options)
  conversations = {source.name: source.conversations for source in sources}
  documents = []
  for (name, row), (tokens, frames, _) in zip(plan.items, plan.sizes):
    sample = sft.sample(tok, conversations[name][row], media, frame_options)
    documents.append(Document(tokens, (), frames, int(sample.extras[sft.MASK].sum())))
  dropped = sum(plan.dropped.values())
  left_out = f', {dropped} draws left out' if dropped else ''
  total = sum(len(one) for one in conversations.values())
  return (
    OwnData(tuple(documents), plan.bins),
    f"the run's first batch, of {total} rows in {len(sources)} sources{left_out}",
  )


def _of_rl(
  recipe: RLRecipe, shape: Shape, tok: ChatTokenizer, pool: DecodePool
) -> tuple[OwnData, str]:
  """Measures the prompts of one step: a seeded choice of tasks, and the budget of each."""
  data = recipe.data
  tasks = rows.rl_tasks(
    corpus.existing(data.train, 'data.train'),
    data.media_root,
    fields.RowOptions(data.skip_bad_rows, require_media=True, follow_links=data.follow_links),
    collections.Counter(),
    None,
    rows.RowFilter(data.question_types, data.sources, data.max_rows, data.max_bad_share),
    recipe.seed,
  )
  order = seeds.rng(recipe.seed, 'plan').permutation(len(tasks))
  chosen = [tasks[at] for at in np.resize(order, recipe.rollout.prompts)]
  options = recipe.frames
  choices = options.budgets if options.gating else (options.frames,)
  openings = []
  for task in chosen:
    budget = sampling.draw_budget(recipe.seed, task.id, 0, choices)
    try:
      openings.append(_opening(recipe, task, budget, tok, pool))
    except MediaError as error:
      raise DataError(f'{task.id}: {error}') from error
  documents = shapes.documents_of_rl(recipe, shape, openings=openings)
  return (
    OwnData(tuple(documents), None),
    f'prompts of {len(tasks)} rows; what is written behind them has the stated shape',
  )


def _opening(
  recipe: RLRecipe, task: Task, budget: int, tok: ChatTokenizer, pool: DecodePool
) -> tuple[int, int]:
  """Returns (tokens, frames) of a task's prompt, as the agent opens an episode."""
  infos = [pool.probe_sync(path) for path in task.videos]
  sizes = extended(
    sft.FrameOptions,
    sft.FrameCountOptions.published(),
    min_pixels=recipe.video.min_pixels,
    max_pixels=recipe.video.max_pixels,
  )
  media = sft.media_sizes(pool, sizes)
  pieces, left = [], budget
  # videos share the budget about evenly, and a short one has no more frames than it has
  for number, (path, info) in enumerate(zip(task.videos, infos)):
    count = max(1, left // (len(infos) - number))
    count = min(sampling.available(info.duration, info.fps), count)
    pieces.append(media(VideoRef(path, count, None, None)))
    left -= count
  user = prompts.user(task, pieces)
  system = prompts.system(task.facts.get('system'))
  segment = template.opening(tok, system, user, recipe.agent.think_prefix)
  sample = packing.Sample(segment.ids, segment.images, {})
  tokens, images = packing.tree_size(packing.Tree(sample))
  return tokens, images
