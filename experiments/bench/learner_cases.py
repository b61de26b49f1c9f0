"""The model and the batches of suite `learner`: plain text, frames with text, and a group of rollouts."""

import dataclasses
import pathlib

import numpy as np

from experiments.bench.learner_options import LearnerBench
from experiments.bench.recipe import BenchRecipe
from paravt_jax import packing, seeds
from paravt_jax.models.attention import ranges
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.orchestrator.plan import flops
from paravt_jax.packing import Packed, Sample, Tree
from paravt_jax.train import step

_SIDE = 32  # pixels of a merged token's side
_STAMP = 4  # tokens before each frame: its time
_FIRST_WORD, _WORDS = 200, 300  # ids that stand for words


@dataclasses.dataclass(frozen=True)
class Case:
  """One batch: documents as the other program gets them, and rows as ours gets them."""

  documents: tuple[Sample, ...]  # each with its own prefix
  rows: Packed
  tokens: int  # of the documents
  trained: int  # tokens with a loss

  def needed_flops(self, config: Config, freeze_vision: bool) -> float:
    """Returns the FLOPs of one forward and backward pass over what the rows hold.

    Padding, recomputation and everything but products are left out.
    """
    rows, text = self.rows, config.text
    held = int((rows.segments_RT > 0).sum())
    pairs = ranges.count_visible_pairs(rows.segments_RT, rows.branches_RT)
    images = int((rows.grids_RN2 > 0).all(-1).sum())
    slot = rows.patches_RNXPC.shape[2]
    image = flops.image_flops(config.vision, text.width, slot) if images else 0.0
    forward = 2.0 * flops.text_weights(text) * held
    forward += 4.0 * text.heads * text.head_dim * text.layers * pairs
    forward += 2.0 * text.width * text.vocab * self.trained
    return 3 * forward + images * image * (1 if freeze_vision else 3)


def model_config(base: Config, knobs: LearnerBench) -> Config:
  """Returns the sizes that the recipe states, with the special ids of `base`."""
  size = knobs.model
  quarter = size.head_dim // 8
  text = dataclasses.replace(
    base.text,
    vocab=size.vocab,
    width=size.width,
    layers=size.layers,
    heads=size.heads,
    kv_heads=size.kv_heads,
    head_dim=size.head_dim,
    mlp=size.mlp,
    # time gets what height and width leave of head_dim / 2 frequencies
    rope_sections=(size.head_dim // 2 - 2 * quarter, quarter, quarter),
    max_positions=max(base.text.max_positions, knobs.text.row_tokens, knobs.packed.row_tokens),
  )
  return dataclasses.replace(base, text=text)


def text_case(config: Config, knobs: LearnerBench, seed: int) -> Case:
  """Returns documents of one length, which fill their rows: neither program pads."""
  one = knobs.text
  rng = seeds.rng(seed, 'learner', 'text')
  documents = [_document(config, rng, 0, one.tokens, 0) for _ in range(one.documents)]
  return _case(config, tuple(Tree(one) for one in documents), one.row_tokens, 0, 4)


def packed_case(config: Config, knobs: LearnerBench, seed: int) -> Case:
  """Returns overviews and windows in a random order; their lengths differ as in a corpus."""
  one = knobs.packed
  rng = seeds.rng(seed, 'learner', 'packed')
  kinds = [one.overview_frames] * one.overviews + [one.window_frames] * one.windows
  trees = []
  for place in rng.permutation(len(kinds)):
    least, most = kinds[place]
    frames = int(rng.integers(least, most + 1))
    words = int(rng.integers(one.words[0], one.words[1] + 1))
    trees.append(Tree(_document(config, rng, frames, words, one.frame_side)))
  return _case(config, tuple(trees), one.row_tokens, one.row_images, _patches(one.frame_side))


def group_cases(config: Config, knobs: LearnerBench, seed: int) -> tuple[Case, Case]:
  """Returns rollouts of one prompt twice: with a shared prefix, and each with a prefix of its own."""
  one = knobs.group
  rng = seeds.rng(seed, 'learner', 'group')
  prompt = _document(config, rng, one.frames, one.words, one.frame_side, trained=0.0)
  replies = [
    _document(config, rng, 0, one.new_tokens, 0, trained=1.0, advantage=(-1.0) ** n)
    for n in range(one.rollouts)
  ]
  slot = _patches(one.frame_side)
  shared = Tree(prompt, tuple(replies))
  alone = tuple(Tree(_joined(prompt, reply)) for reply in replies)
  # a row holds the shared tree, or as many rollouts with their own prefix as go into it
  tokens = max(packing.tree_size(shared)[0], packing.tree_size(alone[0])[0])
  row = -(-tokens // one.row_multiple) * one.row_multiple
  images = max(one.frames, row // packing.tree_size(alone[0])[0] * one.frames)
  cases = (_case(config, trees, row, images, slot) for trees in ((shared,), alone))
  first, second = cases
  return dataclasses.replace(first, documents=second.documents, tokens=second.tokens), second


def _patches(side: int) -> int:
  return (side // packing.PATCH) ** 2


def _document(
  config: Config,
  rng: np.random.Generator,
  frames: int,
  words: int,
  side: int,
  trained: float = 0.5,
  advantage: float = 0.0,
) -> Sample:
  """Returns frames with a time stamp each, then words; the last share of the words is trained."""
  ids: list[int] = []
  for _ in range(frames):
    stamp = rng.integers(_FIRST_WORD, _FIRST_WORD + _WORDS, _STAMP)
    ids += [*map(int, stamp), config.vision_start_id, config.image_id, config.vision_end_id]
  ids += [int(word) for word in rng.integers(_FIRST_WORD, _FIRST_WORD + _WORDS, words)]
  count = len(ids)
  mask = np.arange(count) >= count - round(words * trained)
  extras = {
    'mask': mask.astype(np.float32),
    'advantage': np.full(count, advantage, np.float32),
    'behavior': np.full(count, -np.log(config.text.vocab), np.float32),
  }
  images = tuple(rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(frames))
  return Sample(np.asarray(ids, np.int32), images, extras)


def _joined(prompt: Sample, reply: Sample) -> Sample:
  extras = {
    name: np.concatenate([prompt.extras[name], reply.extras[name]]) for name in prompt.extras
  }
  return Sample(np.concatenate([prompt.ids, reply.ids]), prompt.images, extras)


def _case(config: Config, trees: tuple[Tree, ...], tokens: int, images: int, slot: int) -> Case:
  rows = packing.pack(
    trees,
    row_tokens=tokens,
    row_images=images,
    image_patches=slot,
    image_id=config.image_id,
    rows_multiple=1,
    extras=step.RL_EXTRAS,
  )
  trained = int(((rows.extras['mask'] > 0) & (rows.predecessor_RT >= 0)).sum())
  held = int((rows.segments_RT > 0).sum())
  return Case(tuple(tree.prefix for tree in trees), rows, held, trained)


def build_folder(recipe: BenchRecipe, config: Config, source: pathlib.Path) -> pathlib.Path:
  """Writes random weights of this size, which both programs load. `source` has the tokenizer."""
  # on use: parsing the recipe needs no JAX
  import jax

  from paravt_jax.models.qwen3_vl import export, model

  folder = pathlib.Path(recipe.run.folder).absolute() / 'learner' / 'model'
  folder.parent.mkdir(parents=True, exist_ok=True)
  export.save_hf(folder, config, model.init(config, jax.random.key(recipe.seed)), source)
  return folder
