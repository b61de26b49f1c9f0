"""Reads the frames of one open video file with PyAV. Runs inside the decoding workers.

The frame at time t is the frame on screen: the last one with a presentation time <= t. The result
is the same as in a decode of the whole file. A request decodes every frame from the key frame
before its first time on. If a frame is missing or damaged, decoding restarts one key frame earlier,
and then from the file's first packet. If that fails, too, the file is reported as broken.
"""

import bisect
import collections
import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import av
import av.container
import av.error
import av.logging
import av.stream
import numpy as np
from av.video.reformatter import VideoReformatter

from paravt_jax.video import media, orientation, survey
from paravt_jax.video.media import VideoInfo

# No format that opens other files or the network: a playlist with an mp4's name could otherwise
# read files outside the media root.
_CONTAINERS = (
  'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,ivf,'
  'mp3,wav,aac,flac'
)
_SEEK_PIXELS = 60_000  # a seek costs about as much as decoding these (15 frames of 64x64)
_HELD = 32  # maximum number of frames that a decoder delays to order them
_ROUNDING = 1e-6  # seconds: tolerates float rounding of a time that came from a frame


@dataclasses.dataclass(frozen=True)
class _Damage:
  """A failure while decoding. Times are in ticks."""

  since: float  # frames may be missing from this time on
  pts: float  # of the packet or frame that failed; the next key frame is intact again
  what: str
  final: bool  # decoding again cannot help


@dataclasses.dataclass(frozen=True)
class _Frame:
  """A decoded frame, or the end of the stream."""

  pts: float  # ticks; infinite at the end
  frame: av.VideoFrame | None  # None at the end
  fault: _Damage | None  # damage of this frame
  before: _Damage | None  # damage between the previous frame and this one


