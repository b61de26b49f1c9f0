"""The typed recipe of the benches; the numbers stand in configs/bench.py."""

import dataclasses
from typing import Annotated, ClassVar

from experiments.bench.learner_options import LearnerBench
from experiments.bench.survival_options import PublishBench, SurvivalBench
from paravt_jax.options import (
  COUNT,
  LANES,
  NAME,
  PART,
  POSITIVE,
  QUANTITY,
  SEED,
  SHARE,
  TEMPERATURE,
  Options,
  each,
  multiple_of,
  span,
  whole,
)
from paravt_jax.orchestrator.options import ModelOptions
from paravt_jax.orchestrator.profiling import ProfileOptions
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.serving import sglang
from paravt_jax.serving.embedded import options as embedded

CONCURRENCIES = each(
  'positive numbers of requests', lambda one: type(one) is int and one >= 1, 1, differ=True
)

ENGINES = each(
  'some of learner, transformers, embedded, sglang',
  lambda one: one in ('learner', 'transformers', 'embedded', 'sglang'),
  1,
  differ=True,
)


@dataclasses.dataclass(frozen=True)
class BenchFolder(Options):
  """Where the benches write."""

  folder: Annotated[str, NAME]  # logs of the servers; scratch space


@dataclasses.dataclass(frozen=True)
class Prompts(Options):
  """Prompts as rollouts have them."""

  frames: Annotated[int, COUNT]  # of a prompt
  words: Annotated[int, COUNT]  # of a prompt
  new_tokens: Annotated[int, COUNT]  # of a reply


@dataclasses.dataclass(frozen=True)
class GenerateBench(Prompts):
  """The embedded engine against transformers: one batch, in one process."""

  batch: Annotated[int, COUNT]  # requests at once
  group: Annotated[int, COUNT]  # rollouts of a prompt
  temperature: Annotated[float, TEMPERATURE]  # logits are divided by it; 0: greedy
  repeats: Annotated[int, COUNT]  # turns of each, of which the best counts
  lanes: Annotated[tuple[tuple[int, int], ...], LANES]  # (context, slots) of the engine
  decode_steps: Annotated[int, COUNT]  # tokens per dispatch


@dataclasses.dataclass(frozen=True)
class ServeBench(Prompts):
  """The embedded server against SGLang, over HTTP."""

  concurrencies: Annotated[tuple[int, ...], CONCURRENCIES]  # requests at once
  turns: Annotated[int, COUNT]  # turns x concurrency requests at each concurrency
  group: Annotated[int, COUNT]  # rollouts of a prompt
  temperature: Annotated[float, TEMPERATURE]  # logits are divided by it; 0: greedy


@dataclasses.dataclass(frozen=True)
class PrefixBench(Prompts):
  """Rollouts of one prompt."""

  rollouts: Annotated[int, COUNT]  # of the prompt


@dataclasses.dataclass(frozen=True)
class ImagesBench(Options):
  """What a step of RL sends of its frames."""

  rollouts: Annotated[int, COUNT]  # of the prompt
  turns: Annotated[int, COUNT]  # of a rollout
  subagents: Annotated[int, COUNT]  # of a turn
  frames: Annotated[int, COUNT]  # of the overview
  crop_frames: Annotated[int, COUNT]  # of a sub-agent, one a second
  seconds: Annotated[int, COUNT]  # of the video
  side: Annotated[int, multiple_of(32)]  # pixels of a frame
  grain: Annotated[int, whole(1, 255)]  # noise over the image, in grey levels: the size of a PNG


@dataclasses.dataclass(frozen=True)
class GapsBench(Options):
  """Engines against float32, on the same weights."""

  engines: Annotated[tuple[str, ...], ENGINES]  # which ones; SGLang only where it is installed
  layers: Annotated[int, COUNT]  # of the random model, which is used if model.folder is ''
  width: Annotated[int, multiple_of(32)]  # of the same
  texts: Annotated[int, COUNT]  # prompts with frames, each with an answer
  frames: Annotated[int, COUNT]  # of a text
  side: Annotated[int, multiple_of(32)]  # pixels of a frame
  places: Annotated[int, COUNT]  # of each class and text, at which one token is sampled
  temperature: Annotated[float, POSITIVE]  # of these tokens
  concurrency: Annotated[int, COUNT]  # requests at once, to servers


