"""Measures a video stream from its index, or in one pass over the file's packets.

The header's claims (duration, number of frames) are compared with the actual packets.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import av
import av.container
import av.error
import numpy as np

# FFmpeg's thresholds, in seconds: a clock restarts if the decoding time jumps back by _RESTART or,
# in some formats, ahead by _LEAP
_RESTART = 0.1
_LEAP = 10.0
_LEAPING = ('mpegts', 'mpeg')
# formats whose headers state a duration; in other formats it is measured
_CLAIMING = ('matroska', 'mov', 'avi', 'flv', 'asf', 'ivf')
WHOLE = 1.0  # seconds by which a header may overstate the length of an intact file
_SAMPLE = 100  # packets from which the frame interval is measured when there is an index
_RESYNCING = ('matroska', 'flv')  # after damage, FFmpeg continues at the next valid data
_SKIPPED = 100  # bytes between two packets, more than headers take
_DELAY = 3  # frames that a decoder may delay to order them


@dataclasses.dataclass(frozen=True)
class Survey:
  """The measurements of a video stream. Times are in ticks of its time base."""

  count: int  # displayed frames
  end: int  # end of the last displayed frame
  claimed_end: int  # the header's end if it is later by more than rounding, else `end`
  interval: float  # nominal frame interval: the median time between two frames
  keys: tuple[tuple[int, int], ...]  # (presentation time, time to seek to) of key frames, ascending
  parts: tuple[tuple[int, int], ...]  # (first packet, ticks to add) for each start of the clock
  ordered: tuple[int, ...]  # frame times in display order if packets have none, else empty
  complete: float  # no frame is missing before this time; infinite unless the file was cut
  holes: tuple[tuple[int, float], ...]  # (start, end) of lost packets, where frames are wrong


def seconds_per_tick(stream: av.VideoStream) -> float:
  """Returns the stream's time base, in seconds. Raises ValueError if it has none."""
  base = stream.time_base
  if base is None:
    raise ValueError('its stream has no time base')
  return float(base)


def slack(seconds: float) -> float:
  """Returns the seconds by which a header may overstate the length of an intact file.

  A larger difference means that the file was cut short.
  """
  return min(1.0, max(0.25, 0.05 * seconds))


def fragments(path: str) -> tuple[bool, bool]:
  """Returns (whether an mp4 has fragments, whether its last box extends past the file's end)."""
  size, at, found = os.path.getsize(path), 0, False
  with open(path, 'rb') as file:
    while at + 8 <= size:
      file.seek(at)
      head = file.read(16)
      length, kind = int.from_bytes(head[:4], 'big'), head[4:8]
      if length == 1:
        length = int.from_bytes(head[8:], 'big')
      found = found or kind == b'moof'
      if length == 0:  # the box extends to the end of the file
        return found, False
      if length < 8:
        break
      at += length
  return found, at > size


def avi_is_cut(path: str) -> bool:
  """Returns whether an AVI's first list of chunks extends past the file's end."""
  with open(path, 'rb') as file:
    head = file.read(8)
  return head[:4] == b'RIFF' and int.from_bytes(head[4:], 'little') + 8 > os.path.getsize(path)


def index_end(stream: av.VideoStream, path: str) -> float:
  """Returns the decoding time (ticks) of the first packet that extends past the file's end.

  Returns infinity if there is no such packet.
  """
  size = os.path.getsize(path)
  lost = (e.timestamp for e in stream.index_entries if e.pos + e.size > size)
  return min(lost, default=math.inf)


