"""The dictionary of metrics, and their writer."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Metric', 'MetricsWriter', 'lookup']

if TYPE_CHECKING:
  from paravt_jax.metrics.names import Metric, lookup
  from paravt_jax.metrics.writer import MetricsWriter
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    names=('Metric', 'lookup'),
    writer=('MetricsWriter',),
  )
