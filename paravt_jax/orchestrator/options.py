"""Sections of recipes that only a run reads. Other sections are in the modules that use them."""

import dataclasses
import math
from typing import Annotated

from paravt_jax import options as rules
from paravt_jax.data.world import corpus as world_corpus
from paravt_jax.data.world.corpus import CorpusOptions
from paravt_jax.data.world.questions import QuestionOptions
from paravt_jax.data.world.scene import SceneOptions
from paravt_jax.data.world.traces import TraceOptions
from paravt_jax.models import lora, remat
from paravt_jax.options import (
  COUNT,
  DTYPE,
  EXPLORING,
  FILES,
  FLAG,
  KIND,
  NAMES,
  PIXELS,
  POSITIVE,
  PROCESSES,
  SEED,
  SHARE,
  TEXT,
  Options,
  Rule,
  each,
  multiple_of,
  one_of,
  some_of,
  whole,
)
from paravt_jax.rollout.sampler import SamplingOptions
from paravt_jax.train.optimizer import OptimizerOptions

PRODUCTS = each(
  f'some of {", ".join(lora.PRODUCTS)}, each once', lambda one: one in lora.PRODUCTS, 1, differ=True
)
WORLD_WORKERS = Rule('at least 0, at most 1024 (0: in this process)', whole(0, 1024).holds)


@dataclasses.dataclass(frozen=True)
class RunOptions(Options):
  """What a run writes, and where."""

  # where the run writes; '': runs/<name>_<scale>, for SFT with a fingerprint of its recipe
  folder: Annotated[str, TEXT]
  # steps from one record to the next
  checkpoint_every: Annotated[int, whole(0, note='0: only the last record')]
  keep: Annotated[int, COUNT]  # records on disk
  tensorboard: Annotated[bool, FLAG]  # event files beside metrics.jsonl
  wandb_project: Annotated[str, TEXT]  # project of Weights & Biases; '': off
  wandb_entity: Annotated[str, TEXT]  # user or team of Weights & Biases
  # where its events go
  wandb_mode: Annotated[str, one_of('online', 'offline', 'disabled', 'shared')]

  @classmethod
  def published(cls, checkpoint_every: int = 5) -> 'RunOptions':
    """Returns the published interval of records, of which the newest two stay."""
    return cls(
      folder='',
      checkpoint_every=checkpoint_every,
      keep=2,
      tensorboard=True,
      wandb_project='',
      wandb_entity='',
      wandb_mode='online',
    )


@dataclasses.dataclass(frozen=True)
class FolderOptions(Options):
  """A folder to write to."""

  folder: Annotated[str, TEXT]  # where the run writes; '': it chooses a name below runs/


@dataclasses.dataclass(frozen=True)
class ModelOptions(Options):
  """Where training begins."""

  # a Hugging Face checkpoint; '': RL makes its cold start, SFT begins from random tiny weights
  folder: Annotated[str, TEXT]


@dataclasses.dataclass(frozen=True)
class RowsOptions(Options):
  """Where rows and media lie."""

  kind: Annotated[str, KIND]  # files: parquet and media that you have; world: the synthetic corpus
  train: Annotated[tuple[str, ...], FILES]  # parquet files to train on
  media_root: Annotated[str, TEXT]  # the folder below which rows name their media
  follow_links: Annotated[bool, FLAG]  # symbolic links below it may lead out of it
  # broken rows are left out and listed, and do not end the run
  skip_bad_rows: Annotated[bool, FLAG]
  max_bad_share: Annotated[float, SHARE]  # share of the rows; above it broken rows end the run


@dataclasses.dataclass(frozen=True)
class RLDataOptions(RowsOptions):
  """The rows of RL."""

  eval: Annotated[tuple[str, ...], FILES]  # parquet files of held-out rows
  question_types: Annotated[tuple[str, ...], some_of('mcq', 'tvg', 'oe')]  # those trained on
  sources: Annotated[tuple[str, ...], NAMES]  # those whose rows are trained on
  max_rows: Annotated[int, whole(0, note='0: all rows')]  # a seeded sub-sample of the rest

  @classmethod
  def published(cls) -> 'RLDataOptions':
    """Returns settings for all rows of your own files."""
    return cls(
      kind='files',
      train=(),
      media_root='',
      follow_links=False,
      skip_bad_rows=False,
      max_bad_share=0.05,
      eval=(),
      question_types=(),
      sources=(),
      max_rows=0,
    )


@dataclasses.dataclass(frozen=True)
class SFTDataOptions(RowsOptions):
  """The rows of SFT."""

  manifest: Annotated[str, TEXT]  # a file that names the sources, in place of `train`
  cache_folder: Annotated[str, TEXT]  # of parsed rows and their lengths; '': none

  @classmethod
  def published(cls) -> 'SFTDataOptions':
    """Returns settings for all rows of your own files."""
    return cls(
      kind='files',
      train=(),
      media_root='',
      follow_links=False,
      skip_bad_rows=False,
      max_bad_share=0.05,
      manifest='',
      cache_folder='runs/data_cache',
    )


