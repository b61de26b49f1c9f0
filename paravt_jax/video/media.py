"""Facts about a video file, and the errors of unreadable files."""

import dataclasses

import av.error

from paravt_jax.errors import MediaError

# The exceptions that PyAV, numpy and decord are known to raise on damaged bytes.
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
  """Properties of a file's video stream."""

  duration: float  # seconds
  fps: float  # num_frames / duration
  num_frames: int  # displayed frames
  width: int  # before any resize
  height: int


def missing(path: str) -> MediaError:
  """Returns the error for a file that does not exist."""
  text = f'{path}: no such file, wanted a video; check the media root (data.media_root)'
  return MediaError(text, 'missing')


def not_video(path: str, got: str) -> MediaError:
  """Returns the error for a file without a readable video stream."""
  return MediaError(
    f'{path}: got {got}, wanted a video file; fetch it again or drop the row', 'not_video'
  )


def unknown_codec(path: str, tag: str) -> MediaError:
  """Returns the error for a file whose codec has no decoder; the file may be intact."""
  text = (
    f'{path}: got a video of codec {tag}, wanted one that the bundled FFmpeg decodes; '
    'convert it to H.264 or drop the row'
  )
  return MediaError(text, 'not_video')


def no_frames(path: str) -> MediaError:
  """Returns the error for a video stream from which no frame is decoded."""
  text = (
    f'{path}: got a video stream without frames, wanted at least one; '
    'fetch the file again or drop the row'
  )
  return MediaError(text, 'no_frames')


def broken(path: str, got: str) -> MediaError:
  """Returns the error for a partly damaged file.

  `got` says what is damaged and at which second.
  """
  text = (
    f'{path}: {got}; wanted every frame that is asked for: ask for other times, '
    'repair the file (remux it to mp4, or get all of it) or drop the row'
  )
  return MediaError(text, 'decode')


def one_line(error: BaseException) -> str:
  """Returns the error's first line, or the name of its type if it has no text."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)
