"""Extracts the answer of a turn.

This module also exports the functions that score answers, from `letters` (multiple choice),
`windows` (temporal grounding) and `words` (open-ended). All are pure and raise no exception.
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
  """Returns the answer in one turn's text, stripped.

  It is the last `<answer>` block after the last `</think>`; an unclosed block extends to the end.
  Without a block it is the text after the last `</think>`, without tool blocks and special tokens.
  Without an `<answer>` and a `</think>` it is ''.
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
  """Removes tool blocks, tool responses and special tokens; returns the stripped text."""
  return _CONTROL.sub('', _RESPONSE.sub('', toolcalls.without_blocks(text))).strip()
