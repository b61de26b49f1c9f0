"""An hour-long file: an overview and crops of it in bounded memory and seconds."""

import os
import pathlib
from fractions import Fraction

import av
import numpy as np
import pytest

from paravt_jax.testing import clips
from paravt_jax.types import Window
from paravt_jax.video import sampling
from paravt_jax.video.decode import DecodePool

MINUTE, FPS, GOP, SIZE = 60, 30, 150, (360, 640)
PIXELS = (1024, 50176)
MOST_MB, MOST_SECONDS = 250, 5.0  # of a worker; of both requests and crops on two cores


def repeat(source: pathlib.Path, target: pathlib.Path, times: int) -> str:
  """Writes the packets of a file several times in a row, with new times."""
  with av.open(str(source)) as given, av.open(str(target), 'w', format='mp4') as made:
    stream = given.streams.video[0]
    out = made.add_stream_from_template(stream)
    packets = [packet for packet in given.demux(stream) if packet.dts is not None]
    length = int(MINUTE / stream.time_base)
    for turn in range(times):
      for packet in packets:
        copy = av.Packet(bytes(packet))
        copy.stream, copy.time_base = out, Fraction(stream.time_base)
        copy.pts, copy.dts = packet.pts + turn * length, packet.dts + turn * length
        copy.is_keyframe = packet.is_keyframe
        made.mux(copy)
  return str(target)


@pytest.fixture(scope='module')
def hour(tmp_path_factory):
  """An hour of 640 x 360 at 30 frames a second: a moving minute, sixty times."""
  folder = tmp_path_factory.mktemp('hour')
  rng = np.random.default_rng(0)
  ground = rng.integers(0, 256, (SIZE[0] // 8 + 8, SIZE[1] // 8 + 256, 3), np.uint8)
  ground = ground.repeat(8, 0).repeat(8, 1)

  def frame(i):
    x = i % 1800
    return ground[: SIZE[0], x : x + SIZE[1]]

  minute = clips.make_clip(folder / 'minute.mp4', MINUTE, FPS, SIZE, frame, GOP)
  return repeat(minute, folder / 'hour.mp4', 60)


def peak_mb(pid: int) -> float:
  """The most memory that a process ever had."""
  text = pathlib.Path(f'/proc/{pid}/status').read_text()
  return int(text.split('VmHWM:')[1].split()[0]) / 1024


def cpu_seconds(pid: int) -> float:
  """The time that a process has computed."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


@pytest.mark.slow
def test_many_frames_of_a_long_file_take_no_more_memory_of_a_worker(hour):
  times = 600 + np.arange(2048) / FPS
  with DecodePool(2, 60.0, 'pyav') as pool:
    clip = pool.frames_sync(hour, times, *PIXELS)
    memory = [peak_mb(worker.process.pid) for worker in pool._workers]
  assert clip.frames.nbytes > MOST_MB * 1e6
  np.testing.assert_allclose(clip.seconds, times, atol=1 / FPS)
  print(f'\nworkers: peak {memory} MB')
  assert max(memory) <= MOST_MB


@pytest.mark.slow
def test_an_hour_gives_64_frames_and_five_crops_in_bounded_memory_and_time(hour):
  with DecodePool(2, 60.0, 'pyav') as pool:
    info = pool.probe_sync(hour)
    assert info.duration == pytest.approx(3600, abs=1)
    overview = pool.frames_sync(hour, sampling.budget_times(info.duration, 64, info.fps), *PIXELS)
    assert len(overview.frames) == 64
    for start in (10, 700, 1500, 2600, 3500):
      seconds = sampling.window_times(
        Window(start, start + 16.0), fps=1, min_frames=2, max_frames=16
      )
      crop = pool.frames_sync(hour, seconds, *PIXELS)
      np.testing.assert_allclose(crop.seconds, seconds, atol=1 / FPS)
    pids = [worker.process.pid for worker in pool._workers]
    memory, seconds = [peak_mb(pid) for pid in pids], [cpu_seconds(pid) for pid in pids]
  print(f'\nworkers: peak {memory} MB, {seconds} CPU seconds')
  assert max(memory) <= MOST_MB
  assert sum(seconds) / 2 <= MOST_SECONDS