@dataclasses.dataclass(frozen=True)
class VideoOptions(Options):
  """How frames are decoded, resized and cached."""

  min_pixels: Annotated[int, whole(0, note='0: no lower bound')]  # area of a frame, at least
  max_pixels: Annotated[int, PIXELS]  # area of a frame, at most
  backend: Annotated[str, one_of('pyav', 'decord')]  # what reads files
  workers: Annotated[int, PROCESSES]  # processes that decode
  deadline_s: Annotated[float, POSITIVE]  # for one request to a worker, which is then killed
  cache_mb: Annotated[int, whole(0, note='0: none in memory')]  # decoded frames in memory, MiB
  cache_folder: Annotated[str, TEXT]  # of decoded frames, for the next epoch; '': none

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_order('min_pixels', 'max_pixels')

  @classmethod
  def published(cls) -> 'VideoOptions':
    """Returns the published limits: frames of at most 224 x 224 pixels."""
    return cls(
      min_pixels=1024,
      max_pixels=50176,
      backend='pyav',
      workers=8,
      deadline_s=30.0,
      cache_mb=8192,
      cache_folder='',
    )


@dataclasses.dataclass(frozen=True)
class SFTVideoOptions(VideoOptions):
  """How frames are decoded, resized and cached, also on disk."""

  cache_gb: Annotated[int, whole(0, note='0: no bound')]  # of cache_folder, GiB

  @classmethod
  def published(cls) -> 'SFTVideoOptions':
    """Returns limits for frames of at most 224 x 224 pixels, decoded once and cached on disk."""
    return cls(
      min_pixels=1024,
      max_pixels=50176,
      backend='pyav',
      workers=8,
      deadline_s=30.0,
      cache_mb=1024,
      cache_folder='runs/frames',
      cache_gb=500,
    )


@dataclasses.dataclass(frozen=True)
class RLSamplingOptions(SamplingOptions):
  """How rollouts are sampled."""

  temperature: Annotated[float, EXPLORING]  # logits are divided by it

  @classmethod
  def published(cls) -> 'RLSamplingOptions':
    """Returns the numbers of the paper. The learner scores the whole distribution."""
    return cls(temperature=0.7, top_p=1.0, top_k=-1, context=32768)


@dataclasses.dataclass(frozen=True)
class RolloutOptions(Options):
  """The number of rollouts per step, and how far they may run ahead of the learner."""

  steps: Annotated[int, COUNT]  # updates of the run
  prompts: Annotated[int, COUNT]  # P, groups of a step
  # G, rollouts of a group
  group_size: Annotated[int, whole(2, note='a group of one has no advantage')]
  staleness: Annotated[int, whole(0)]  # eta: versions that a rollout may be behind; 0: synchronous
  max_concurrent: Annotated[int, COUNT]  # groups in flight
  # whether sub-agents are trained on the advantage of their episode
  subagent_credit: Annotated[str, one_of('episode', 'off')]
  # mean |log-prob(learner) - log-prob(server)| of current tokens, in nats, that is allowed
  # besides rounding; above both the run ends
  gap_limit: Annotated[float, POSITIVE]
  # times what rounding costs the learner itself on its canary, allowed in addition to gap_limit
  gap_ratio: Annotated[float, POSITIVE]

  @classmethod
  def published(cls) -> 'RolloutOptions':
    """Returns the numbers of the paper."""
    return cls(
      steps=54,
      prompts=8,
      group_size=8,
      staleness=2,
      max_concurrent=64,
      subagent_credit='episode',
      gap_limit=0.01,
      gap_ratio=2.0,
    )


@dataclasses.dataclass(frozen=True)
class AdapterOptions(Options):
  """A low-rank adapter (Hu et al. 2022) that is trained in place of the model's weights."""

  rank: Annotated[
    int, whole(0, note='0: no adapter')
  ]  # of the matrix that is added to each product
  alpha: Annotated[float, POSITIVE]  # that matrix is multiplied by alpha / rank
  # products of a decoder layer that have one
  products: Annotated[tuple[str, ...], PRODUCTS]

  @classmethod
  def published(cls) -> 'AdapterOptions':
    """Returns no adapter: the paper trains the weights."""
    return cls(rank=0, alpha=32.0, products=lora.PRODUCTS)