def index_stamps(stream: av.VideoStream) -> list[int] | None:
  """Returns the decoding times of the displayed packets from the index.

  Returns None if the index is missing, out of order, or covers too little of the stream.
  """
  entries, base = stream.index_entries, seconds_per_tick(stream)
  if len(entries) < 2 or not stream.duration or stream.start_time is None:
    return None
  stamps = [entry.timestamp for entry in entries if not entry.is_discard]
  if len(stamps) < 2 or any(a > b for a, b in itertools.pairwise(stamps)):
    return None
  length = stream.duration * base
  container: Any = stream.container  # av's stub does not say that it is open for reading
  if (container.duration or 0) / 1e6 - length > slack(length):
    return None  # the last frame may be long, and only its packet has its time
  covered = (stamps[-1] - stamps[0]) * base
  return stamps if length - covered <= WHOLE + length / len(stamps) else None


def by_index(
  path: str, stream: av.VideoStream, stamps: list[int], packets: Iterator[av.Packet]
) -> Survey:
  """Returns the survey of a file with an index.

  The frame interval is measured on the presentation times of the first `packets`.
  """
  times = []
  for packet in packets:
    if packet.size and packet.pts is not None and not packet.is_discard:
      times.append(packet.pts)
    if len(times) >= _SAMPLE:
      break
  length = stream.duration or 0  # with `index_stamps` there is one, and a start
  end = (stream.start_time or 0) + length
  interval = _interval(times, length / len(stamps))
  complete = index_end(stream, path)
  return Survey(len(stamps), end, end, interval, (), ((0, 0),), (), complete, ())


def with_tail(found: Survey, packets: Iterator[av.Packet]) -> Survey:
  """Returns the survey with a corrected end if the last packets end later than the index.

  An index contains only decoding times. They do not show that the last frame is displayed late.
  """
  shown = [p.pts for p in packets if p.size and p.pts is not None and not p.is_discard]
  # the last packet's length is not used: it may include a gap before the packet
  end = max(shown, default=0) + round(found.interval)
  if end - found.end <= 2 * found.interval:
    return found
  return dataclasses.replace(found, end=end, claimed_end=end)


class Row(NamedTuple):
  """The facts about one packet. Times are in ticks, None if the container does not store them."""

  pts: int | None
  dts: int | None
  length: int
  is_key: bool
  is_shown: bool
  is_marked: bool  # whether the demuxer marked it as damaged
  skipped: int  # bytes between this packet and the next one


@dataclasses.dataclass(frozen=True)
class Packets:
  """The facts about all packets of a file."""

  rows: list[Row]  # packets of the video stream, in stored order
  others_end: float  # end of the packets of the other streams, seconds


def collect(packets: Iterator[av.Packet], stream: av.VideoStream) -> Packets:
  """Reads all packets, up to the end or to damage that stops the demuxer."""
  rows, others = [], 0.0
  codec, reached = stream.codec_context.name, None
  try:
    for packet in packets:
      if not packet.size:
        continue
      if packet.pos is not None and packet.pos >= 0:
        skipped = 0 if reached is None else packet.pos - reached
        if rows and skipped > rows[-1].skipped:
          rows[-1] = rows[-1]._replace(skipped=skipped)
        reached = packet.pos + packet.size
      if packet.stream_index == stream.index:
        shown = not packet.is_discard and _is_shown(packet, codec)
        times = packet.pts, packet.dts, packet.duration or 0
        rows.append(Row(*times, packet.is_keyframe, shown, packet.is_corrupt, 0))
      elif packet.pts is not None:
        others = max(others, float((packet.pts + (packet.duration or 0)) * packet.time_base))
  except av.error.FFmpegError:
    return Packets(rows, others)
  return Packets(rows, others)


