r"""The append-only chat template: builds the given segments of a context.

An episode's stream, with sampled tokens in capitals (n results of a turn are n user messages):

  opening      <|im_start|>system\n...<|im_end|>\n<|im_start|>user\nframes and text<|im_end|>\n
               <|im_start|>assistant\n<think>\n
  sampled      I SHOULD LOOK.</think><tool_call>{...}</tool_call><|im_end|>
  continuation \n<|im_start|>user\n<tool_response>\n41
  red\n</tool_response><|im_end|>\n<|im_start|>assistant\n<think>\n
  sampled      IT IS RED.</think><answer>B</answer><|im_end|>

Sampled tokens are never decoded and encoded again. Control tokens are placed by id, so no text can
forge one. An image is `<|vision_start|><|image_pad|><|vision_end|>` with one pad, whatever its
size.
"""

import itertools
import json
from collections.abc import Iterable, Sequence

import numpy as np

from paravt_jax import types
from paravt_jax.chat import tokenizer as tokenizer_lib

Piece = str | np.ndarray  # text (see Trusted), or one frame uint8[H, W, 3]
THINK_PREFIX = '<think>\n'
RESPONSE_OPEN, RESPONSE_CLOSE = '<tool_response>', '</tool_response>'


class Trusted(str):
  """Text written by this project: its structural tags become tag tokens.

  In all other text, tags are encoded as plain text.
  """


def frame_pieces(
  frames: np.ndarray | Sequence[np.ndarray], seconds: Iterable[float]
) -> list[Piece]:
  """Returns each frame after its time: ['<12.0 seconds>', frame, ...].

  Raises:
    ValueError: the lengths differ.
  """
  return [
    piece
    for frame, second in zip(frames, seconds, strict=True)
    for piece in (f'<{float(second):.1f} seconds>', frame)
  ]


def opening(
  tok: tokenizer_lib.ChatTokenizer, system: str | None, user: Sequence[Piece], think_prefix: str
) -> types.Segment:
  """Returns the given start of a context.

  It holds the system message (unless None), the user message, the assistant header and the pinned
  prefix ('' for no prefix).
  """
  parts = [message(tok, 'system', [Trusted(system)])] if system is not None else []
  parts += [message(tok, 'user', user), header(tok, think_prefix)]
  return _given_segment(parts, user)


def continuation(
  tok: tokenizer_lib.ChatTokenizer,
  *,
  closed: bool,
  results: Sequence[str | Sequence[Piece]],
  request: str | None,
  think_prefix: str,
) -> types.Segment:
  """Returns the given segment after a sampled turn, through the next header and pinned prefix.

  Args:
    tok: the tokenizer.
    closed: whether the turn's last sampled id is `<|im_end|>`; if not, this segment adds it.
    results: the turn's results in call order, one user message each: the text of a tool response,
      or the pieces of the message.
    request: a final user message, or None.
    think_prefix: the pinned opening of the next turn.
  """
  # end of the sampled turn, then one user message per result, then the request
  parts = [end_of_turn(tok, closed)]
  parts += [
    response(tok, shown) if isinstance(shown, str) else message(tok, 'user', shown)
    for shown in results
  ]
  if request is not None:
    parts.append(message(tok, 'user', [request]))
  return _given_segment(
    [*parts, header(tok, think_prefix)],
    [piece for shown in results if not isinstance(shown, str) for piece in shown],
  )


def closing(tok: tokenizer_lib.ChatTokenizer, closed: bool) -> types.Segment:
  """Returns the final segment of a stream.

  It is `<|im_end|>` if the last turn does not end with it, else it has no tokens.
  """
  return _given_segment([np.array([] if closed else [tok.im_end], np.int32)])


def is_closed(tok: tokenizer_lib.ChatTokenizer, ids: Sequence[int] | np.ndarray) -> bool:
  """Returns whether sampled ids end with `<|im_end|>`; False for no ids."""
  return len(ids) > 0 and int(ids[-1]) == tok.im_end


def turn_text(
  tok: tokenizer_lib.ChatTokenizer, ids: Sequence[int] | np.ndarray, think_prefix: str
) -> str:
  """Returns the text of a sampled turn as rewards read it.

  The text starts with the pinned prefix and does not include the closing `<|im_end|>`.
  """
  return think_prefix + tok.decode(ids[:-1] if is_closed(tok, ids) else ids)


def assistant_text(content: str, reasoning: str, calls: Sequence[tuple[str, dict]]) -> str:
  """Returns a turn in the model's own format: think, content, then one block per call.

  Args:
    content: the visible text, may be ''.
    reasoning: the text of the think block; '' for no block.
    calls: (name, arguments) of each tool call; may be empty.
  """
  text = (
    f'{THINK_PREFIX}{reasoning.strip(chr(10))}\n</think>\n\n{content.lstrip(chr(10))}'
    if reasoning
    else content
  )
  for name, arguments in calls:
    call = json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)
    text += '\n' * bool(text and not text.endswith('\n')) + f'<tool_call>\n{call}\n</tool_call>'
  return text


# The building blocks, each int32[n]. SFT (chat/spans.py) uses the same functions.


def end_of_turn(tok: tokenizer_lib.ChatTokenizer, closed: bool) -> np.ndarray:
  """Returns `<|im_end|>` (unless it was sampled), then a line break."""
  return np.concatenate(
    [np.array([] if closed else [tok.im_end], np.int32), tok.encode('\n', trusted=True)]
  )


def header(tok: tokenizer_lib.ChatTokenizer, think_prefix: str) -> np.ndarray:
  """Returns `<|im_start|>assistant\\n` and the pinned prefix."""
  parts = [
    [tok.im_start],
    tok.encode('assistant\n', trusted=True),
    tok.encode(think_prefix, trusted=True),
  ]
  return np.concatenate(parts).astype(np.int32)


def message(tok: tokenizer_lib.ChatTokenizer, role: str, pieces: Sequence[Piece]) -> np.ndarray:
  """Returns one complete message with its line break.

  Adjacent texts that are both trusted, or both untrusted, are encoded together.
  """
  parts = [np.array([tok.im_start], np.int32)]
  pieces = [f'{role}\n', *pieces]
  for kind, run in itertools.groupby(pieces, key=type):
    if issubclass(kind, str):
      text = ''.join(piece for piece in run if isinstance(piece, str))
      parts.append(tok.encode(text, trusted=kind is Trusted))
    else:
      parts += [image(tok) for _ in run]
  return np.concatenate([*parts, end_of_turn(tok, closed=False)]).astype(np.int32)


def response(tok: tokenizer_lib.ChatTokenizer, text: str) -> np.ndarray:
  """Returns one result as a user message.

  Only the surrounding tags become tag tokens; tags inside `text` are encoded as plain text.
  """
  return message(tok, 'user', [Trusted(RESPONSE_OPEN), f'\n{text}\n', Trusted(RESPONSE_CLOSE)])


def image(tok: tokenizer_lib.ChatTokenizer) -> np.ndarray:
  """Returns the placeholder of one image, not expanded."""
  return np.array([tok.vision_start, tok.image_pad, tok.vision_end], np.int32)


def _given_segment(parts: Sequence[np.ndarray], pieces: Sequence[Piece] = ()) -> types.Segment:
  """Concatenates parts into a given segment with the frames among `pieces`."""
  frames = tuple(piece for piece in pieces if not isinstance(piece, str))
  return types.Segment(ids=np.concatenate(parts).astype(np.int32), sampled=False, images=frames)
