"""The process that cuts one video into clips. Started by `split.split`; writes a JSON line per clip
to standard output.

A window whose ends are key frames (of closed groups) is copied packet by packet; any other window
is encoded again, from frames at a constant rate. Either way the clip shows exactly [start, end) of
the video. The clips have no sound.
"""

import bisect
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Annotated, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from paravt_jax import files
from paravt_jax.data import provenance
from paravt_jax.errors import DataError, MediaError
from paravt_jax.longvideo_reason.items import Clip
from paravt_jax.options import POSITIVE, Options, from_, whole
from paravt_jax.video import orientation, readers

_COPYABLE = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm'
READ_RATE = 20e6  # bytes/s at least, of the disk: a whole file is read before its first clip
_ROUND = 1e-3  # seconds within which two times are one


@dataclasses.dataclass(frozen=True)
class CutOptions(Options):
  """How videos are cut into clips."""

  clip_seconds: Annotated[float, POSITIVE]  # length of a clip
  snap_seconds: Annotated[float, from_(0)]  # a cut moves to a key frame that near
  min_seconds: Annotated[float, from_(0)]  # a shorter rest joins the clip before it
  max_fps: Annotated[float, POSITIVE]  # of clips that are encoded again
  crf: Annotated[int, whole(0, 51)]  # of clips that are encoded again
  deadline_s: Annotated[float, POSITIVE]  # for each clip


@dataclasses.dataclass(frozen=True)
class Packets:
  """A stream's packets in short."""

  start: int  # presentation time of the first frame, in ticks
  base: float  # seconds per tick
  # ascending presentation times of key frames from which, and up to which, packets can be copied
  keys: tuple[int, ...]

  def seconds(self, pts: int) -> float:
    """Seconds from the video's start."""
    return (pts - self.start) * self.base


def windows(
  duration: float, keys: Sequence[float], options: CutOptions
) -> list[tuple[float, float]]:
  """[start, end) of each clip, in seconds, without gaps from 0 to the duration.

  Args:
    duration: of the video. keys: seconds at which packets may be cut, ascending. options: cuts lie
    at multiples of clip_seconds, or at the nearest of `keys` within snap_seconds of that.
  """
  cuts = [0.0]
  for i in range(1, math.ceil(duration / options.clip_seconds)):
    wanted = i * options.clip_seconds
    after = bisect.bisect_left(keys, wanted)
    near = min(
      keys[max(0, after - 1) : after + 1], key=lambda key: abs(key - wanted), default=math.inf
    )
    cut = near if abs(near - wanted) <= options.snap_seconds else wanted
    if cut > cuts[-1] + _ROUND:
      cuts.append(cut)
  if len(cuts) > 1 and duration - cuts[-1] < options.min_seconds:
    cuts.pop()
  return list(zip(cuts, [*cuts[1:], duration]))


def packets(path: str) -> Packets | None:
  """Returns where the file may be cut without encoding, or None if packets cannot be copied
  (format, edit list, rotation, no times).
  """
  try:
    with _open(path) as container:
      stream = container.streams.video[0]
      if stream.disposition & Disposition.attached_pic or stream.time_base is None:
        return None
      # presentation times and key frames, from the packets alone
      times = []
      keys = []
      opened = set()
      dated = False
      for packet in container.demux(stream):
        if not packet.size:
          continue
        if (
          packet.pts is None
          or packet.is_discard
          or packet.is_corrupt
          or (packet.dts is None and dated)
        ):
          return None
        dated = dated or packet.dts is not None
        times.append(packet.pts)
        if packet.is_keyframe:
          keys.append(packet.pts)
        elif keys and packet.pts < keys[-1]:
          opened.add(keys[-1])  # it refers to the group before: cutting here would lose it
      # one decoded frame shows whether the video is rotated
      container.seek(keys[0] if keys else 0, stream=stream)
      frame = next(container.decode(stream), None)
  except (FFmpegError, OSError, IndexError, ValueError):
    return None
  if not keys or frame is None or not orientation.is_upright(frame) or keys[0] != min(times):
    return None
  return Packets(min(times), float(stream.time_base), tuple(sorted(set(keys) - opened)))


def _open(path: str) -> InputContainer:
  options = {'protocol_whitelist': 'file', 'format_whitelist': _COPYABLE}
  return av.open(path, options=options, metadata_errors='replace')


def copy(path: str, start: int, end: int | None, target: pathlib.Path) -> int:
  """Copies the packets from the key frame at `start` up to the one at `end` (None: all) into an
  mp4; returns how many.

  Raises FFmpegError or ValueError when the codec does not go into an mp4.
  """
  with _open(path) as source, av.open(str(target), 'w', format='mp4') as out:
    stream = source.streams.video[0]
    copied = out.add_stream_from_template(stream)
    source.seek(start, stream=stream, backward=True)
    found: list[av.Packet] = []
    for packet in source.demux(stream):
      if not packet.size or (not found and packet.pts != start):
        continue
      if end is not None and packet.is_keyframe and (packet.pts or 0) >= end:
        break
      found.append(packet)
    for packet, dts in zip(found, _decoding_times(found)):
      packet.pts, packet.dts = cast(int, packet.pts) - start, dts - start
      packet.stream = copied
      out.mux(packet)
  return len(found)