@dataclasses.dataclass(frozen=True)
class BenchServers(Options):
  """The servers that are measured."""

  ready_timeout_s: Annotated[float, POSITIVE]  # for one to answer
  embedded: embedded.EngineOptions
  sglang: sglang.EngineOptions


@dataclasses.dataclass(frozen=True)
class Mix(Options):
  """Rows of the stated mix: videos, or an image instead."""

  frames: Annotated[tuple[int, int], span(1)]  # of a video
  text: Annotated[tuple[int, int], span(1)]  # tokens
  image_share: Annotated[float, SHARE]  # of the rows, that hold an image instead


@dataclasses.dataclass(frozen=True)
class ImageMix(Mix):
  """The same with real images."""

  image_tokens: Annotated[tuple[int, int], span(1)]  # of an image
  images: Annotated[int, COUNT]  # different ones


@dataclasses.dataclass(frozen=True)
class PackingBench(Options):
  """How full rows are."""

  rows: Annotated[int, COUNT]  # of the data
  batches: Annotated[int, COUNT]  # that are planned


@dataclasses.dataclass(frozen=True)
class ClipBench(Options):
  """The video that is decoded."""

  seconds: Annotated[int, COUNT]  # of the clip
  height: Annotated[int, multiple_of(2)]  # pixels
  width: Annotated[int, multiple_of(2)]  # pixels
  fps: Annotated[int, COUNT]  # frames a second
  gop: Annotated[int, COUNT]  # frames from one key frame to the next
  grain: Annotated[int, whole(1, 255)]  # noise over the image, in grey levels: the bit rate


@dataclasses.dataclass(frozen=True)
class DecodeBench(Options):
  """What is asked of the clip."""

  overviews: Annotated[int, COUNT]  # of the whole clip
  overview_frames: Annotated[int, COUNT]  # of each
  windows: Annotated[int, COUNT]  # in the clip
  window_seconds: Annotated[float, POSITIVE]  # of each
  window_frames: Annotated[int, COUNT]  # of each
  repeats: Annotated[int, COUNT]  # turns of each program, of which the best counts


@dataclasses.dataclass(frozen=True)
class UnpackBench(Options):
  """Archives to unpack."""

  bytes: Annotated[int, COUNT]  # of one archive, and of each kind in several
  archives: Annotated[int, whole(2, note='one of each kind')]  # in all
  repeats: Annotated[int, COUNT]  # turns of each program, of which the best counts


@dataclasses.dataclass(frozen=True)
class MaterializeBench(Mix):
  """Rows to materialize."""

  rows: Annotated[int, COUNT]  # of the data


@dataclasses.dataclass(frozen=True)
class StepBench(Options):
  """The step that is simulated: 6 * parameters * tokens / (peak * share) seconds."""

  parameters: Annotated[float, QUANTITY]  # of the model
  peak_flops: Annotated[float, QUANTITY]  # of the device, a second
  share: Annotated[float, PART]  # of the peak that is reached


@dataclasses.dataclass(frozen=True)
class InputBench(Options):
  """The pipeline that steps wait for."""

  rows: Annotated[int, COUNT]  # of the data
  steps: Annotated[int, COUNT]  # of each epoch
  stage_rows: Annotated[int, COUNT]  # of each stage alone


@dataclasses.dataclass(frozen=True)
class DataBench(Options):
  """The suite `data`."""

  mix: ImageMix
  packing: PackingBench
  clip: ClipBench
  decode: DecodeBench
  unpack: UnpackBench
  materialize: MaterializeBench
  step: StepBench
  input: InputBench
  sft: SFTRecipe  # one device of it


@dataclasses.dataclass(frozen=True)
class BenchRecipe(Options):
  """What the benches measure, and how large it is (`experiments.bench`)."""

  SECTION: ClassVar[str] = 'suite'
  EXAMPLE: ClassVar[str] = 'configs/bench.py'

  suite: Annotated[str, NAME]  # which one
  seed: Annotated[int, SEED]  # of every random draw
  threads: Annotated[int, COUNT]  # cores that each measured program gets, ours and the others
  model: ModelOptions  # without a folder: the random tiny model
  run: BenchFolder
  generate: GenerateBench
  serve: ServeBench
  prefix: PrefixBench
  images: ImagesBench
  publish: PublishBench
  gaps: GapsBench
  server: BenchServers
  data: DataBench
  learner: LearnerBench
  survival: SurvivalBench
  profile: ProfileOptions  # of the suite `learner`