class PyavReader:
  """Reads frames of one file by time.

  Attributes:
    info: VideoInfo.
    interval: nominal time between two frames, seconds.

  Raises:
    MediaError: reason missing, not_video, no_frames or decode.
  """

  def __init__(self, path: str):
    self.path = path
    self._converter = VideoReformatter()
    self._container, self._stream = _open(path)
    self._base = survey.seconds_per_tick(self._stream)
    self._first: av.VideoFrame | None = None
    try:
      self._measure()
    except media.FAULTS as error:
      raise media.broken(path, f'its packets cannot be read ({media.one_line(error)})') from error

  def close(self):
    """Closes the file."""
    self._container.close()

  def _measure(self):
    """Sets info, interval, start and survey from the file's index, or by reading all packets."""
    container, stream = self._container, self._stream
    kind = container.format.name
    told = stream.start_time  # reading packets may change it
    # does the container have a usable index?
    is_mov = kind.startswith('mov')
    fragmented, cut = survey.fragments(self.path) if is_mov else (False, False)
    may_index = is_mov and not fragmented
    if kind == 'avi':
      may_index = not stream.codec_context.has_b_frames and not survey.avi_is_cut(self.path)
    stamps = survey.index_stamps(stream) if may_index else None
    self._indexed = stamps is not None
    self._whole = self._indexed and not cut
    # survey the packets or the index, and find the first frame on the way
    if stamps is not None:
      packets = self._find_first_frame(container.demux(stream))
      self._survey = survey.by_index(self.path, stream, stamps, packets)
      while self._first is None and next(packets, None) is not None:
        continue
      if stream.codec_context.has_b_frames and not cut:
        self._survey = survey.with_tail(self._survey, self._tail(stamps[-1]))
    else:
      found = survey.collect(self._find_first_frame(container.demux()), stream)
    if self._first is None:
      raise media.no_frames(self.path)
    # the time of the first frame, then the properties that follow
    first = _time(self._first, None)
    if stamps is None:
      self._survey = survey.by_packets(container, stream, found, first)
    if self._survey.ordered:
      self._start = self._survey.ordered[0]
    else:
      self._start = first if told is None else max(first, told)
    if fragmented and cut:
      raise media.broken(
        self.path, f'the file ends inside a fragment, after {self._seconds(self._survey.end):.3f} s'
      )
    self._key_times = {pts for pts, _ in self._survey.keys}
    self.interval = self._survey.interval * self._base
    duration = max(self._seconds(self._survey.claimed_end), self.interval, 1e-6)
    height, width = orientation.upright_size(self._first)
    self.info = VideoInfo(
      duration, self._survey.count / duration, self._survey.count, width, height
    )

  def _tail(self, time: int) -> Iterator[av.Packet]:
    """Yields the packets from the last key frame on; no packets if the seek fails."""
    try:
      self._container.seek(time, stream=self._stream, backward=True)
      yield from self._packets()
    except av.error.FFmpegError:
      return

  def _find_first_frame(self, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
    """Yields the packets unchanged, and decodes them until the first frame comes out.

    The stream starts at that frame. Some decoders also read parameters here that they need after a
    seek.
    """
    for packet in packets:
      if self._first is None and packet.stream_index == self._stream.index:
        try:
          frames = self._stream.codec_context.decode(packet if packet.size else None)
        except av.error.FFmpegError:
          frames = []  # packets before the first decodable frame
        self._first = next(iter(frames), None)
      yield packet

  def read(self, seconds: Sequence[float]) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yields (index into seconds, frame's time, uint8[H, W, 3] RGB) for every time, in time order.

    Raises:
      MediaError: 'decode' when a requested frame is damaged, missing or after the file's end.
    """
    last = self.info.duration
    targets = [
      self._start + math.floor((min(max(t, 0.0), last) + _ROUNDING) / self._base + 1e-3)
      for t in seconds
    ]
    self._check_there(targets)
    try:
      for run in self._runs(targets):
        yield from self._read_run(run, targets)
    except media.FAULTS as error:
      raise media.broken(self.path, f'decoding failed ({media.one_line(error)})') from error

  def _check_there(self, targets: list[int]):
    """Raises MediaError if the survey shows that a target frame is not in the file."""
    found = self._survey
    end, reach = min(found.end, found.complete), max(targets, default=self._start)
    is_behind = (reach - end) * self._base > survey.slack(self.info.duration)
    if reach >= found.complete or (not self._indexed and is_behind):
      raise media.broken(self.path, self._describe_end(end))
    for since, until in found.holes:
      if any(since <= target < until for target in targets):
        behind = f'{self._seconds(min(until, found.end)):.3f} s'
        text = f'packets are lost or damaged between {self._seconds(since):.3f} s and {behind}'
        raise media.broken(self.path, text)

  def _read_run(
    self, run: list[int], targets: list[int]
  ) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yields the frames of one run of targets, as `read` does.

    Tries the nearest key frame, then an earlier one, then the whole file.
    """
    done = 0
    for attempt in range(3):
      from_first = attempt == 2
      items = (
        self._from_first()
        if from_first
        else self._from_key(targets[run[done]], earlier=attempt == 1)
      )
      last, image = None, np.zeros(0)
      for shown, fault in self._match(items, [targets[i] for i in run[done:]]):
        if fault is not None and (from_first or fault.final):
          raise media.broken(self.path, fault.what)
        if fault is not None or shown.frame is None:
          break
        if shown is not last:
          last, image = shown, self._image(shown.frame)
        yield run[done], self._seconds(shown.pts), image
        done += 1
      if done == len(run):
        return
    raise media.broken(
      self.path, f'no frame comes out of the decoder for {self._seconds(targets[run[done]]):.3f} s'
    )

  def _match(
    self, items: Iterator[_Frame], targets: list[int]
  ) -> Iterator[tuple[_Frame, _Damage | None]]:
    """Yields (frame on screen, its damage or None) for each target, in ascending order."""
    shown, at = None, 0
    for item in items:
      while at < len(targets) and targets[at] < item.pts:
        if shown is None:
          return
        fault = self._check_stream_end(shown, targets[at]) if item.frame is None else None
        fault = fault or shown.fault
        if fault is None and item.before is not None:
          fault = item.before if self._is_lost(shown, targets[at], item.before) else None
        yield shown, fault
        at += 1
      if at == len(targets):
        return
      # a frame behind later ones has a damaged time, and is not on screen at any of the targets left
      if shown is None or item.pts >= shown.pts:
        shown = item

  def _is_lost(self, shown: _Frame, target: int, damage: _Damage) -> bool:
    """Returns whether the frame at the target may be lost, between two decoded frames."""
    is_after = target >= shown.pts + round(self._survey.interval)
    return damage.pts <= target or (is_after and damage.since <= target)

  def _check_stream_end(self, shown: _Frame, target: int) -> _Damage | None:
    """Returns a _Damage if the stream ends well before the target, else None."""
    length = shown.frame.duration if shown.frame is not None else 0
    end = max(
      shown.pts + (length or 0),
      min(self._survey.end, shown.pts + 2 * self._survey.interval),
    )
    allowed = survey.WHOLE if self._whole else survey.slack(self.info.duration)
    if (target - end) * self._base <= allowed:
      return None
    return _Damage(end, end, self._describe_end(end), final=True)

  def _describe_end(self, end: float) -> str:
    promised = f'the header promises {self.info.duration:.3f} s'
    return f'the stream ends at {self._seconds(end):.3f} s, but {promised}'

  def _seconds(self, pts: float) -> float:
    return (pts - self._start) * self._base

  def _runs(self, targets: list[int]) -> list[list[int]]:
    """Returns the indices of the targets in time order, grouped into runs without a seek.

    A run continues past a key frame if decoding is cheaper than a seek. For very small frames it
    always is.
    """
    order = sorted(range(len(targets)), key=targets.__getitem__)
    if self._is_linear():
      return [order] if order else []
    context = self._stream.codec_context
    per_pixel = self.info.fps * self._base * context.width * context.height
    runs: list[list[int]] = []
    reached, current = 0, None
    for i in order:
      key = self._key(targets[i])
      if key != current and (current is None or (key - reached) * per_pixel > _SEEK_PIXELS):
        runs.append([])
      runs[-1].append(i)
      reached, current = targets[i], key
    return runs

  def _is_linear(self) -> bool:
    """Returns whether times do not identify packets, so every request starts at the first one."""
    return bool(self._survey.ordered) or len(self._survey.parts) > 1

  def _key(self, target: int) -> int:
    """Returns the approximate time of the key frame before `target`; used only to plan seeks."""
    if not self._indexed:
      return self._survey.keys[self._key_index(target)][0] if self._survey.keys else self._start
    entries = self._stream.index_entries
    return entries[max(0, entries.search_timestamp(target, backward=True))].timestamp

  def _key_index(self, target: int) -> int:
    return max(0, bisect.bisect_right(self._survey.keys, (target, math.inf)) - 1)

  def _from_first(self) -> Iterator[_Frame]:
    """Yields the frames of the whole file."""
    container, stream = _open(self.path)
    with contextlib.closing(container):
      yield from self._decode(stream, container.demux(stream), from_first=True)

  def _from_key(self, target: int, earlier: bool) -> Iterator[_Frame]:
    """Yields frames from the last key frame at or before `target` on; no frames if a seek fails.

    With `earlier`, starts at the key frame before that one.
    """
    if self._is_linear() or not (self._indexed or self._survey.keys):
      return
    if self._indexed:
      found = self._seek(target)
      if found is not None and (found[1] > target or earlier):
        key, pts = found
        found = self._seek(min(pts, key.dts or pts) - 1)
    else:
      found = self._seek(self._survey.keys[max(0, self._key_index(target) - int(earlier))][1])
    if found is None or found[1] > target:
      return
    key, pts = found
    rest = itertools.chain([key], self._packets())
    begun = key.is_discard  # the decoder never outputs a hidden key frame
    for item in self._decode(self._stream, rest, from_first=False):
      if item.frame is None or item.pts >= pts:
        if not begun and (item.frame is None or not item.frame.key_frame):
          return  # the decoder output a frame here, but does not mark it as a key frame
        begun = True
        yield item

  def _seek(self, time: int) -> tuple[av.Packet, int] | None:
    """Returns (first key packet from `time` on, its presentation time), or None.

    None means that the seek failed or that the packet has no presentation time.
    """
    try:
      self._container.seek(time, stream=self._stream, backward=True)
      for packet in self._packets():
        # after a seek, a program stream's times may be wrong; skip such key frames
        if packet.size and packet.is_keyframe and (self._indexed or packet.pts in self._key_times):
          return None if packet.pts is None else (packet, packet.pts)
    except av.error.FFmpegError:
      return None
    return None

  def _packets(self) -> Iterator[av.Packet]:
    return self._container.demux(self._stream)

  def _decode(
    self, stream: av.VideoStream, packets: Iterator[av.Packet], from_first: bool
  ) -> Iterator[_Frame]:
    """Yields all frames of the packets, hidden ones included, and continues after damage."""
    clock = _Clock(self._survey) if from_first else None
    damage: _Damage | None = None
    reached: int | None = None
    whole: collections.deque[int] = collections.deque(maxlen=_HELD)  # sent before the damage
    # if even the first frame is marked as damaged, the marks are ignored
    marks_count = not from_first or self._first is None or not _is_damaged(self._first)
    for packet, error in _each(packets):
      frames: list[av.VideoFrame] = []
      if error is None:
        if packet is not None and clock is not None:
          clock.set(packet)
        if packet is not None and damage is None and packet.pts is not None:
          whole.append(packet.pts)
        try:
          frames = stream.codec_context.decode(packet)
        except av.error.FFmpegError as fault:
          error = fault
      # label each frame with its time and the damage so far; an intact key frame ends the damage
      for frame in frames:
        pts = clock.time(frame) if clock is not None and clock.ordered else _time(frame, reached)
        before, fault = damage, None
        if damage is not None and frame.key_frame and pts > damage.pts and not _is_damaged(frame):
          damage = None
        if damage is not None and pts >= damage.since and pts not in whole:
          fault = damage
        elif marks_count and _is_damaged(frame):
          text = f'the frame at {self._seconds(pts):.3f} s is damaged'
          fault = _Damage(pts, pts, text, final=False)
        yield _Frame(pts, frame, fault, before)
        reached = pts
      # a new failure; errors before the first frame of the file do not count
      if error is not None and damage is None and (reached is not None or not from_first):
        time = packet.pts if packet is not None and packet.pts is not None else reached
        time = self._start if time is None else time
        text = f'decoding fails at {self._seconds(time):.3f} s ({media.one_line(error)})'
        early = packet.dts if packet is not None and packet.dts is not None else time
        with contextlib.suppress(ValueError):
          whole.remove(time)
        damage = _Damage(min(early, time), time, text, final=False)
    yield _Frame(math.inf, None, None, damage)

  def _image(self, frame: av.VideoFrame) -> np.ndarray:
    """Returns the upright image uint8[H, W, 3].

    It uses one thread, because several threads take ten times as long on tiny frames.
    """
    return orientation.upright(
      frame, self._converter.reformat(frame, format='rgb24', threads=1).to_ndarray()
    )


class _Clock:
  """Assigns times to frames when the clock restarts or packets have no times."""

  def __init__(self, found: survey.Survey):
    self.ordered = bool(found.ordered)
    self._survey = found
    self._packet = self._part = self._frame = 0

  def set(self, packet: av.Packet):
    """Shifts the packet's times to a single clock for the whole file."""
    parts = self._survey.parts
    if self._part + 1 < len(parts) and self._packet >= parts[self._part + 1][0]:
      self._part += 1
    self._packet += 1
    shift = parts[self._part][1]
    if shift:
      packet.pts = None if packet.pts is None else packet.pts + shift
      packet.dts = None if packet.dts is None else packet.dts + shift

  def time(self, frame: av.VideoFrame) -> int:
    """Returns the next time in `ordered`, since the decoder outputs frames in order."""
    times = self._survey.ordered
    self._frame += 1
    if self._frame <= len(times):
      return times[self._frame - 1]
    return times[-1] + round(self._survey.interval) * (self._frame - len(times))


def _open(path: str) -> tuple[av.container.InputContainer, av.VideoStream]:
  """Returns (the opened file at its first packet, its first decodable video stream).

  Cover images do not count as video streams.
  """
  try:
    options = {'protocol_whitelist': 'file', 'format_whitelist': _CONTAINERS}
    container = av.open(path, options=options, metadata_errors='replace')
  except FileNotFoundError as error:
    raise media.missing(path) from error
  except media.FAULTS as error:
    raise media.not_video(path, media.one_line(error)) from error
  covers = av.stream.Disposition.attached_pic
  streams = [stream for stream in container.streams.video if not stream.disposition & covers]
  if not streams:
    raise media.not_video(path, f'no video stream among {len(container.streams)} streams')
  known = [stream for stream in streams if stream.codec_context is not None]
  if not known:
    raise media.unknown_codec(path, _tag(container))
  known[0].codec_context.thread_count = 1
  return container, known[0]


def _each(
  packets: Iterator[av.Packet],
) -> Iterator[tuple[av.Packet | None, av.error.FFmpegError | None]]:
  """Yields (packet, None) for each packet with data, and (None, None) at the end.

  If demuxing fails, it yields (None, error) before the end.
  """
  try:
    for packet in packets:
      if packet.size:
        yield packet, None
  except av.error.FFmpegError as error:
    yield None, error
  yield None, None


def _is_damaged(frame: av.VideoFrame) -> bool:
  """Returns whether the decoder marked the frame as damaged."""
  return frame.is_corrupt


def _time(frame: av.VideoFrame, reached: int | None) -> int:
  """Returns the frame's presentation time in ticks.

  Without one, returns its decoding time if that is later than `reached`, else `reached` plus the
  frame's duration.
  """
  if frame.pts is not None:
    return frame.pts
  if frame.dts is not None and (reached is None or frame.dts > reached):
    return frame.dts
  return 0 if reached is None else reached + (frame.duration or 1)


def _tag(container: av.container.InputContainer) -> str:
  """Returns the container's name for the codec of its first video stream, from PyAV's dump."""
  level = av.logging.get_level()
  av.logging.set_level(av.logging.INFO)  # at a lower level the dump is empty
  try:
    told: Any = container  # av's stub lacks dumps_format
    found = re.search(r'Video: (.+?)(?:, |\n|$)', told.dumps_format())
  finally:
    av.logging.set_level(level)
  return found.group(1) if found else 'unknown'
