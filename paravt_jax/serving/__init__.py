"""The protocol of rollout servers, the delivery of weights, and `embedded`, our server in JAX."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Canary', 'GenerateReply', 'GenerateRequest', 'Manifest', 'Publisher', 'ServerProcess']

if TYPE_CHECKING:
  from paravt_jax.serving.canary import Canary
  from paravt_jax.serving.manifest import Manifest
  from paravt_jax.serving.process import ServerProcess
  from paravt_jax.serving.protocol import GenerateReply, GenerateRequest
  from paravt_jax.serving.publish import Publisher
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    canary=('Canary',),
    manifest=('Manifest',),
    process=('ServerProcess',),
    protocol=('GenerateReply', 'GenerateRequest'),
    publish=('Publisher',),
  )
