"""What a learner runs: the sizes of its model, its batches and its mesh."""

import dataclasses
import json
import pathlib

from paravt_jax.errors import ConfigError
from paravt_jax.models import attention
from paravt_jax.models.qwen3_vl.config import PUBLISHED, Config
from paravt_jax.orchestrator import parts
from paravt_jax.orchestrator.options import MeshOptions, SFTTrainOptions, TrainOptions
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
from paravt_jax.row_layout import LayoutOptions, Layouts, Shape
from paravt_jax.testing import tiny
from paravt_jax.train.optimizer import OptimizerOptions

Recipe = RLRecipe | SFTRecipe | EvalRecipe
BYTES = {'bfloat16': 2, 'float32': 4}


@dataclasses.dataclass(frozen=True)
class Job:
  """A learner's work, without its data."""

  kind: str  # rl or sft
  model: Config
  train: TrainOptions
  mesh: MeshOptions
  optimizer: OptimizerOptions
  reference: bool  # a second model, for the KL term
  updates: int  # optimizer updates of a batch
  platform: str  # of the devices: 'cuda', 'tpu' or 'cpu'
  batches: LayoutOptions | None  # shapes of an RL step; None: batches have the recipe's own
  shape: Shape | None = None  # of the batch that is counted; None: the recipe's own

  @property
  def layouts(self) -> Layouts | None:
    """Returns what chooses the shape of an RL step's batch; None for SFT."""
    return Layouts(self.batches, self._full, self.train.rows) if self.batches else None

  @property
  def ladder(self) -> tuple[Shape, ...]:
    """Returns the shapes of all batches, shortest rows first."""
    return self.layouts.ladder if self.layouts else (self._full,)

  @property
  def _full(self) -> Shape:
    train = self.train
    return Shape(train.row_tokens, train.row_images, train.micro_batches)

  def at(self, shape: Shape) -> 'Job':
    """Returns the job with batches of this shape."""
    return dataclasses.replace(self, shape=shape)

  @property
  def row_tokens(self) -> int:
    """Returns T, the tokens of a row."""
    return self.shape.row_tokens if self.shape else self.train.row_tokens

  @property
  def row_images(self) -> int:
    """Returns N, the image slots of a row."""
    return self.shape.row_images if self.shape else self.train.row_images

  @property
  def backend(self) -> str:
    """Returns how attention is computed; 'auto' is what its dispatcher would choose."""
    if self.train.backend != 'auto':
      return self.train.backend
    return attention.choose(self.platform, self.row_tokens, self.train.dtype)

  @property
  def devices(self) -> int:
    """Returns the number of devices of the mesh."""
    return self.mesh.devices

  @property
  def row_shards(self) -> int:
    """Returns how many parts the rows of a micro-batch are split into."""
    return self.mesh.data * self.mesh.fsdp

  @property
  def rows_here(self) -> int:
    """Returns the rows of a micro-batch that one device computes."""
    return -(-self.train.rows // self.row_shards)

  @property
  def tokens_here(self) -> int:
    """Returns the tokens of a micro-batch that one device computes, padding included."""
    return self.rows_here * self.row_tokens // self.mesh.context

  @property
  def width(self) -> int:
    """Returns the bytes of a number in the compute dtype."""
    return BYTES[self.train.dtype]

  @property
  def image_slots(self) -> tuple[tuple[int, int], ...]:
    """Returns (slots of a row, patches of a slot) of each class of images."""
    classes = [(self.row_images, self.train.image_patches)]
    if isinstance(self.train, SFTTrainOptions) and self.train.row_large_images:
      classes.append((self.train.row_large_images, self.train.large_image_patches))
    return tuple(classes)


def job_of(recipe: RLRecipe | SFTRecipe, model: Config, platform: str) -> Job:
  """Returns the learner's job of a recipe. `platform`: 'cuda', 'tpu' or 'cpu'."""
  rl = isinstance(recipe, RLRecipe)
  return Job(
    kind='rl' if rl else 'sft',
    model=parts.with_adapter(model, recipe.train.adapter),
    train=recipe.train,
    mesh=recipe.mesh,
    optimizer=recipe.optimizer,
    reference=isinstance(recipe, RLRecipe) and recipe.rl.beta > 0,
    updates=recipe.rl.updates_per_batch if isinstance(recipe, RLRecipe) else 1,
    platform=platform,
    batches=recipe.batches if isinstance(recipe, RLRecipe) else None,
  )


def model_of(recipe: Recipe, named: str) -> tuple[Config, str]:
  """Returns the sizes of a recipe's model, and where they come from.

  Args:
    recipe: its model folder counts if it exists; nothing but config.json is read.
    named: '2b', '4b', '8b', '32b', 'tiny' or a folder, which comes first; '' for none.

  Raises:
    ConfigError: no such model, or a broken config.json.
  """
  sizes = {**PUBLISHED, 'tiny': _tiny}
  if named and named in sizes:
    return sizes[named](), f'published sizes of {named}'
  folder = named or recipe.model.folder
  file = pathlib.Path(folder, 'config.json')
  if folder and file.is_file():
    try:
      return Config.from_hf(json.loads(file.read_text())), str(file)
    except ValueError as error:
      raise ConfigError(f'{file}: {error}; copy or download it again') from error
  if named:
    raise ConfigError(
      f'--model={named}: neither one of {", ".join(sizes)} nor a folder that holds config.json'
    )
  scale = recipe.scale.partition('_')[0]
  if scale not in sizes:
    raise ConfigError(
      f'scale {recipe.scale!r} has no model of its own; name one, as in --model=8b or --model=DIR'
    )
  missing = f', as {file} is not there' if folder else ''
  return sizes[scale](), f'published sizes of {scale}{missing}'


def _tiny() -> Config:
  return tiny.tiny_config(tiny.make_tokenizer())
