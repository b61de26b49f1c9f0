"""The synthetic world: videos of coloured events, with questions and example traces."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Event', 'Scene', 'World', 'open_world']

if TYPE_CHECKING:
  from paravt_jax.data.world.scene import Event, Scene
  from paravt_jax.data.world.write import World, open_world
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    scene=('Event', 'Scene'),
    write=('World', 'open_world'),
  )
