"""Text to ids and back, with one rule: text never turns into control tokens.

A published `tokenizer.json` marks some added tokens as special (`<|im_start|>`) and some not
(`<think>`, `<tool_call>`, but also `<|fim_prefix|>`). Here the form of a token decides: `<|...|>`
is a control token and is only ever placed by id; `<word>` and `</word>` are structural tags, tokens
in text that we wrote, plain text in questions and in sub-agents' results.
"""

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tokenizers

from paravt_jax import errors
from paravt_jax.chat import slow

_CONTROL = re.compile(r'<\|.*\|>', re.DOTALL)
_TAG = re.compile(r'</?[A-Za-z_]+>')
_REQUIRED = (
  '<|im_start|>',
  '<|im_end|>',
  '<|endoftext|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|image_pad|>',
  '<|video_pad|>',
)
_VISION = ('<|vision_start|>', '<|vision_end|>', '<|vision_pad|>', '<|image_pad|>', '<|video_pad|>')


class ChatTokenizer:
  """A `tokenizers` tokenizer that encodes text safely.

  Attributes:
    im_start, im_end, endoftext, vision_start, vision_end, image_pad, video_pad: ids of the control
    tokens. vision_ids: every vision id, ascending; the policy must not sample them. vocab_size:
    number of tokens, added ones included (a model's table may be padded beyond it).
  """

  def __init__(self, spec: dict, where: str):
    """Builds from the parsed content of a tokenizer.json; `where` names it in errors (ChatError:
    unreadable, token missing).
    """
    self._trusted = _build(spec, where, tags_are_text=False)
    self._untrusted = _build(spec, where, tags_are_text=True)
    ids = {token: self._trusted.token_to_id(token) for token in dict.fromkeys(_REQUIRED + _VISION)}
    missing = [token for token in _REQUIRED if ids[token] is None]
    if missing:
      raise errors.ChatError(
        f'{where}: got no {", ".join(missing)}; wanted the control tokens of Qwen3-VL, use '
        'its tokenizer'
      )
    known = {token: number for token, number in ids.items() if number is not None}
    self.im_start, self.im_end, self.endoftext = (known[token] for token in _REQUIRED[:3])
    self.vision_start, self.vision_end, self.image_pad, self.video_pad = (
      known[token] for token in _REQUIRED[3:]
    )
    self.vision_ids: tuple[int, ...] = tuple(
      sorted(known[token] for token in _VISION if ids[token] is not None)
    )
    self.vocab_size: int = self._trusted.get_vocab_size(with_added_tokens=True)

  @classmethod
  def load(cls, folder: str | pathlib.Path) -> 'ChatTokenizer':
    """The tokenizer of a Hugging Face checkpoint folder: its tokenizer.json, or vocab.json and
    merges.txt where it has none.

    Raises ChatError when there is neither, or one cannot be read.
    """
    path = pathlib.Path(folder) / 'tokenizer.json'
    if not path.exists() and slow.is_there(path.parent):
      tok = cls(slow.spec(path.parent), str(path.parent))
      slow.check_ids(path.parent, tok.token_to_id)
      return tok
    try:
      spec = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
      raise errors.ChatError(
        f'{path}: no such file, nor vocab.json with merges.txt; wanted a tokenizer, point at '
        'a checkpoint folder '
        'with one'
      ) from None
    except (OSError, ValueError) as error:
      raise errors.ChatError(
        f'{path}: cannot be read ({error}), wanted JSON; copy the file again'
      ) from error
    return cls(spec, str(path))

  def encode(self, text: str, *, trusted: bool) -> np.ndarray:
    """int32[n] ids of `text`; empty for ''. Never a control token; structural tags are single
    tokens only when trusted.
    """
    tokenizer = self._trusted if trusted else self._untrusted
    return np.asarray(tokenizer.encode(_utf8(text), add_special_tokens=False).ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Text of ids, control tokens kept; ids that name no token (padding of a model's table) and
    broken UTF-8 give no error.
    """
    return self._trusted.decode([int(i) for i in ids], skip_special_tokens=False)

  def token_to_id(self, token: str) -> int | None:
    """The id of one token, None when there is none."""
    return self._trusted.token_to_id(token)


def _build(spec: dict, where: str, *, tags_are_text: bool) -> tokenizers.Tokenizer:
  """A tokenizer whose `special` flags say what must stay text, and that then keeps special tokens
  as text; ids do not move.
  """
  if not isinstance(spec, dict) or not isinstance(spec.get('added_tokens', []), list):
    raise errors.ChatError(
      f'{where}: got {type(spec).__name__}, wanted the object that a fast tokenizer saves'
    )
  added = []
  for token in spec.get('added_tokens', []):
    text = str(token.get('content', ''))
    plain = bool(_CONTROL.fullmatch(text)) or (tags_are_text and bool(_TAG.fullmatch(text)))
    added.append(dict(token, special=plain))
  buffer = json.dumps(dict(spec, added_tokens=added, truncation=None, padding=None)).encode()
  try:
    tokenizer = tokenizers.Tokenizer.from_buffer(buffer)
  except ValueError as error:
    raise errors.ChatError(
      f'{where}: `tokenizers` refuses it ({error}); wanted a saved fast tokenizer'
    ) from error
  tokenizer.encode_special_tokens = True
  return tokenizer


def _utf8(text: str) -> str:
  """`text` with lone surrogates replaced, which JSON can smuggle in and the tokenizer's UTF-8
  cannot hold.
  """
  return text.encode('utf-8', 'replace').decode('utf-8')
