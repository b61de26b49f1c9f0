"""What agents and their servers are made from: the sections that all recipes with an agent
share.
"""

import dataclasses

from paravt_jax.orchestrator.options import ServersOptions, VideoOptions
from paravt_jax.orchestrator.recipes import AskRecipe, EvalRecipe, RLRecipe
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

  @classmethod
  def of(cls, recipe: RLRecipe | EvalRecipe | AskRecipe) -> 'AgentSetup':
    """Returns the setup of a recipe. A recipe without a learner never changes the weights."""
    asks = isinstance(recipe, AskRecipe)
    return cls(
      name=recipe.name,
      video=recipe.decode if isinstance(recipe, AskRecipe) else recipe.video,
      sampling=recipe.sampling,
      agent=recipe.agent,
      subagent=recipe.subagent,
      server=recipe.server,
      client=recipe.client,
      vision_frozen=True if asks else recipe.train.freeze_vision,
    )
