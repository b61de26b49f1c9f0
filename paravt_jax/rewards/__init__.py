"""Rewards: pure functions of an episode or of its text."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = [
  'accuracy',
  'choice_accuracy',
  'extract_answer',
  'form_reward',
  'score',
  'temporal_iou',
  'token_f1',
  'tool_reward',
]

if TYPE_CHECKING:
  from paravt_jax.rewards.answer import extract_answer
  from paravt_jax.rewards.form import form_reward
  from paravt_jax.rewards.letters import choice_accuracy
  from paravt_jax.rewards.tools import tool_reward
  from paravt_jax.rewards.total import accuracy, score
  from paravt_jax.rewards.windows import temporal_iou
  from paravt_jax.rewards.words import token_f1
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    answer=('extract_answer',),
    form=('form_reward',),
    letters=('choice_accuracy',),
    tools=('tool_reward',),
    total=('accuracy', 'score'),
    windows=('temporal_iou',),
    words=('token_f1',),
  )
