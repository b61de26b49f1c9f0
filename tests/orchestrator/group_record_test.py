"""Finished groups in a record: exact to the bit, frames once, and nothing half there is taken."""

import dataclasses
import pathlib

import numpy as np
import pytest

from paravt_jax import wire
from paravt_jax.errors import CheckpointError
from paravt_jax.orchestrator import group_record
from paravt_jax.orchestrator.group_record import FILE, Finished
from paravt_jax.orchestrator.step_facts import KINDS
from paravt_jax.rollout import groups
from paravt_jax.types import (
  Episode,
  Group,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
  Window,
)

FRAMES = tuple(np.full((64, 48, 3), shade, np.uint8) for shade in (1, 2, 3))


def segments(*images):
  """A given segment with images, and a sampled one whose log-probs include odd numbers."""
  odd = np.array([-0.1, -np.inf, np.nan, -0.0], np.float32)
  return (
    Segment(np.arange(5, dtype=np.int32), False, images),
    Segment(np.arange(4, dtype=np.int32), True, (), odd, np.full(4, 7, np.int32)),
  )


def episode(rollout):
  """An episode with the shared overview, and a sub-agent that sees copies of a part of it."""
  seen = Trajectory(segments(FRAMES[2].copy(), FRAMES[1].copy()), StopReason.STOP)
  call = ToolCall('crop_video', {'start_time': 1.0, 'end_time': 2.5})
  result = ToolResult(call, ResultStatus.EXECUTED, 'blue', Window(1.0, 2.5), (1.0, 2.0), seen)
  return Episode(
    Task('t', ('a.mp4',), 'which?', 'oe', 'blue'),
    rollout,
    3,
    (0.0, 1.0, 2.0),
    3.0,
    (Turn('look', (result,)), Turn('blue')),
    Trajectory(segments(*FRAMES), StopReason.STOP),
    StopReason.STOP,
  )


def finished(count=3, size=4):
  """Groups as a queue has them."""
  return [
    Finished(
      position,
      position // 2,
      Group(
        't',
        0,
        tuple(Scored(episode(index), 0.1 * index, {'accuracy': 1.0}) for index in range(size)),
        ('judge',),
      ),
    )
    for position in range(count)
  ]


def same(first, second):
  """Whether all their bytes are the same."""
  return wire.encode(tuple(first), (*KINDS, Finished)) == wire.encode(
    tuple(second), (*KINDS, Finished)
  )


def test_groups_come_back_bit_by_bit_and_frames_are_stored_once(tmp_path):
  made = finished()
  group_record.files(made)[FILE](tmp_path / FILE)
  back = group_record.read(tmp_path)
  assert same(back, made)
  assert [len(one.group.scored) for one in back] == [4, 4, 4]
  pixels = sum(frame.nbytes for frame in FRAMES)
  assert pixels < (tmp_path / FILE).stat().st_size < 2 * pixels + 3 * 4 * 2000
  # episodes share the frames again
  first, last = back[0].group.scored[0].episode, back[-1].group.scored[-1].episode
  assert first.trajectory.images[2] is last.results[0].subagent.images[0]


def test_without_groups_there_is_no_file_and_a_record_without_one_has_no_groups(tmp_path):
  assert group_record.files([]) == {} and group_record.read(tmp_path) == ()


@pytest.mark.parametrize('cut', [0, 5, 9, 0.3, 0.7, -1])
def test_a_file_that_is_cut_off_is_refused_with_the_way_out(tmp_path, cut):
  path = tmp_path / FILE
  group_record.write(path, finished())
  data = path.read_bytes()
  path.write_bytes(data[: int(cut * len(data)) if isinstance(cut, float) else cut])
  with pytest.raises(CheckpointError, match=rf'{FILE}: cut off or damaged .*; delete {tmp_path} '):
    group_record.read(tmp_path)


def test_other_damage_is_refused_too(tmp_path):
  path = tmp_path / FILE
  group_record.write(path, finished(1))
  data = bytearray(path.read_bytes())
  for length in (2**63, 2**40):  # beyond all memory
    data[0:8] = length.to_bytes(8, 'little')
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f'{length} bytes are left'):
      group_record.read(tmp_path)
  for message in (('other', 1), ('end', 5), 7, ('group', 1)):
    data = wire.encode(message, KINDS)
    path.write_bytes(len(data).to_bytes(8, 'little') + data)
    with pytest.raises(CheckpointError, match='cut off or damaged'):
      group_record.read(tmp_path)


def test_a_full_disk_is_the_systems_error():
  with pytest.raises(OSError, match='No space left'):
    group_record.write(pathlib.Path('/dev/full'), finished())


def test_every_segment_is_changed_once_and_in_the_same_order():
  seen = []

  def change(segment):
    seen.append(len(segment.images))
    return dataclasses.replace(segment, images=())

  group = groups.map_segments(finished(1, size=2)[0].group, change)
  assert seen == [2, 0, 3, 0] * 2
  assert not any(one.episode.trajectory.images for one in group.scored)
  assert not any(one.episode.results[0].subagent.images for one in group.scored)
