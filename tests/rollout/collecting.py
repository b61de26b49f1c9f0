"""All groups of some prompts at once, as tests look at them."""

import contextlib
from collections.abc import Callable, Sequence

from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.groups import Group, GroupOptions, Prompt, Reward, stream


async def collect(
  agent: Agent,
  prompts: Sequence[Prompt],
  reward: Reward,
  options: GroupOptions,
  on_group: Callable[[Group], None] | None = None,
) -> list[Group]:
  """All groups, in the order of `prompts` whatever order they finish in. `on_group` hears of each
  as it finishes.
  """
  groups: list[Group | None] = [None] * len(prompts)
  async with contextlib.aclosing(stream(agent, prompts, reward, options)) as finished:
    async for index, group in finished:
      groups[index] = group
      if on_group is not None:
        on_group(group)
  return [group for group in groups if group is not None]
