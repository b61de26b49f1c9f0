"""What the answer of a turn is. How right it is: `letters` (multiple choice), `windows` (temporal
grounding), `words` (open-ended), whose functions are offered here too. Pure, and never an
exception.
"""

import re

from paravt_jax.chat import tags, toolcalls
from paravt_jax.rewards.letters import LETTERS, choice_accuracy, chosen_letter
from paravt_jax.rewards.windows import temporal_iou, time_window
from paravt_jax.rewards.words import exact_match, normalise, token_f1

__all__ = [
  'LETTERS',
  'choice_accuracy',
  'chosen_letter',
  'exact_match',
  'extract_answer',
  'normalise',
  'strip_markup',
  'temporal_iou',
  'time_window',
  'token_f1',
]

_CONTROL = re.compile(r'<\|[A-Za-z_]+\|>')
_RESPONSE = re.compile(r'<tool_response>.*?(?:</tool_response>|\Z)', re.DOTALL)


def extract_answer(text: str) -> str:
  """The answer in one turn's text, stripped.

  The last `<answer>` block after the last `</think>` (an unclosed one runs to the end); without
  one, what follows the last `</think>` minus tool blocks and special tokens; without a `</think>`
  either, ''.
  """
  tail = text[tags.after_think(text) :]
  _, opened, rest = tail.rpartition(tags.ANSWER_OPEN)
  if opened:
    body, closed, _ = rest.partition(tags.ANSWER_CLOSE)
    return (body if closed else _CONTROL.sub('', body)).strip()
  if tags.THINK_CLOSE not in text:
    return ''
  return strip_markup(tail)


def strip_markup(text: str) -> str:
  """What a text says in words: without tool blocks, tool responses and special tokens, stripped."""
  return _CONTROL.sub('', _RESPONSE.sub('', toolcalls.without_blocks(text))).strip()
