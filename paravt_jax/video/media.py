"""What a reader says of a file, and the ways in which a file fails."""

import dataclasses

import av.error

from paravt_jax.errors import MediaError

# All that PyAV, numpy and decord were seen to raise on damaged bytes.
FAULTS = (
  av.error.FFmpegError,
  OSError,
  ValueError,
  ArithmeticError,
  LookupError,
  MemoryError,
  BufferError,
  RuntimeError,
)


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a file holds of its video stream."""

  duration: float  # seconds
  fps: float  # num_frames / duration
  num_frames: int  # frames that are shown
  width: int  # before any resize
  height: int


def missing(path: str) -> MediaError:
  """No file is there."""
  text = f'{path}: no such file, wanted a video; check the media root (data.media_root)'
  return MediaError(text, 'missing')


def not_video(path: str, got: str) -> MediaError:
  """Nothing in the file is read as a video."""
  return MediaError(
    f'{path}: got {got}, wanted a video file; fetch it again or drop the row', 'not_video'
  )


def unknown_codec(path: str, tag: str) -> MediaError:
  """The file may be whole, but no decoder knows its codec."""
  text = (
    f'{path}: got a video of codec {tag}, wanted one that the bundled FFmpeg decodes; '
    'convert it to H.264 or drop the row'
  )
  return MediaError(text, 'not_video')


def no_frames(path: str) -> MediaError:
  """The stream is there, and no frame comes out of it."""
  text = (
    f'{path}: got a video stream without frames, wanted at least one; '
    'fetch the file again or drop the row'
  )
  return MediaError(text, 'no_frames')


def broken(path: str, got: str) -> MediaError:
  """A part of the file cannot be shown. `got` says what is broken and at which second."""
  text = (
    f'{path}: {got}; wanted every frame that is asked for: ask for other times, '
    'repair the file (remux it to mp4, or get all of it) or drop the row'
  )
  return MediaError(text, 'decode')


def one_line(error: BaseException) -> str:
  """The error's first line, or its type where it says nothing."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)
