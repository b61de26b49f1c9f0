"""What the rehearsal starts from: rows and media in the published schema, and a narrow checkpoint.

The checkpoint has the published vocabulary and layout, and has learned to call the tool, so the run
has calls, sub-agents and rewards that differ. It learns in a minute because it first knows only the
tokens of its rows; then its tables are widened to the published ones.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from configs import base
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import materialize, sft, unpack
from paravt_jax.data.world import write as world
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.orchestrator import parts, sft_data
from tests import recipes
from tests.data.world import small
from tests.rehearsal import published_tokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 160  # of the cold start
SHARPEN = 1.5  # logits are multiplied by it: the many tokens that were not learned must stay rare
SHARD_BYTES = 12 * 10**6  # the published model has several files; so has this one
WORLD = small.with_corpus(
  videos=6,
  rl_tasks=24,
  heldout_tasks=6,
  budgets=(4, 8),
  sft_rows={'trace': 160, 'subagent': 80},
)
WORLD = dataclasses.replace(
  WORLD,
  questions=small.QUESTIONS.replace(weights={'oe1': 1, 'oe2': 1}, nothing=0.0),
  traces=small.TRACES.replace(always_call=1.0, recovery=0.0),
)
# As the published 8B, an untied head and grouped queries; widths and layers are few.
TEXT = TextConfig(
  vocab=published_tokenizer.VOCAB,
  width=64,
  layers=4,
  heads=8,
  kv_heads=2,
  head_dim=16,
  mlp=192,
  rope_theta=5e6,
  rope_sections=(4, 2, 2),
  norm_eps=1e-6,
  max_positions=262144,
)
VISION = VisionConfig(
  width=64, depth=4, mlp=128, heads=4, patch=16, merge=2, temporal=2, positions=64, taps=(1, 2, 3)
)
COLD_START = {
  'data.kind': 'files',
  'frames.image_max_pixels': 4096,
  'frames.max_frames': 8,
  'run.checkpoint_every': 0,
  'run.tensorboard': False,
  'sources': {'trace': (2.0, 0, None), 'subagent': (1.0, 0, None)},
  'steps': STEPS,
  'train.head_chunk': 256,
  'train.image_patches': 16,
  'train.row_images': 16,
  'train.row_tokens': 512,
  'train.rows': 4,
  'video.max_pixels': 4096,
}


def write(place: pathlib.Path) -> None:
  """Writes `model`, `media` and `rows` into `place`, unless they are there."""
  if (place / 'model' / 'config.json').is_file():
    return
  for half_made in ('cold_start', 'small', 'small_tokenizer', 'tokenizer'):
    shutil.rmtree(place / half_made, ignore_errors=True)
  written = world.write(place / 'download', WORLD, 3, workers=0)
  unpack.unpack(written.folder / 'source', place / 'media')
  materialize.rewrite_files('materialize', place / 'media', written.folder, place / 'rows')
  published_tokenizer.write(place / 'tokenizer')
  known = _small_model(place)
  _train(place)
  config, params = weights.load_hf(place / 'cold_start' / 'hf')
  config, params = _widened(config, params, known)
  weights.save_hf(
    place / 'model',
    config,
    params,
    place / 'tokenizer',
    dtype='bfloat16',
    shard_bytes=SHARD_BYTES,
  )


def _recipe(place: pathlib.Path) -> dict[str, Any]:
  return {
    **COLD_START,
    'data.cache_folder': str(place / 'cache'),
    'data.media_root': str(place / 'media'),
    'data.train': (str(place / 'rows' / 'paravt_sft_*.parquet'),),
    'model.folder': str(place / 'small'),
    'run.folder': str(place / 'cold_start'),
    'video.cache_folder': str(place / 'frames'),
  }


def _small_model(place: pathlib.Path) -> np.ndarray:
  """Writes `small`: random weights, and the published tokenizer cut to what the rows use.

  Returns:
    int[n], the published id of each of its tokens, ascending.
  """
  changes = {name.replace('.', '__'): value for name, value in _recipe(place).items()}
  recipe = recipes.typed(base.sft('tiny'), **changes)
  tok = ChatTokenizer.load(place / 'tokenizer')
  used = set(range(256))
  with parts.decode_pool(recipe.video) as pool:
    options = sft_data.frame_options(recipe)
    media = sft.media_sizes(pool, options)
    for source in sft_data.sources(recipe):
      for row in range(len(source.conversations)):
        used.update(sft.sample(tok, source.conversations[row], media, options).ids.tolist())
  known = published_tokenizer.cut(place / 'tokenizer', used, place / 'small_tokenizer')
  vocab = -(-len(known) // 64) * 64 + 64  # some tokens that no row has
  text = dataclasses.replace(TEXT, vocab=vocab)
  ids = {name: known.tolist().index(number) for name, number in _CONTROL.items()}
  config = Config(text, VISION, tied=False, **ids)
  params = jax.tree.map(np.asarray, model.init(config, jax.random.key(0)))
  weights.save_hf(place / 'small', config, params, place / 'small_tokenizer')
  return known


_CONTROL = {
  'image_id': 151655,
  'video_id': 151656,
  'vision_start_id': 151652,
  'vision_end_id': 151653,
}


def _train(place: pathlib.Path) -> None:
  """Trains the small model by the command of the tiny scale's cold start, on one device."""
  env = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  command = [
    *(sys.executable, '-m', 'experiments.sft', f'--config={ROOT}/configs/sft.py'),
    *(f'--config.{name}={value}' for name, value in _recipe(place).items()),
  ]
  subprocess.run(
    command, cwd=place, env={**env, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}, check=True
  )


def _widened(
  config: Config, params: dict[str, Any], known: np.ndarray
) -> tuple[Config, dict[str, Any]]:
  """The model with the published vocabulary. Tokens that it did not learn are alike."""
  text = params['text']
  tables = {'embed': text['embed']['embedding'], 'head': params['head']['kernel'].T}
  for name, small_VD in tables.items():
    table_VD = np.tile(small_VD[len(known) :].mean(0), (published_tokenizer.VOCAB, 1))
    table_VD[known] = small_VD[: len(known)]
    tables[name] = table_VD
  text['embed']['embedding'] = tables['embed']
  params['head']['kernel'] = tables['head'].T * SHARPEN
  return Config(TEXT, config.vision, tied=False, **_CONTROL), params


def describe(place: pathlib.Path) -> str:
  """One line on the checkpoint."""
  index = json.loads((place / 'model' / 'model.safetensors.index.json').read_text())
  shards = len(set(index['weight_map'].values()))
  return (
    f'{index["metadata"]["total_size"] / 1e6:.0f} MB of bfloat16 in {shards} shards, '
    f'{published_tokenizer.VOCAB} tokens'
  )
