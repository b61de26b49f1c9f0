"""The rollout server in JAX; `python -m paravt_jax.serving.embedded.server` runs it."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Engine', 'Job', 'Server']

if TYPE_CHECKING:
  from paravt_jax.serving.embedded.engine import Engine, Job
  from paravt_jax.serving.embedded.server import Server
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    engine=('Engine', 'Job'),
    server=('Server',),
  )
