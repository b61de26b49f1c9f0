"""What agents and their servers are made from: the sections that all recipes with an agent
share.
"""

import dataclasses

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import hosts as hosts_
from paravt_jax.orchestrator.options import VideoOptions
from paravt_jax.orchestrator.recipes import AskRecipe, EvalRecipe, RLRecipe
from paravt_jax.orchestrator.server_options import ServersOptions
from paravt_jax.rollout.agent import AgentOptions
from paravt_jax.rollout.http import ConnectionOptions
from paravt_jax.rollout.sampler import SamplingOptions
from paravt_jax.rollout.subagent import SubagentOptions


@dataclasses.dataclass(frozen=True)
class AgentSetup:
  """One recipe's agent, its servers, and how it sees videos."""

  name: str  # of the recipe; SGLang serves the model under it
  video: VideoOptions
  sampling: SamplingOptions
  agent: AgentOptions
  subagent: SubagentOptions
  server: ServersOptions
  client: ConnectionOptions
  vision_frozen: bool  # weight updates do not change the vision tower
  delta: bool  # weight updates are what changed, for servers that have the version before
  mesh_devices: int  # of the learner in this process and those of other hosts; 0 without one

  @classmethod
  def of(cls, recipe: RLRecipe | EvalRecipe | AskRecipe) -> 'AgentSetup':
    """Returns the setup of a recipe. A recipe without a learner never changes the weights."""
    asks = isinstance(recipe, AskRecipe)
    server, hosts = recipe.server, hosts_.current()
    if isinstance(recipe, RLRecipe) and not hosts.is_alone and server.kind == 'url':
      server = _own_servers(server, hosts)
    return cls(
      name=recipe.name,
      video=recipe.decode if isinstance(recipe, AskRecipe) else recipe.video,
      sampling=recipe.sampling,
      agent=recipe.agent,
      subagent=recipe.subagent,
      server=server,
      client=recipe.client,
      vision_frozen=True if asks else recipe.train.freeze_vision,
      delta=isinstance(recipe, RLRecipe) and recipe.publish.delta and hosts.is_alone,
      mesh_devices=recipe.mesh.devices if isinstance(recipe, RLRecipe) else 0,
    )


def _own_servers(server: ServersOptions, hosts: hosts_.Hosts) -> ServersOptions:
  """Returns the servers by URL that this host asks and updates. Each has one host.

  Raises:
    ConfigError: there are fewer servers than hosts, or a router is in front of them.
  """
  if server.router:
    raise ConfigError(
      f'--config.server.router: got {server.router} for {hosts.count} hosts, wanted one host: each '
      'updates its own servers, and a router sends requests to any; give server.urls instead'
    )
  if len(server.urls) < hosts.count:
    raise ConfigError(
      f'--config.server.urls: got {len(server.urls)} servers for {hosts.count} hosts, wanted at '
      'least one for each, because a host updates its own'
    )
  return server.replace(urls=server.urls[hosts.index :: hosts.count])