def by_packets(
  container: av.container.InputContainer, stream: av.VideoStream, packets: Packets, first: int
) -> Survey:
  """Returns the survey of a file from all its packets (at least one).

  `first` is the time of the first displayed frame, in ticks.
  """
  base, context, rows = seconds_per_tick(stream), stream.codec_context, packets.rows
  name = container.format.name
  # frame times in ticks, on one clock
  tick = max(1, round(1 / float(stream.average_rate or stream.guessed_rate or 25) / base))
  ordered: tuple[int, ...] = ()
  if _times_are_missing(rows) or (name == 'avi' and context.has_b_frames):
    ordered = _frame_times([row for row in rows if row.pts is None or row.pts >= first], tick)
  parts = ((0, 0),) if ordered else _parts(rows, base, name in _LEAPING, tick)
  rows = _shift(rows, parts)
  times = ordered or sorted(
    {row.pts for row in rows if row.is_shown and row.pts is not None and row.pts >= first}
  )
  # frame interval, end of the last frame, key frames
  interval = _interval(times, tick)
  ends = [
    row.pts + (row.length or round(interval))
    for row in rows
    if row.is_shown and row.pts is not None
  ]
  end = times[-1] + max(1, round(interval)) if ordered or not ends else max(ends)
  keys = sorted(
    (row.pts, row.pts if row.dts is None else row.dts)
    for row in rows
    if row.is_key and row.pts is not None
  )
  # compare the header's end with the packets
  claimed, complete = end, math.inf
  if len(parts) == 1:
    start = ordered[0] if ordered else first
    claimed = _declared_end(container, stream, start, end, packets.others_end, interval)
  if claimed > end:
    is_mov = name.startswith('mov')  # its tables list all packets, so also the lost ones
    complete = index_end(stream, container.name) if is_mov else _complete(rows, ordered, interval)
  holes = () if ordered else _holes(rows, interval, any(word in name for word in _RESYNCING))
  return Survey(
    max(1, len(times)), end, claimed, interval, tuple(keys), parts, ordered, complete, holes
  )


def _complete(rows: list[Row], ordered: Sequence[int], interval: float) -> float:
  """Returns the time (ticks) before which no frame of a cut file is missing.

  The lost packets have later decoding times than the last one that was read.
  """
  if ordered:
    return ordered[max(0, len(ordered) - 1 - _DELAY)]
  last = max((row.dts for row in rows if row.dts is not None), default=math.inf)
  return last + max(1, interval - 1)  # one tick less, as both times are rounded


def _holes(rows: list[Row], interval: float, may_skip: bool) -> tuple[tuple[int, float], ...]:
  """Returns (start, end) for each range of lost or damaged packets, up to the next key frame.

  may_skip: whether skipped bytes count as a loss if time is missing at the same place.
  """
  usual = float(np.median([row.skipped for row in rows])) if rows else 0.0
  found, since = [], None
  for at, row in enumerate(rows):
    if since is not None and row.is_key and row.pts is not None and row.pts > since:
      found.append((since, row.pts))
      since = None
    if since is not None or row.dts is None or row.pts is None:
      continue
    after = rows[at + 1] if at + 1 < len(rows) else None
    if after is None:
      since = row.pts if row.is_marked else None
    elif row.is_marked and not _is_joint(rows[at : at + 3], interval):
      since = row.dts
    elif may_skip and after.dts is not None and row.skipped > max(_SKIPPED, 10 * usual):
      since = row.dts if after.dts - row.dts > 1.5 * interval else None
  return (*found, *([] if since is None else [(since, math.inf)]))


def _is_joint(rows: list[Row], interval: float) -> bool:
  """Returns whether the first packet, which is marked, is intact because two streams join there.

  At a joint, one of the last two packets before a key frame is marked, and no time is missing.
  """
  first, *others = rows
  for steps, row in enumerate(others, 1):
    if row.is_key:
      if row.dts is None or first.dts is None:
        return False
      return row.dts - first.dts <= (steps + 0.5) * interval
  return False


