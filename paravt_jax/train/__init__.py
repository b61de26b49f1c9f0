"""The learner: its state, its jitted steps, its optimizer."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = [
  'Optimizer',
  'State',
  'make_optimizer',
  'make_rl_step',
  'make_sft_step',
  'put_batch',
]

if TYPE_CHECKING:
  from paravt_jax.train.optimizer import Optimizer, make_optimizer
  from paravt_jax.train.state import State
  from paravt_jax.train.step import make_rl_step, make_sft_step, put_batch
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    optimizer=('Optimizer', 'make_optimizer'),
    state=('State',),
    step=('make_rl_step', 'make_sft_step', 'put_batch'),
  )
