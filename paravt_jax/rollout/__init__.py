"""Episodes: the client of rollout servers, the agent, its sub-agents, groups of episodes."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Agent', 'Client', 'Fleet', 'Prompt', 'Router', 'Sampler', 'Subagents', 'run_group']

if TYPE_CHECKING:
  from paravt_jax.rollout.agent import Agent
  from paravt_jax.rollout.client import Client
  from paravt_jax.rollout.fleet import Fleet
  from paravt_jax.rollout.groups import Prompt, run_group
  from paravt_jax.rollout.router import Router
  from paravt_jax.rollout.sampler import Sampler
  from paravt_jax.rollout.subagent import Subagents
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    agent=('Agent',),
    client=('Client',),
    fleet=('Fleet',),
    groups=('Prompt', 'run_group'),
    router=('Router',),
    sampler=('Sampler',),
    subagent=('Subagents',),
  )
