"""Own data: a plan's step against the batch and the prompts that a run makes of the same rows."""

import asyncio
import collections
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from paravt_jax import packing
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import rows
from paravt_jax.data.fields import RowOptions
from paravt_jax.orchestrator import parts, sft_data
from paravt_jax.orchestrator.plan import build, own_data, shapes
from paravt_jax.rollout.agent import TRAINING_FORMAT, Agent
from paravt_jax.testing import clips, tiny
from tests.orchestrator.plan.requests import request

SECONDS = {'long.mp4': 12, 'short.mp4': 3}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A media root with two videos, rows of SFT and RL over them, and the tiny model's folder."""
  folder = tmp_path_factory.mktemp('own')
  media = folder / 'media'
  media.mkdir()
  for name, seconds in SECONDS.items():
    clips.make_clip(
      media / name,
      seconds,
      4,
      (96, 128),
      lambda i: np.full((96, 128, 3), 9 * i % 250, np.uint8),
      8,
    )

  def conversation(number):
    name = 'long.mp4' if number % 3 else 'short.mp4'
    video = {'type': 'video_url', 'video_url': {'url': name}}
    return json.dumps(
      [
        {'role': 'user', 'content': [video, {'type': 'text', 'text': 'What? ' * (number % 7)}]},
        {'role': 'assistant', 'content': 'red ' * (1 + number % 5)},
      ]
    )

  messages = pyarrow.table({'messages': [conversation(number) for number in range(60)]})
  pyarrow.parquet.write_table(messages, folder / 'paravt_sft_x.parquet')
  prompts = [
    {
      'prompt': [{'role': 'user', 'content': f'<video>\nWhat appears {"then " * number}?'}],
      'videos': [{'video': name}],
      'extra_info': json.dumps({'answer': 'red', 'question_type': 'oe', 'id': f'q{number}'}),
    }
    for number, name in enumerate(SECONDS)
  ]
  table = pyarrow.Table.from_pylist(prompts)
  pyarrow.parquet.write_table(table, folder / 'paravt_rl_x.parquet')
  tiny.build_model_folder(folder / 'model', 0)
  return folder


def asked(data, kind, **changes):
  knobs = {
    'data__train': (str(data / f'paravt_{kind}_x.parquet'),),
    'data__media_root': str(data / 'media'),
    'model__folder': str(data / 'model'),
    'video__workers': 1,
  }
  if kind == 'sft':
    knobs['data__cache_folder'] = str(data / 'none')
  return request(f'{kind}:8b', **{**knobs, **changes})


def test_an_sft_step_is_the_runs_first_batch(data):
  sizes = {'train__row_tokens': 2048, 'train__row_images': 128, 'train__micro_batches': 1}
  one = asked(data, 'sft', **sizes)
  found, source = own_data.read(one.recipe, one.shape)
  load = shapes.pack(one.job, found.documents, found.bins)
  tok = ChatTokenizer.load(data / 'model')
  sources = sft_data.sources(one.recipe)
  with (
    parts.decode_pool(one.recipe.video) as pool,
    sft_data.make_batches(one.recipe, sources, tok, pool) as batches,
  ):
    batch = next(batches)
  assert (load.tokens, load.trained, load.documents) == (
    batch.tokens,
    batch.targets,
    sum(batch.samples.values()),
  )
  assert load.fill == pytest.approx(batch.tokens / (8 * 2048))
  assert source == "the run's first batch, of 60 rows in 1 sources"


def test_prompts_of_an_rl_step_are_those_that_the_agent_opens(data):
  one = asked(data, 'rl', frames__budgets=(8,))
  found, source = own_data.read(one.recipe, one.shape)
  trees = [document for document in found.documents if document.suffixes]
  sampler = SimpleNamespace(tok=ChatTokenizer.load(data / 'model'), options=one.recipe.video)

  tasks = rows.rl_tasks(
    one.recipe.data.train, data / 'media', RowOptions(False, True), collections.Counter()
  )

  async def lengths():
    with parts.decode_pool(one.recipe.video) as pool:
      agent = Agent(sampler, None, pool, one.recipe.agent, TRAINING_FORMAT)
      openings = []
      for task in tasks:
        segment = (await agent.open(task, 8)).segment
        tree = packing.Tree(packing.Sample(segment.ids, segment.images, {}))
        openings.append(packing.tree_size(tree))
      return openings

  wanted = asyncio.run(lengths())
  # eight prompts, of two rows in turn
  assert sorted((tree.prefix, tree.images) for tree in trees) == sorted(wanted * 4)
  assert source.startswith('prompts of 2 rows')


def test_short_videos_have_no_more_frames_than_they_have(data):
  one = asked(data, 'rl', frames__budgets=(64,), train__row_images=512)
  found, _ = own_data.read(one.recipe, one.shape)
  assert {tree.images for tree in found.documents if tree.suffixes} == {4 * 12, 4 * 3}


def test_a_plan_takes_its_fill_and_its_words_from_own_data(data):
  one = asked(data, 'rl')
  found, source = own_data.read(one.recipe, one.shape)
  plan = build.make_plan(dataclasses.replace(one, data=found, data_source=source))
  stated = build.make_plan(one)
  assert plan.learner.load.images < stated.learner.load.images
  assert plan.learner.load.tokens == sum(document.size[0] for document in found.documents)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'data__train': ()}, 'stated shapes: data.train is empty'),
    ({'model__folder': ''}, 'stated shapes: model.folder is empty'),
    (
      {'data__train': ('gone.parquet',)},
      'stated shapes: --config.data.train: gone.parquet does not',
    ),
    ({'data__media_root': '/gone'}, 'stated shapes: '),
  ],
)
@pytest.mark.parametrize('kind', ['sft', 'rl'])
def test_without_rows_media_or_tokenizer_shapes_are_stated(data, kind, change, words):
  one = asked(data, kind, **change)
  found, source = own_data.read(one.recipe, one.shape)
  assert found is None and source.startswith(words)


def test_a_world_that_may_have_to_be_made_is_not_asked_for():
  one = request('rl:tiny')
  assert own_data.read(one.recipe, one.shape) == (None, 'stated shapes')
