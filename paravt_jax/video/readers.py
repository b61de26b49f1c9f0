"""One open video file, read by PyAV or decord behind the same two methods. Runs inside the decoding workers.

The frame at time t is the one being shown: the last whose presentation time is <= t. Seconds count from the stream's start.
"""

import bisect
import dataclasses
import math
import os
from collections.abc import Iterator, Sequence

import av
import numpy as np

from paravt_jax.errors import MediaError

# Nothing that opens other files or the network: a playlist under an mp4's name would be followed out of the media root.
_CONTAINERS = 'mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,h264,hevc,ivf,mp3,wav,aac,flac'
_OVERSTATED = 1.0            # seconds by which a header may overstate the length before the file counts as truncated
_SEEK_PIXELS = 60_000        # a seek costs about as much as decoding this many pixels (measured: 15 frames of 64x64)
_TICK = 1e-3                 # of a time base unit: forgives float rounding of a time that came from a frame


@dataclasses.dataclass(frozen=True)
class VideoInfo:
  """What a file says of its video stream. duration in seconds; fps = num_frames / duration; height, width before the resize."""
  duration: float
  fps: float
  num_frames: int
  width: int
  height: int


class PyavReader:
  """Exact, by packets: finds the wanted frames' times without decoding, then decodes only from their key frame to them."""

  def __init__(self, path: str):
    try:
      self._container = av.open(path, options={'protocol_whitelist': 'file', 'format_whitelist': _CONTAINERS})
    except FileNotFoundError as error:
      raise missing(path) from error
    except (av.FFmpegError, OSError, ValueError) as error:
      raise not_video(path, str(error)) from error
    self.path = path
    streams = [s for s in self._container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams or not streams[0].codec_context.width:
      raise not_video(path, f'no video stream among {len(self._container.streams)} streams')
    self._stream = streams[0]
    self._stream.codec_context.thread_count = 1
    if self._container.format.name == 'avi' and self._stream.codec_context.has_b_frames:
      raise broken(path, 'AVI holds no presentation times for frames that are stored out of order')
    self._converter = av.video.reformatter.VideoReformatter()
    self._base = float(self._stream.time_base)
    self._measure()

  def close(self):
    self._container.close()

  def _measure(self):
    """Sets info and the start from the header where it has an index, else by reading every packet once."""
    stream = self._stream
    context = stream.codec_context
    self._indexed = bool(len(stream.index_entries) > 1 and stream.frames and stream.duration and stream.start_time is not None)
    if self._indexed:
      count = min(stream.frames, len(stream.index_entries))     # the first is what the header says, the second what it lists
      length, self._start = stream.duration, stream.start_time
      first = stream.index_entries[0].timestamp
    else:
      packets = self._packets(None)
      if not packets:
        raise no_frames(self.path)
      count, self._start = len(packets), min(p.pts for p in packets)
      length = max(p.pts + (p.duration or 0) for p in packets) - self._start
      length = length or max(1, round(count / float(stream.average_rate or 1) / self._base))
      self._keys = sorted(p.pts if p.dts is None else p.dts for p in packets if p.is_keyframe) or [self._start]
      first = self._keys[0]
    self._delay = max(0, self._start - first)          # from a key frame's decoding to its showing; an estimate, checked later
    duration = length * self._base
    self.info = VideoInfo(duration, count / duration, count, context.width, context.height)

  def _packets(self, until: int | None) -> list[av.Packet]:
    """Demuxes packets from here, as long as their decoding time is <= until (None: to the end)."""
    packets = []
    try:
      for packet in self._container.demux(self._stream):
        if packet.size and not packet.is_discard:
          if packet.pts is None:
            raise broken(self.path, 'a packet has no presentation time')
          packets.append(packet)
        if until is not None and packet.dts is not None and packet.dts > until:
          break
    except av.FFmpegError as error:
      raise broken(self.path, f'demuxing failed ({error})') from error
    return packets

  def _key(self, time: int) -> int:
    """The decoding time of the last key frame at or before `time`, or of the very first."""
    if not self._indexed:
      return self._keys[max(0, bisect.bisect_right(self._keys, time) - 1)]
    entries = self._stream.index_entries
    return entries[max(0, entries.search_timestamp(time, backward=True))].timestamp

  def read(self, seconds: Sequence[float]) -> Iterator[tuple[int, float, np.ndarray]]:
    """Yields (index into seconds, frame's time, uint8[H, W, 3] RGB) for every time, in time order.

    Raises:
      MediaError: 'no_frames' without key frames; 'decode' when a wanted frame is damaged or missing behind the file's end.
    """
    last = self.info.duration
    targets = [self._start + math.floor(min(max(t, 0.0), last) / self._base + _TICK) for t in seconds]
    for key, members in self._runs(targets):
      shown, packets = self._find(key, [targets[i] for i in members])
      wanted: dict[int, list[int]] = {}
      for i, pts in zip(members, shown):
        wanted.setdefault(pts, []).append(i)
      for pts, image in self._decode(packets, set(wanted)):
        for i in wanted.pop(pts, ()):
          yield i, self._seconds(pts), image
      if wanted:
        raise broken(self.path, f'the frame at {self._seconds(min(wanted)):.3f} s does not decode')

  def _seconds(self, pts: int) -> float:
    return (pts - self._start) * self._base

  def _runs(self, targets: list[int]) -> list[tuple[int, list[int]]]:
    """(key frame to start from, indices of targets in time order): what is decoded without a seek in between.

    A run goes on past a key frame where decoding the frames up to it is cheaper than a seek: on thumbnails, always.
    """
    context = self._stream.codec_context
    per_pixel = self.info.fps * self._base * context.width * context.height
    runs: list[tuple[int, list[int]]] = []
    reached, current = 0, None
    for i in sorted(range(len(targets)), key=targets.__getitem__):
      key = self._key(targets[i] - self._delay)
      if key != current and (current is None or (key + self._delay - reached) * per_pixel > _SEEK_PIXELS):
        runs.append((key, []))
      runs[-1][1].append(i)
      reached, current = targets[i], key
    return runs

  def _find(self, key: int, targets: list[int]) -> tuple[list[int], list[av.Packet]]:
    """The presentation times shown at `targets` (ascending), and the packets from a key frame on that hold them."""
    packets = self._from(key, targets[-1])
    while not (keys := _starts(packets, targets[0])) and (earlier := self._key(key - 1)) < key:
      key = earlier
      packets = self._from(key, targets[-1])
    if not packets:
      raise broken(self.path, f'nothing follows {self._seconds(key):.3f} s, but the header promises {self.info.duration:.3f} s')
    packets = packets[keys[-1]:] if keys else packets          # a seek may land one key frame too early
    times = np.sort([p.pts for p in packets])
    shown = times[np.maximum(np.searchsorted(times, targets, side='right') - 1, 0)].tolist()
    end = times[-1] + max(p.duration or 0 for p in packets)
    if (targets[-1] - end) * self._base > _OVERSTATED:
      raise broken(self.path, f'the stream ends at {self._seconds(end):.3f} s, but the header promises '
                   f'{self.info.duration:.3f} s')
    return shown, packets

  def _from(self, key: int, until: int) -> list[av.Packet]:
    time = key + self._delay if self._indexed else key          # mp4 is sought by showing time, the others by decoding time
    try:
      self._container.seek(time, stream=self._stream, backward=True)
    except av.FFmpegError as error:
      raise broken(self.path, f'seeking failed ({error})') from error
    return self._packets(until)

  def _decode(self, packets: list[av.Packet], wanted: set[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes the packets up to the last wanted one, skipping frames that no other refers to, and empties the decoder."""
    context = self._stream.codec_context
    final = max(i for i, packet in enumerate(packets) if packet.pts in wanted)
    try:
      for packet in [*packets[:final + 1], None]:
        if packet is not None and packet.is_corrupt and packet.pts in wanted:
          raise broken(self.path, f'the packet at {self._seconds(packet.pts):.3f} s is cut short')
        context.skip_frame = 'NONREF' if packet is not None and packet.pts not in wanted else 'DEFAULT'
        for frame in context.decode(packet):
          if frame.pts in wanted:
            yield frame.pts, self._image(frame)
    except av.FFmpegError as error:
      raise broken(self.path, f'decoding failed ({error})') from error

  def _image(self, frame: av.VideoFrame) -> np.ndarray:
    """uint8[H, W, 3], upright. One thread: handing tiny frames to several costs ten times the conversion."""
    image = self._converter.reformat(frame, format='rgb24', threads=1).to_ndarray()
    return np.rot90(image, round(frame.rotation / 90) % 4) if frame.rotation else image


def _starts(packets: list[av.Packet], target: int) -> list[int]:
  """Indices of the packets from which the frame at `target` can be decoded."""
  return [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= target]


class DecordReader:
  """decord's reader; frames by index. Known to be off in time on files cut with an edit list (see the notes on pins)."""

  def __init__(self, path: str):
    import decord  # only where chosen: it loads a second FFmpeg
    if not os.path.exists(path):
      raise missing(path)
    try:
      self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
      raise not_video(path, str(error).strip().splitlines()[0]) from error
    self.path = path
    count = len(self._reader)
    if not count:
      raise no_frames(path)
    self._error = decord.DECORDError
    spans = self._reader.get_frame_timestamp(range(count))
    self._times = spans[:, 0].astype(np.float64) - float(spans[0, 0])
    duration = max(float(spans[:, 1].max() - spans[0, 0]), count / self._reader.get_avg_fps())
    height, width = self._reader[0].shape[:2]
    self.info = VideoInfo(duration, count / duration, count, width, height)

  def close(self):
    self._reader = None

  def read(self, seconds: Sequence[float]) -> Iterator[tuple[int, float, np.ndarray]]:
    """As PyavReader.read; decord keeps times as float32, hence the wider tolerance."""
    order = np.argsort(seconds, kind='stable')
    indices = np.maximum(np.searchsorted(self._times, np.asarray(seconds)[order] + 1e-3, side='right') - 1, 0)
    try:
      images = self._reader.get_batch(indices.tolist()).asnumpy()
    except (self._error, RuntimeError) as error:
      raise broken(self.path, str(error).strip().splitlines()[0]) from error
    for i, index, image in zip(order.tolist(), indices.tolist(), images):
      yield i, float(self._times[index]), image


READERS = {'pyav': PyavReader, 'decord': DecordReader}


def missing(path: str) -> MediaError:
  return MediaError(f'{path}: no such file, wanted a video; check the media root (data.media_root)', 'missing')


def not_video(path: str, got: str) -> MediaError:
  return MediaError(f'{path}: got {got}, wanted a video file; fetch it again or drop the row', 'not_video')


def no_frames(path: str) -> MediaError:
  return MediaError(f'{path}: got a video stream without frames, wanted at least one; fetch the file again', 'no_frames')


def broken(path: str, got: str) -> MediaError:
  return MediaError(f'{path}: {got}; wanted a whole file with times: fetch it again, remux it to mp4 or drop the row', 'decode')
