"""Benchmarks, protocols, scores and statistics."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Benchmark', 'Protocol', 'evaluate', 'mcnemar', 'paired_bootstrap', 'wilson']

if TYPE_CHECKING:
  from paravt_jax.eval.benchmarks import Benchmark
  from paravt_jax.eval.protocols import Protocol
  from paravt_jax.eval.run import evaluate
  from paravt_jax.eval.scoring import paired_bootstrap, wilson
  from paravt_jax.eval.statistics import mcnemar
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    benchmarks=('Benchmark',),
    protocols=('Protocol',),
    run=('evaluate',),
    scoring=('paired_bootstrap', 'wilson'),
    statistics=('mcnemar',),
  )
