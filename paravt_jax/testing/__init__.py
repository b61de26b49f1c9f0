"""Small test doubles: a model, a tokenizer, video clips and a scripted server."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['ScriptedServer', 'build_model_folder', 'make_clip', 'make_tokenizer', 'tiny_config']

if TYPE_CHECKING:
  from paravt_jax.testing.clips import make_clip
  from paravt_jax.testing.scripted import ScriptedServer
  from paravt_jax.testing.tiny import build_model_folder, make_tokenizer, tiny_config
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    clips=('make_clip',),
    scripted=('ScriptedServer',),
    tiny=('build_model_folder', 'make_tokenizer', 'tiny_config'),
  )
