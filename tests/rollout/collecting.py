"""Runs all groups of some prompts at once."""

import asyncio
from collections.abc import Callable, Sequence

from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.groups import Group, GroupOptions, Prompt, Reward, run_group


async def collect(
  agent: Agent,
  prompts: Sequence[Prompt],
  reward: Reward,
  options: GroupOptions,
  on_group: Callable[[Group], None] | None = None,
) -> list[Group]:
  """Returns all groups in the order of `prompts`; `on_group` receives each as it finishes."""

  async def one(prompt: Prompt) -> Group:
    group = await run_group(agent, prompt, reward, options)
    if on_group is not None:
      on_group(group)
    return group

  return list(await asyncio.gather(*map(one, prompts)))
