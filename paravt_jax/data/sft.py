"""Converts conversations to samples: tokens, frames and the target mask.

The chat template is the one that the agent loop uses.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

import numpy as np

from paravt_jax.chat import prompts, spans, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data.conversations import Conversation, ImageRef, VideoRef
from paravt_jax.errors import MediaError
from paravt_jax.options import COUNT, PIXELS, POSITIVE, PROSE, Options
from paravt_jax.packing import Sample
from paravt_jax.types import Clip, Window
from paravt_jax.video import image_files, patches, sampling
from paravt_jax.video.readers import VideoInfo

MASK = 'mask'  # extras: 1 on target tokens
Media = Callable[[VideoRef | ImageRef], list[template.Piece]]
PASSING = (
  'timeout',
  'crashed',
)  # reasons that a busy machine may also cause; such a request is tried twice


@dataclasses.dataclass(frozen=True)
class FrameCountOptions(Options):
  """How many frames an SFT sample has."""

  rate: Annotated[float, POSITIVE]  # frames per second if a row gives no number of frames
  min_frames: Annotated[int, COUNT]  # of a window
  max_frames: Annotated[int, COUNT]  # of a window, and of an overview without a number
  image_max_pixels: Annotated[int, PIXELS]  # area of an image; larger than that of a frame
  think_prefix: Annotated[str, PROSE]  # the opening that rollouts pin

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_order('min_frames', 'max_frames')

  @classmethod
  def published(cls) -> 'FrameCountOptions':
    """The numbers of the release."""
    return FrameCountOptions(
      rate=1.0, min_frames=2, max_frames=64, image_max_pixels=1048576, think_prefix='<think>\n'
    )


@dataclasses.dataclass(frozen=True)
class FrameOptions(FrameCountOptions):
  """How SFT samples frames."""

  min_pixels: int  # area of a frame, at least
  max_pixels: int  # area of a frame, at most


class Frames(Protocol):
  """A decoder: a DecodePool, or a FrameBank on top of one."""

  def frames_sync(
    self, path: str, seconds: Sequence[float], min_pixels: int, max_pixels: int
  ) -> Clip:
    """Returns the frames on screen at `seconds`."""
    ...

  def probe_sync(self, path: str) -> VideoInfo:
    """Returns duration, frame rate and size."""
    ...


def frame_times(ref: VideoRef, info: VideoInfo, options: FrameOptions) -> np.ndarray:
  """Returns float64[n], the times in seconds at which frames are sampled.

  A window is sampled as a sub-agent samples it, a whole video as an overview with budget K.
  """
  if ref.start is None and ref.end is None:
    budget = ref.num_frames or min(options.max_frames, max(1, int(info.duration * options.rate)))
    return sampling.overview_times(info.duration, budget, info.fps)
  start = min(max(ref.start or 0.0, 0.0), info.duration)
  end = min(info.duration if ref.end is None else ref.end, info.duration)
  if start >= end:
    raise MediaError(
      f'{ref.path}: got the window {ref.start}..{ref.end} s of a video of {info.duration:.1f} s, '
      'wanted start < end inside it; fix the row',
      'window',
    )
  return sampling.window_times(
    Window(start, end, ref.num_frames),
    fps=options.rate,
    min_frames=options.min_frames,
    max_frames=options.max_frames,
  )


def decoded(
  frames: Frames, options: FrameOptions, repeated: Callable[[int], None] | None = None
) -> Media:
  """Returns a function that loads media: frames with their times, or a resized image.

  Each frame of a video occurs once. `repeated` is called with the number of repeated frames that
  were removed from a video.
  """

  def media(ref: VideoRef | ImageRef) -> list[template.Piece]:
    if isinstance(ref, ImageRef):
      return [_image(ref, options)]
    info = _ask_twice(frames.probe_sync, ref.path)
    times = frame_times(ref, info, options).tolist()
    clip = _ask_twice(frames.frames_sync, ref.path, times, options.min_pixels, options.max_pixels)
    clip, left_out = sampling.once(clip, times, _since(ref))
    if repeated is not None:
      repeated(left_out)
    return template.frame_pieces(clip.frames, clip.seconds)

  return media


def media_sizes(frames: Frames, options: FrameOptions) -> Media:
  """Returns a function that gives media of the right sizes without decoding; all pixels are 0.

  It serves to measure lengths. At a constant frame rate the times are right, too. At a varying rate
  there may be more frames than `decoded` gives, because repeats are known only after decoding.
  """

  def media(ref: VideoRef | ImageRef) -> list[template.Piece]:
    if isinstance(ref, ImageRef):
      height, width = image_files.size(ref.path)
      return [
        np.broadcast_to(
          np.uint8(0),
          (*patches.target_size(height, width, options.min_pixels, options.image_max_pixels), 3),
        )
      ]
    info = _ask_twice(frames.probe_sync, ref.path)
    times = frame_times(ref, info, options)
    # float64[n], the label of the frame on screen at each time, at a constant frame rate
    shown = np.floor(np.minimum(times, info.duration - 1 / info.fps) * info.fps + 1e-6) / info.fps
    if len(times) > info.num_frames:
      shown = (
        np.unique(shown)[-info.num_frames :]
        if ref.start is None and ref.end is None
        else shown[-info.num_frames :]
      )
    elif ref.start is not None or ref.end is not None:
      shown = np.where(shown < _since(ref), times, shown)
    # broadcast zeros take no memory
    size = patches.target_size(info.height, info.width, options.min_pixels, options.max_pixels)
    return template.frame_pieces([np.broadcast_to(np.uint8(0), (*size, 3))] * len(shown), shown)

  return media


def _since(ref: VideoRef) -> float:
  """Returns the start of a row's window in seconds."""
  return max(ref.start or 0.0, 0.0)