def _decoding_times(found: Sequence[av.Packet]) -> list[int]:
  """Returns the decoding times of the packets. Matroska and MPEG-TS omit the first few, so these
  are computed backwards from the first known time.
  """
  known = next((i for i, packet in enumerate(found) if packet.dts is not None), None)
  if known is None:
    raise ValueError('no packet has a decoding time')
  step = max(1, found[known].duration or 1)
  first = cast(int, found[known].dts)
  return [
    cast(int, packet.dts) if i >= known else first - (known - i) * step
    for i, packet in enumerate(found)
  ]


def encode(
  reader: readers.PyavReader, window: tuple[float, float], target: pathlib.Path, options: CutOptions
) -> int:
  """Encodes [start, end) of the video at min(its rate, max_fps) frames/s as H.264; returns how many
  frames.

  Raises MediaError when a frame does not decode.
  """
  rate = Fraction(min(reader.info.fps, options.max_fps)).limit_denominator(1001)
  count = max(1, math.ceil((window[1] - window[0]) * rate - 1e-6))
  times = window[0] + np.arange(count) / float(rate)
  with av.open(str(target), 'w', format='mp4') as out:
    stream = None
    for i, _, image in reader.read(np.minimum(times, reader.info.duration).tolist()):
      height, width = (max(2, side // 2 * 2) for side in image.shape[:2])
      if stream is None:
        stream = out.add_stream(
          'libx264',
          rate=rate,
          options={'preset': 'veryfast', 'crf': str(options.crf), 'threads': '1'},
        )
        stream.height, stream.width, stream.pix_fmt = height, width, 'yuv420p'
        stream.codec_context.time_base = 1 / rate
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(_even(image)[:height, :width]), format='rgb24'
      )
      frame.pts, frame.time_base = i, 1 / rate
      out.mux(stream.encode(frame))
    if stream is not None:
      out.mux(stream.encode(None))
  return count


def _even(image: np.ndarray) -> np.ndarray:
  """Pads a side of one pixel to two, the minimum that the encoder accepts."""
  return np.pad(
    image, [(0, int(image.shape[0] == 1)), (0, int(image.shape[1] == 1)), (0, 0)], mode='edge'
  )


def cut(path: str, folder: pathlib.Path, options: CutOptions) -> Iterator[Clip]:
  """Cuts a video into clips below `folder`, yielding each when its file is complete. Raises
  MediaError.
  """
  reader = readers.PyavReader(path)
  table = packets(path)
  ticks = {} if table is None else {round(table.seconds(key), 6): key for key in table.keys}
  duration = reader.info.duration
  found = windows(duration, list(ticks), options)
  for number, (start, end) in enumerate(found):
    target = folder / f'{number:05d}.mp4'
    last = number == len(found) - 1
    begin, stop = ticks.get(round(start, 6)), None if last else ticks.get(round(end, 6))
    with files.replacing(target, sync=False) as out:
      partial = pathlib.Path(out.name)
      copied = (
        begin is not None
        and (last or stop is not None)
        and _try_copy(path, (begin, stop), end - start, partial)
      )
      if not copied:
        encode(reader, (start, end), partial, options)
    yield Clip(round(start, 6), round(end, 6), target.name, copied)


def _try_copy(path: str, ends: tuple[int, int | None], length: float, target: pathlib.Path) -> bool:
  """Returns whether copying worked and the copy, read again, has the expected length."""
  try:
    count = copy(path, *ends, target)
    reader = readers.PyavReader(str(target))
    info = reader.info
    reader.close()
  except (FFmpegError, OSError, ValueError, MediaError):
    return False
  return count == info.num_frames and abs(info.duration - length) <= 1.5 / info.fps + _ROUND


def main(path: str, folder: str, options: CutOptions, parent: int) -> None:
  """Writes JSON lines: {identity}, {clip} each, then {duration}; or {error, reason}. The process
  exits when it exceeds its time limit or its parent is gone.
  """
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  say = lambda value: print(json.dumps(value), flush=True)
  target = pathlib.Path(folder)
  try:
    say({'identity': provenance.identity(path)})
    signal.setitimer(
      signal.ITIMER_REAL, 2 * (options.deadline_s + os.path.getsize(path) / READ_RATE)
    )
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    duration = 0.0
    for clip in cut(path, target, options):
      signal.setitimer(signal.ITIMER_REAL, 2 * options.deadline_s)
      say({'clip': dataclasses.asdict(clip)})
      duration = clip.end
      if os.getppid() != parent:
        return
    say({'duration': duration})
  except BrokenPipeError:
    return  # the parent no longer reads the pipe
  except MediaError as error:
    say({'error': str(error), 'reason': error.reason})
  except DataError as error:
    say({'error': str(error), 'reason': 'missing'})
  except OSError as error:
    say({'error': str(error), 'reason': 'disk', 'errno': error.errno})
