"""Converts text to ids and back, with one rule: text never becomes control tokens.

A published `tokenizer.json` marks some added tokens as special (`<|im_start|>`) and others not
(`<think>`, `<tool_call>`, but also `<|fim_prefix|>`). Here the form of a token decides:

  `<|...|>`             a control token, only ever placed by id
  `<word>`, `</word>`   a structural tag: one token in text of this project, plain text in questions
                        and in sub-agents' results
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
      tokens.
    vision_ids: every vision id, ascending; the policy must not sample them.
    vocab_size: number of tokens, added ones included (a model's table may be padded beyond it).
  """

  def __init__(self, spec: dict, where: str):
    """Builds the tokenizer from the parsed content of a tokenizer.json.

    Args:
      spec: the parsed content.
      where: the name of the source in error messages.

    Raises:
      ChatError: the content cannot be used, or a control token of Qwen3-VL is missing.
    """
    self._trusted = _build(spec, where, tags_are_text=False)
    self._untrusted = _build(spec, where, tags_are_text=True)
    found = {token: self._trusted.token_to_id(token) for token in (*_REQUIRED, *_VISION)}
    ids = {token: number for token, number in found.items() if number is not None}
    missing = [token for token in _REQUIRED if token not in ids]
    if missing:
      raise errors.ChatError(
        f'{where}: got no {", ".join(missing)}; wanted the control tokens of Qwen3-VL, use '
        'its tokenizer'
      )
    self.im_start = ids['<|im_start|>']
    self.im_end = ids['<|im_end|>']
    self.endoftext = ids['<|endoftext|>']
    self.vision_start = ids['<|vision_start|>']
    self.vision_end = ids['<|vision_end|>']
    self.image_pad = ids['<|image_pad|>']
    self.video_pad = ids['<|video_pad|>']
    self.vision_ids = tuple(sorted(ids[token] for token in _VISION if token in ids))
    self.vocab_size = self._trusted.get_vocab_size(with_added_tokens=True)

  @classmethod
  def load(cls, folder: str | pathlib.Path) -> 'ChatTokenizer':
    """Returns the tokenizer of a Hugging Face checkpoint folder.

    Reads tokenizer.json, or vocab.json and merges.txt if there is no tokenizer.json.

    Raises:
      ChatError: the folder has neither, or a file cannot be read.
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
    """Returns the ids of `text`, int32[n]; empty for ''.

    The ids never contain a control token. A structural tag is a single token only in trusted text.
    """
    tokenizer = self._trusted if trusted else self._untrusted
    return np.asarray(tokenizer.encode(_utf8(text), add_special_tokens=False).ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids, control tokens included.

    Ids without a token (padding of a model's embedding table) and invalid UTF-8 raise no error.
    """
    return self._trusted.decode([int(i) for i in ids], skip_special_tokens=False)

  def token_to_id(self, token: str) -> int | None:
    """Returns the id of one token; None if the vocabulary does not have it."""
    return self._trusted.token_to_id(token)


def _build(spec: dict, where: str, *, tags_are_text: bool) -> tokenizers.Tokenizer:
  """Returns a tokenizer that encodes control tokens (and tags, if `tags_are_text`) as plain text.

  It marks these tokens as special and then sets `encode_special_tokens`. Ids do not change.
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
  """Returns `text` with lone surrogates replaced.

  JSON text can contain them, but UTF-8, which the tokenizer needs, cannot.
  """
  return text.encode('utf-8', 'replace').decode('utf-8')