def _declared_end(container, stream, start: int, end: int, others: float, interval: float) -> int:
  """Returns the header's end if no packet of any stream reaches it, else the stream's end."""
  base = seconds_per_tick(stream)
  # FFmpeg reduces an AVI's duration to fit the file's size, but not the number of frames
  if (
    container.format.name == 'avi'
    and avi_is_cut(container.name)
    and (start + stream.frames - end) * base > slack(stream.frames * base)
  ):
    return start + stream.frames
  if not container.duration or not any(word in container.format.name for word in _CLAIMING):
    return end
  claimed = container.duration / 1e6
  if container.format.name not in ('matroska,webm', 'flv'):  # their durations count from zero
    claimed += max(0, container.start_time or 0) / 1e6
  reached = max(end * base, others)
  allowed = max(slack(claimed), 1.5 * interval * base)
  return round(claimed / base) if claimed - reached > allowed else end


def _interval(times: Sequence[int], otherwise: float) -> float:
  """Returns the median distance of distinct times in ticks; `otherwise` below two times."""
  gaps = np.diff(np.unique(np.asarray(times, np.int64)))
  return float(np.median(gaps)) if len(gaps) else float(otherwise)


def _is_shown(packet: av.Packet, codec: str) -> bool:
  """Returns whether the packet contains a displayed frame.

  VP8 and VP9 also store hidden frames, which other frames refer to.
  """
  if codec not in ('vp8', 'vp9'):
    return True
  data = memoryview(packet)
  if codec == 'vp8':
    return bool(data[0] >> 4 & 1)
  if data[-1] & 0xE0 == 0xC0:
    return True  # a superframe: hidden frames and one displayed frame
  # header bits: marker (2), profile (2, or 3 in profile 3), show_existing, type, show_frame
  after = 4 + ((data[0] >> 4 & 3) == 3)
  shows_existing, shows_frame = data[0] >> (7 - after) & 1, data[0] >> (5 - after) & 1
  return bool(shows_existing or shows_frame)


def _times_are_missing(rows: list[Row]) -> bool:
  return sum(pts is None for pts, *_ in rows) * 2 > len(rows)


def _frame_times(rows: list[Row], tick: int) -> tuple[int, ...]:
  """Returns the frame times in display order; the decoder's next frame gets the next time.

  Falls back to multiples of `tick` if times are missing or repeated.
  """
  told = [row.dts if row.pts is None else row.pts for row in rows]
  times = [time for time in told if time is not None]
  if len(set(times)) < len(rows):
    return tuple(tick * i for i in range(len(rows)))
  return tuple(sorted(times))


def _parts(rows: list[Row], base: float, leaps: bool, tick: int) -> tuple[tuple[int, int], ...]:
  """Returns (first packet, ticks to add) for each part of the file with its own clock.

  The shifts make each part follow the part before it.
  """
  starts, last = [0], None
  for i, (_, dts, *_) in enumerate(rows):
    if dts is None:
      continue
    gap = 0.0 if last is None else (dts - last) * base
    # a leap without other signs of a joint is just an image displayed for a long time
    is_joint = rows[i].is_key and any(row.is_marked for row in rows[max(0, i - 2) : i])
    if gap < -_RESTART or (leaps and gap > _LEAP and is_joint):
      starts.append(i)
    last = dts
  parts, end = [], None
  for start, stop in zip(starts, [*starts[1:], len(rows)]):
    own = [(pts, length) for pts, _, length, *_ in rows[start:stop] if pts is not None]
    if not own:
      continue
    shift = 0 if end is None else end - min(own)[0]
    end = max(pts + (length or tick) for pts, length in own) + shift
    parts.append((start, shift))
  return tuple(parts) or ((0, 0),)


def _shift(rows: list[Row], parts: Sequence[tuple[int, int]]) -> list[Row]:
  """Returns the rows with all times on one clock."""
  if len(parts) == 1:
    return rows
  starts = np.asarray([start for start, _ in parts])
  shifts = [
    parts[max(0, k)][1] for k in np.searchsorted(starts, np.arange(len(rows)), side='right') - 1
  ]

  def moved(time, shift):
    return None if time is None else time + shift

  return [
    row._replace(pts=moved(row.pts, shift), dts=moved(row.dts, shift))
    for row, shift in zip(rows, shifts)
  ]