def sample(
  tok: ChatTokenizer, conversation: Conversation, media: Media, options: FrameOptions
) -> Sample:
  """Converts one conversation to tokens, frames and extras {'mask': float32[n]}.

  Image placeholders are not expanded. The mask is 1 on every token of an assistant turn after its
  header, including the pinned prefix and `<|im_end|>`, unless the row masks the turn. It is 0
  elsewhere. A system text without a `<tools>` block is replaced by the project's system prompt.

  Raises:
    MediaError: a video or an image cannot be read.
    ChatError: an assistant turn holds an image.
  """
  messages = [
    (message.role, _pieces(message.role, message.parts, media)) for message in conversation.messages
  ]
  segments = spans.conversation(
    tok, messages, options.think_prefix, [message.is_target for message in conversation.messages]
  )
  ids = np.concatenate([np.zeros(0, np.int32), *(segment.ids for segment in segments)])
  images = tuple(image for segment in segments for image in segment.images)
  return Sample(ids, images, {MASK: spans.sampled_mask(segments).astype(np.float32)})


def _pieces(
  role: str, parts: Sequence[str | VideoRef | ImageRef], media: Media
) -> list[template.Piece]:
  if role == 'system':
    return [prompts.system(''.join(part for part in parts if isinstance(part, str)))]
  return [piece for part in parts for piece in ([part] if isinstance(part, str) else media(part))]


def _ask_twice(ask: Callable, *arguments):
  """Calls `ask`, and calls it once more if a worker timed out or crashed.

  This way a short overload of the machine does not drop a sample.
  """
  try:
    return ask(*arguments)
  except MediaError as error:
    if error.reason not in PASSING:
      raise
    return ask(*arguments)


def _image(ref: ImageRef, options: FrameOptions) -> np.ndarray:
  """Reads an image and resizes it once; returns uint8[H, W, 3]."""
  pixels = image_files.read(ref.path)
  height, width = pixels.shape[:2]
  size = patches.target_size(height, width, options.min_pixels, options.image_max_pixels)
  return patches.resize(pixels[None], size)[0]
