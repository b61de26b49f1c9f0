"""Converts conversations to segments for SFT, with the same tokens as in a rollout.

Which tokens are targets and which are given:

system, user            given
<|im_start|>assistant\\n  given
<think>\\n ... <|im_end|> target (with the pinned prefix, from which the policy continues)
\\n                      given, only when something follows
"""

import re
from collections.abc import Sequence

import numpy as np

from paravt_jax import errors, types
from paravt_jax.chat import template
from paravt_jax.chat import tokenizer as tokenizer_lib

_RESPONSE_TAG = re.compile(f'({template.RESPONSE_OPEN}|{template.RESPONSE_CLOSE})')


def conversation(
  tok: tokenizer_lib.ChatTokenizer,
  messages: Sequence[tuple[str, Sequence[template.Piece]]],
  think_prefix: str,
  trained: Sequence[bool] | None = None,
) -> tuple[types.Segment, ...]:
  """Returns the segments of a complete conversation; `sampled` marks the targets.

  Args:
    tok: the tokenizer.
    messages: (role, pieces) in order; roles system, user, assistant. An assistant turn is its raw
      text, thinks and calls included. A tool's result is a user message
      `<tool_response>\\n...\\n</tool_response>` after a turn.
    think_prefix: the opening that rollouts pin. A turn that starts with it is encoded as prefix
      and rest, as in a rollout.
    trained: for each message, whether it may be a target; None means all. Turns that are not
      targets have the same ids, but their segments are given.

  Raises:
    ChatError: an unknown role, or an image in an assistant turn.
  """
  segments: list[types.Segment] = []
  for index, (role, pieces) in enumerate(messages):
    if role == 'assistant':
      segments += _turn(tok, index, pieces, think_prefix, trained is None or trained[index])
      if index + 1 < len(messages):
        segments.append(types.Segment(ids=template.end_of_turn(tok, closed=True), sampled=False))
      continue
    if role not in ('system', 'user'):
      raise errors.ChatError(
        f'message {index}: got role {role!r}; wanted system, user or assistant, fix the row'
      )
    answered = any(earlier == 'assistant' for earlier, _ in messages[:index])
    shown = _mark_trusted(role, pieces, answered)
    images = tuple(piece for piece in shown if not isinstance(piece, str))
    segments.append(
      types.Segment(ids=template.message(tok, role, shown), sampled=False, images=images)
    )
  return tuple(segments)


def sampled_mask(segments: Sequence[types.Segment]) -> np.ndarray:
  """Returns bool[n] over the concatenated ids: which tokens are sampled (in SFT: targets)."""
  return np.concatenate(
    [np.zeros(0, bool), *(np.full(len(segment.ids), segment.sampled) for segment in segments)]
  )


def _turn(
  tok: tokenizer_lib.ChatTokenizer,
  index: int,
  pieces: Sequence[template.Piece],
  prefix: str,
  target: bool,
) -> list[types.Segment]:
  """Returns an assistant turn as two segments.

  The header is given. The text with `<|im_end|>` is the target unless the turn is masked.
  """
  texts = [piece for piece in pieces if isinstance(piece, str)]
  if len(texts) < len(pieces):
    raise errors.ChatError(
      f'message {index}: got an image in an assistant turn; wanted text only, fix the row'
    )
  text = ''.join(texts)
  start = prefix if text.startswith(prefix) else ''
  parts = [
    tok.encode(start, trusted=True),
    tok.encode(text[len(start) :], trusted=True),
    [tok.im_end],
  ]
  return [
    types.Segment(ids=template.header(tok, ''), sampled=False),
    types.Segment(ids=np.concatenate(parts).astype(np.int32), sampled=target),
  ]


def _mark_trusted(
  role: str, pieces: Sequence[template.Piece], answered: bool
) -> list[template.Piece]:
  """Marks trusted text: system texts, and response tags in messages after an assistant turn.

  All other text is untrusted. Pieces among which some are marked already stay as they are.
  """
  if role == 'system':
    return [template.Trusted(piece) if isinstance(piece, str) else piece for piece in pieces]
  if not answered or any(isinstance(piece, template.Trusted) for piece in pieces):
    return list(pieces)
  shown: list[template.Piece] = []
  for piece in pieces:
    parts = _RESPONSE_TAG.split(piece) if isinstance(piece, str) else [piece]
    shown += [
      template.Trusted(part) if isinstance(part, str) and _RESPONSE_TAG.fullmatch(part) else part
      for part in parts
      if not (isinstance(part, str) and not part)
    ]
  return shown