@dataclasses.dataclass(frozen=True)
class TrainOptions(Options):
  """How the learner runs the model, and the shape of its batches."""

  dtype: Annotated[str, DTYPE]  # number type of matrix products
  # what a layer keeps for its backward pass. none: all its arrays; layers: its input, and the rest
  # is computed again; attention: as layers, and the output of attention too
  remat: Annotated[str, one_of(*remat.POLICIES)]
  # how attention is computed
  backend: Annotated[str, one_of('auto', 'chunked', 'splash', 'tiled', 'triton', 'xla')]
  head_chunk: Annotated[int, COUNT]  # tokens of a row whose logits are in memory at once
  freeze_vision: Annotated[bool, FLAG]  # the vision tower is not trained
  row_tokens: Annotated[int, COUNT]  # T, tokens of a row, images expanded
  row_images: Annotated[int, COUNT]  # N, slots of a row for images
  image_patches: Annotated[int, multiple_of(4)]  # X, patches that a slot holds
  rows: Annotated[int, COUNT]  # rows of a micro-batch, over all hosts
  micro_batches: Annotated[int, COUNT]  # of a step; RL takes as many as its rollouts need
  adapter: AdapterOptions

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.adapter.rank and not self.freeze_vision:
      self.refuse(
        'freeze_vision',
        f'True with {rules.SECTION}adapter.rank: an adapter is of the decoder alone',
      )

  @classmethod
  def published(cls) -> 'TrainOptions':
    """Returns the settings of RL with the 8B model on eight devices."""
    return cls(
      dtype='bfloat16',
      remat='layers',
      backend='auto',
      head_chunk=1024,
      freeze_vision=True,
      row_tokens=32768,
      row_images=512,
      image_patches=196,
      rows=8,
      micro_batches=32,
      adapter=AdapterOptions.published(),
    )


@dataclasses.dataclass(frozen=True)
class SFTTrainOptions(TrainOptions):
  """How the learner runs the model, and the shape of its batches."""

  row_images: Annotated[int, whole(0)]  # N, slots of a row for images of up to image_patches
  row_large_images: Annotated[int, whole(0)]  # slots of a row for larger images
  large_image_patches: Annotated[int, whole(0)]  # patches that such a slot holds

  @classmethod
  def published(cls) -> 'SFTTrainOptions':
    """Returns the settings of SFT with the 8B model on eight devices."""
    return cls(
      dtype='bfloat16',
      remat='layers',
      backend='auto',
      head_chunk=1024,
      freeze_vision=True,
      row_tokens=8192,
      row_images=128,
      image_patches=196,
      rows=8,
      micro_batches=4,
      adapter=AdapterOptions.published(),
      row_large_images=8,
      large_image_patches=4096,
    )


@dataclasses.dataclass(frozen=True)
class SFTOptimizerOptions(OptimizerOptions):
  """Numbers of the optimizer, whose rates are above 0."""

  learning_rate: Annotated[float, POSITIVE]  # the peak of the schedule
  matrix_learning_rate: Annotated[float, POSITIVE]  # that of matrices under muon

  @classmethod
  def published(cls) -> 'SFTOptimizerOptions':
    """Returns the numbers of the release: AdamW, 2e-5 with a cosine after a short warm-up."""
    numbers = rules.to_dict(OptimizerOptions.published())
    rates = {'learning_rate': 2e-5, 'matrix_learning_rate': 2e-5}
    steps = {'schedule': 'cosine', 'total_steps': 1500, 'warmup_steps': 75}
    return cls(**{**numbers, **rates, **steps})


@dataclasses.dataclass(frozen=True)
class MeshOptions(Options):
  """Devices along each axis of the mesh."""

  data: Annotated[int, COUNT]  # copies of the model
  fsdp: Annotated[int, COUNT]  # shards of parameters, gathered layer by layer
  # devices that share a row: each has a slice of its tokens, and a shard of the parameters
  context: Annotated[int, COUNT]
  tensor: Annotated[int, COUNT]  # shards of heads and hidden units

  @classmethod
  def published(cls) -> 'MeshOptions':
    """Returns a mesh of eight devices that share the parameters."""
    return cls(data=1, fsdp=8, context=1, tensor=1)

  @property
  def sizes(self) -> tuple[int, ...]:
    """Returns the devices along each axis, in the order of models/sharding.MESH_AXES."""
    return self.data, self.fsdp, self.context, self.tensor

  @property
  def devices(self) -> int:
    """Returns the number of devices."""
    return math.prod(self.sizes)

  @property
  def parameter_shards(self) -> int:
    """Returns how many devices share the width of a parameter."""
    return self.fsdp * self.context


@dataclasses.dataclass(frozen=True)
class WorldOptions(Options):
  """The synthetic corpus."""

  seed: Annotated[int, SEED]  # with the sections below it fixes every byte
  workers: Annotated[int, WORLD_WORKERS]  # processes that write videos
  scene: SceneOptions
  questions: QuestionOptions
  traces: TraceOptions
  corpus: CorpusOptions

  @property
  def made(self) -> world_corpus.WorldOptions:
    """Returns the settings that determine the corpus, except the seed."""
    return world_corpus.WorldOptions(self.scene, self.questions, self.traces, self.corpus)
