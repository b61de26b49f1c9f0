"""What one pass over a file's packets, or its index, tells of a video stream.

A container's own claims (duration, number of frames) are compared with what is there.
"""

import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np

_RESTART = 0.1  # seconds by which a decoding time goes back where a clock restarts
_LEAP = 10.0  # seconds by which it leaps ahead in some formats; both as FFmpeg has them
_LEAPING = ('mpegts', 'mpeg')
# Their headers state a duration; that of the others is measured.
_CLAIMING = ('matroska', 'mov', 'avi', 'flv', 'asf', 'ivf')
WHOLE = 1.0  # seconds by which a header may overstate the length of a whole file
_SAMPLE = 100  # packets of which the frame interval is taken where there is an index


@dataclasses.dataclass(frozen=True)
class Survey:
  """Times are ticks of the stream's time base."""

  count: int  # frames that are shown
  end: int  # end of the last one
  claimed_end: int  # what the header says, where that is more than rounding later; else `end`
  interval: float  # nominal frame interval: the median distance of two frames
  keys: tuple[tuple[int, int], ...]  # (presentation time, time to seek to) of key frames, ascending
  parts: tuple[
    tuple[int, int], ...
  ]  # (first packet, ticks to add), one for each start of the clock
  ordered: tuple[int, ...]  # times of the frames in the order shown, where packets do not tell them


def slack(seconds: float) -> float:
  """Seconds by which a header may overstate a length before the file counts as cut short."""
  return min(1.0, max(0.25, 0.05 * seconds))


def fragments(path: str) -> tuple[bool, bool]:
  """(whether an mp4 has fragments, whether its last box ends behind the file)."""
  size, at, found = os.path.getsize(path), 0, False
  with open(path, 'rb') as file:
    while at + 8 <= size:
      file.seek(at)
      head = file.read(16)
      length, kind = int.from_bytes(head[:4], 'big'), head[4:8]
      if length == 1:
        length = int.from_bytes(head[8:], 'big')
      found = found or kind == b'moof'
      if length == 0:  # up to the end of the file
        return found, False
      if length < 8:
        break
      at += length
  return found, at > size


def avi_is_cut(path: str) -> bool:
  """Whether an AVI's first list of chunks ends behind the file."""
  with open(path, 'rb') as file:
    head = file.read(8)
  return head[:4] == b'RIFF' and int.from_bytes(head[4:], 'little') + 8 > os.path.getsize(path)


def index_stamps(stream: av.VideoStream) -> list[int] | None:
  """Decoding times of the shown packets by the index; None where it covers too little."""
  entries, base = stream.index_entries, float(stream.time_base)
  if len(entries) < 2 or not stream.duration or stream.start_time is None:
    return None
  stamps = [entry.timestamp for entry in entries if not entry.is_discard]
  if len(stamps) < 2 or any(a > b for a, b in itertools.pairwise(stamps)):
    return None
  length = stream.duration * base
  covered = (stamps[-1] - stamps[0]) * base
  return stamps if length - covered <= WHOLE + length / len(stamps) else None


def by_index(stream: av.VideoStream, stamps: list[int], packets: Iterator[av.Packet]) -> Survey:
  """From the index; the frame interval from the presentation times of the first of `packets`."""
  times = []
  for packet in packets:
    if packet.size and packet.pts is not None and not packet.is_discard:
      times.append(packet.pts)
    if len(times) >= _SAMPLE:
      break
  end = stream.start_time + stream.duration
  interval = _interval(times, stream.duration / len(stamps))
  return Survey(len(stamps), end, end, interval, (), ((0, 0),), ())


@dataclasses.dataclass(frozen=True)
class Packets:
  """All packets of a file in short."""

  # (pts, dts, duration, is a key, is shown), in the order stored
  rows: list[tuple[int | None, int | None, int, bool, bool]]
  others_end: float  # where the packets of the other streams end, seconds


def collect(packets: Iterator[av.Packet], stream: av.VideoStream) -> Packets:
  """Reads all that can be demuxed: damage that the demuxer cannot pass ends it."""
  rows, others, codec = [], 0.0, stream.codec_context.name
  try:
    for packet in packets:
      if not packet.size:
        continue
      if packet.stream_index == stream.index:
        shown = not packet.is_discard and _is_shown(packet, codec)
        rows.append((packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, shown))
      elif packet.pts is not None:
        others = max(others, float((packet.pts + (packet.duration or 0)) * packet.time_base))
  except av.FFmpegError:
    return Packets(rows, others)
  return Packets(rows, others)


