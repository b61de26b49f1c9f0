"""What the hosts of a run tell each other about a step of RL: counters, and episodes for the log."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paravt_jax.orchestrator.hosts import Channel
from paravt_jax.rollout import groups
from paravt_jax.types import (
  Episode,
  Group,
  Overview,
  ParseFailure,
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
  Window,
)

_LARGEST = ('staleness_max',)  # counters that are not sums
_SUMS = ('server/', 'groups/dropped/', 'rollout/interrupted', 'rollout/retried', 'rollout/moved')


@dataclasses.dataclass(frozen=True)
class Sized:
  """Stands for an image of another host: its shape, without pixels."""

  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Facts:
  """The groups of a step and what was counted in them."""

  groups: Sequence[Group]  # without pixels where they come from another host
  advantage_E: np.ndarray  # of each of their episodes, in order


# the classes of `Facts` and of all that it holds (`wire`)
KINDS = (
  Facts,
  Sized,
  Group,
  Scored,
  Episode,
  Task,
  Overview,
  Turn,
  ToolResult,
  ToolCall,
  ParseFailure,
  Window,
  Trajectory,
  Segment,
  StopReason,
  ResultStatus,
  TokenClass,
)


def add_counters(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Returns the counters of a step (`collate.Batch.counters`) over all hosts."""
  return {
    name: (max if name in _LARGEST else sum)(part[name] for part in parts) for name in parts[0]
  }


def gather(channel: Channel, facts: Facts, owners: Sequence[int]) -> Facts:
  """Returns the facts of all hosts in process 0; the own facts elsewhere, and for one host.

  owners: the host of each group of the step, in the order of the data.
  """
  if not owners:
    return facts
  parts = channel.gather(Facts(tuple(map(_without_pixels, facts.groups)), facts.advantage_E))
  if not parts:
    return facts
  # each host's groups are in the order of the data
  left = [list(part.groups) for part in parts]
  taken = [0] * len(parts)
  groups: list[Group] = []
  advantages: list[np.ndarray] = [np.zeros(0, np.float32)]
  for owner in owners:
    group = left[owner].pop(0)
    first = taken[owner]
    taken[owner] += len(group.scored)
    groups.append(group)
    advantages.append(parts[owner].advantage_E[first : taken[owner]])
  return Facts(groups, np.concatenate(advantages))


def add_metrics(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Returns metrics of servers and queues over all hosts: sums of counts, process 0's of the rest.

  Seconds are the largest, because all wait for the slowest.
  """
  found: dict[str, float] = {}
  for part in parts:
    for name, value in part.items():
      if name.startswith('sync/'):
        found[name] = max(found.get(name, value), value)
      elif name.startswith(_SUMS):
        found[name] = found.get(name, 0.0) + value
      else:
        found.setdefault(name, value)
  return found


def _without_pixels(group: Group) -> Group:
  sized: Any = Sized  # in place of an array: nothing reads more than its shape
  return groups.map_segments(
    group,
    lambda segment: dataclasses.replace(
      segment, images=tuple(sized(tuple(image.shape)) for image in segment.images)
    ),
  )
