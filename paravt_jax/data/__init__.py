"""Parquet rows, archives of media, the synthetic world, batches for SFT."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = [
  'Batch',
  'Batches',
  'Conversation',
  'EpochOrder',
  'rl_tasks',
  'sft_conversations',
  'subsample',
]

if TYPE_CHECKING:
  from paravt_jax.data.batches import Batch, Batches
  from paravt_jax.data.conversations import Conversation, sft_conversations
  from paravt_jax.data.order import EpochOrder
  from paravt_jax.data.rows import rl_tasks, subsample
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    batches=('Batch', 'Batches'),
    conversations=('Conversation', 'sft_conversations'),
    order=('EpochOrder',),
    rows=('rl_tasks', 'subsample'),
  )