def by_packets(
  container: av.container.InputContainer, stream: av.VideoStream, packets: Packets, first: int
) -> Survey:
  """From every packet of the file, one or more. `first`: time of the first frame that is shown."""
  base, context, rows = float(stream.time_base), stream.codec_context, packets.rows
  name = container.format.name
  tick = max(1, round(1 / float(stream.average_rate or stream.guessed_rate or 25) / base))
  ordered: tuple[int, ...] = ()
  if _times_are_missing(rows) or (name == 'avi' and context.has_b_frames):
    ordered = _ordered(rows, tick)
  parts = ((0, 0),) if ordered else _parts(rows, base, name in _LEAPING, tick)
  rows = _shift(rows, parts)
  times = ordered or sorted(
    {row[0] for row in rows if row[4] and row[0] is not None and row[0] >= first}
  )
  interval = _interval(times, tick)
  ends = [
    pts + (length or round(interval))
    for pts, _, length, _, shown in rows
    if shown and pts is not None
  ]
  end = times[-1] + max(1, round(interval)) if ordered or not ends else max(ends)
  keys = sorted(
    (row[0], row[0] if row[1] is None else row[1]) for row in rows if row[3] and row[0] is not None
  )
  claimed = (
    _claimed_end(container, stream, end, packets.others_end, interval) if len(parts) == 1 else end
  )
  return Survey(max(1, len(times)), end, claimed, interval, tuple(keys), parts, ordered)


def _claimed_end(container, stream, end: int, others: float, interval: float) -> int:
  """The end by the header, where no packet of any stream reaches it; else the stream's own."""
  base = float(stream.time_base)
  # FFmpeg cuts an AVI's duration down to the file's size, but not the number of frames
  if (
    container.format.name == 'avi'
    and avi_is_cut(container.name)
    and (stream.frames - end) * base > slack(stream.frames * base)
  ):
    return stream.frames
  if not container.duration or not any(word in container.format.name for word in _CLAIMING):
    return end
  claimed = container.duration / 1e6
  if 'matroska' not in container.format.name:  # whose duration may count from zero
    claimed += max(0, container.start_time or 0) / 1e6
  reached = max(end * base, others)
  allowed = max(slack(claimed), 1.5 * interval * base)
  return round(claimed / base) if claimed - reached > allowed else end


def _interval(times: Sequence[int], otherwise: float) -> float:
  """The median distance of distinct times, in ticks."""
  gaps = np.diff(np.unique(np.asarray(times, np.int64)))
  return float(np.median(gaps)) if len(gaps) else float(otherwise)


def _is_shown(packet: av.Packet, codec: str) -> bool:
  """Whether a frame comes of the packet: VP8 and VP9 store hidden frames, which others refer to."""
  if codec not in ('vp8', 'vp9'):
    return True
  data = memoryview(packet)
  if codec == 'vp8':
    return bool(data[0] >> 4 & 1)
  if data[-1] & 0xE0 == 0xC0:
    return True  # a superframe: hidden frames and one that is shown
  # two bits of mark, two of profile (three in profile 3), show_existing, type, show_frame
  after = 4 + ((data[0] >> 4 & 3) == 3)
  bit = lambda at: data[0] >> (7 - at) & 1
  return bool(bit(after) or bit(after + 2))


def _times_are_missing(rows: list[tuple]) -> bool:
  return sum(pts is None for pts, *_ in rows) * 2 > len(rows)


def _ordered(rows: list[tuple], tick: int) -> tuple[int, ...]:
  """Each frame that comes out of the decoder gets the next time."""
  times = [dts if pts is None else pts for pts, dts, *_ in rows]
  if None in times or len(set(times)) < len(times):
    return tuple(tick * i for i in range(len(rows)))
  return tuple(sorted(times))


def _parts(rows: list[tuple], base: float, leaps: bool, tick: int) -> tuple[tuple[int, int], ...]:
  """Where the clock restarts, and what to add there so that the second part follows the first."""
  starts, last = [0], None
  for i, (_, dts, *_) in enumerate(rows):
    if dts is None:
      continue
    gap = 0.0 if last is None else (dts - last) * base
    if gap < -_RESTART or (leaps and gap > _LEAP):
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


def _shift(rows: list[tuple], parts: Sequence[tuple[int, int]]) -> list[tuple]:
  """The rows with their presentation times on one clock."""
  if len(parts) == 1:
    return rows
  starts = np.asarray([start for start, _ in parts])
  shifts = [
    parts[max(0, k)][1] for k in np.searchsorted(starts, np.arange(len(rows)), side='right') - 1
  ]
  return [(pts if pts is None else pts + shift, *rest) for (pts, *rest), shift in zip(rows, shifts)]
