"""Agentic long-video reinforcement learning in JAX/Flax: ParaVT (arXiv 2605.20342).

The nouns of an episode are here; everything else is in a package of its own: `chat`, `video`,
`models`, `rl`, `rewards`, `data`, `train`, `serving`, `rollout`, `eval`, `report`. The names that
each package lists in `__all__` are its public ones.
"""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = [
  'Clip',
  'Episode',
  'Group',
  'ParavtError',
  'StopReason',
  'Task',
  'ToolCall',
  'ToolResult',
  '__version__',
]

__version__ = '0.1.0'  # the only place; pyproject.toml reads it

if TYPE_CHECKING:
  from paravt_jax.errors import ParavtError
  from paravt_jax.types import Clip, Episode, Group, StopReason, Task, ToolCall, ToolResult
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    errors=('ParavtError',),
    types=('Clip', 'Episode', 'Group', 'StopReason', 'Task', 'ToolCall', 'ToolResult'),
  )
