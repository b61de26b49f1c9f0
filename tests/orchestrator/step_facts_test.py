"""What hosts tell each other about a step adds up to what one host would have counted."""

import dataclasses
import enum
import typing

import numpy as np

from paravt_jax import wire
from paravt_jax.orchestrator import step_facts
from paravt_jax.orchestrator.step_facts import Facts
from paravt_jax.report import episodes
from paravt_jax.rollout.statistics import statistics
from paravt_jax.types import (
  Episode,
  Group,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
)

PARTS = dict.fromkeys(
  ('accuracy', 'format', 'base', 'anchor', 'tool', 'compliant'), 0.5
)  # of a reward


def group(name, size):
  """A group of `size` episodes with images in the prompt and in a sub-agent."""
  image = np.full((32, 64, 3), 7, np.uint8)
  given = Segment(np.arange(3, dtype=np.int32), False, (image,))
  said = Segment(
    np.arange(2, dtype=np.int32), True, (), np.zeros(2, np.float32), np.zeros(2, np.int32)
  )
  trajectory = Trajectory((given, said), StopReason.STOP)
  call = ToolCall('crop_video', {'start': 0, 'end': 2})
  result = ToolResult(call, ResultStatus.EXECUTED, 'a cat', subagent=trajectory)
  task = Task(name, ('v.mp4',), 'q', 'oe', 'x')
  episode = Episode(task, 0, 4, (1.0,), 8.0, (Turn('hm', (result,)),), trajectory, StopReason.STOP)
  return Group(name, 0, tuple(Scored(episode, float(n), PARTS) for n in range(size)))


def reachable(hint, found):
  """The data classes and enumerations in a type, and in the types of their fields."""
  for part in typing.get_args(hint):
    reachable(part, found)
  is_kind = dataclasses.is_dataclass(hint) or (
    isinstance(hint, type) and issubclass(hint, enum.Enum)
  )
  if is_kind and hint not in found:
    found.add(hint)
    if dataclasses.is_dataclass(hint):
      for part in typing.get_type_hints(hint).values():
        reachable(part, found)
  return found


def test_all_that_a_step_can_hold_has_leave_to_travel():
  assert reachable(Facts, {step_facts.Sized}) == set(step_facts.KINDS)


def test_facts_travel_to_the_bit():
  advantages = np.array([np.nan, -0.0, 1e-40], np.float32)
  sent = Facts(tuple(map(step_facts._without_pixels, (group('a', 2), group('b', 1)))), advantages)
  got = wire.decode(wire.encode(sent, step_facts.KINDS), step_facts.KINDS)
  assert repr(got) == repr(sent)
  assert got.advantage_E.tobytes() == advantages.tobytes()
  assert got.groups[0].scored[0].episode.stop is StopReason.STOP


class Post:
  """Process 0's side of a gather: the other hosts' values are there already."""

  def __init__(self, *others):
    self.others = others

  def gather(self, value):
    return [value, *self.others]


def test_process_0_has_the_groups_of_all_hosts_in_the_order_of_the_data():
  groups = [group(name, size) for name, size in (('a', 2), ('b', 1), ('c', 3))]
  advantages = [np.arange(len(one.scored), dtype=np.float32) + n for n, one in enumerate(groups)]
  other = Facts((groups[0], groups[2]), np.concatenate([advantages[0], advantages[2]]))
  found = step_facts.gather(Post(other), Facts((groups[1],), advantages[1]), (1, 0, 1))
  assert [one.id for one in found.groups] == ['a', 'b', 'c']
  assert found.advantage_E.tolist() == np.concatenate(advantages).tolist()
  assert statistics(found.groups, found.advantage_E) == statistics(
    groups, np.concatenate(advantages)
  )


def test_one_host_and_the_other_hosts_keep_their_own():
  own = Facts((group('a', 1),), np.zeros(1, np.float32))
  assert step_facts.gather(Post(), own, ()) is own
  mute = Post()
  mute.gather = lambda value: []
  assert step_facts.gather(mute, own, (0, 1)) is own


def test_episodes_travel_without_pixels_and_are_logged_the_same():
  whole = group('a', 1)
  (found,) = step_facts.gather(Post(), Facts((whole,), np.zeros(1)), (0,)).groups
  assert found.id == 'a'
  images = [
    image
    for one in found.scored
    for trajectory in (one.episode.trajectory, one.episode.results[0].subagent)
    for image in trajectory.images
  ]
  assert images == [step_facts.Sized((32, 64, 3))] * 2
  assert episodes.to_json(3, found.scored[0]) == episodes.to_json(3, whole.scored[0])
  assert whole.scored[0].episode.trajectory.segments[1].token_class is TokenClass.TEXT


def test_counters_add_up_and_the_largest_staleness_counts():
  parts = [{'episodes': 2, 'staleness_max': 1}, {'episodes': 3, 'staleness_max': 4}]
  assert step_facts.add_counters(parts) == {'episodes': 5, 'staleness_max': 4}


def test_counts_of_servers_add_up_and_the_slowest_delivery_counts():
  parts = [
    {'server/lost': 1.0, 'sync/seconds/stage=load': 2.0, 'rollout/epoch': 0.5},
    {'server/lost': 2.0, 'sync/seconds/stage=load': 3.0, 'rollout/epoch': 0.5},
  ]
  parts[1]['groups/dropped/reason=media'] = 1.0
  parts[0]['server/speed/server=0.0'], parts[1]['server/speed/server=1.0'] = 80.0, 90.0
  assert step_facts.add_metrics(parts) == {
    'server/lost': 3.0,
    'sync/seconds/stage=load': 3.0,
    'rollout/epoch': 0.5,
    'groups/dropped/reason=media': 1.0,
    'server/speed/server=0.0': 80.0,  # each host numbers its own servers
    'server/speed/server=1.0': 90.0,
  }
  assert step_facts.add_metrics(parts[:1]) == parts[0]
