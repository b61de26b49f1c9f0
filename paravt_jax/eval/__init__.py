"""Benchmarks, protocols, scores and statistics."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Benchmark', 'Outcome', 'Protocol', 'mcnemar', 'paired_bootstrap', 'wilson']

if TYPE_CHECKING:
  from paravt_jax.eval.benchmarks import Benchmark
  from paravt_jax.eval.protocols import Protocol
  from paravt_jax.eval.results import Outcome
  from paravt_jax.eval.scoring import paired_bootstrap, wilson
  from paravt_jax.eval.statistics import mcnemar
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    benchmarks=('Benchmark',),
    protocols=('Protocol',),
    results=('Outcome',),
    scoring=('paired_bootstrap', 'wilson'),
    statistics=('mcnemar',),
  )
