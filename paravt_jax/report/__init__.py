"""Runs and evaluations as static pages."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['EpisodeLog', 'Headline', 'Run']

if TYPE_CHECKING:
  from paravt_jax.report.episodes import EpisodeLog
  from paravt_jax.report.headline import Headline
  from paravt_jax.report.run import Run
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    episodes=('EpisodeLog',),
    headline=('Headline',),
    run=('Run',),
  )
