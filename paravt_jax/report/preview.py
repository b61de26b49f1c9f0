"""SFT rows as the model will see them, on one static HTML page: messages, every frame with its
time, all tokens, the loss mask.

The page shows the pictures, ids and mask of the sample that would be packed, not of the row.
"""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from paravt_jax import packing
from paravt_jax.chat import prompts, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, sft
from paravt_jax.data.conversations import Conversation, ImageRef, Message, VideoRef
from paravt_jax.errors import ChatError, MediaError
from paravt_jax.metrics.writer import write_whole
from paravt_jax.report import policy, scenes

_HERE = Path(__file__).parent
_PIXELATED = 100  # pixels; smaller pictures are drawn with hard edges
_PER_CHARACTER = 4  # bytes of a UTF-8 character: tokens that it can be cut into
_BROKEN = '\N{REPLACEMENT CHARACTER}'
_REPLACED = "The row's own system text has no <tools> block; the model is given this one instead."


@dataclasses.dataclass(frozen=True)
class Limits:
  """The capacity of one row of a batch."""

  row_tokens: int  # image placeholders expanded
  row_images: int  # frames and images of up to image_patches patches
  image_patches: int
  row_large_images: int  # larger images


@dataclasses.dataclass(frozen=True)
class Token:
  """A unit of the token view: one token, or several that form one character."""

  ids: tuple[int, ...]  # several where a character is cut in pieces
  text: str
  target: bool  # whether the loss counts it
  image: int  # its number from 1; 0 for text
  expanded: int  # tokens that it takes in a row


@dataclasses.dataclass(frozen=True)
class RowView:
  """A row on the page. Fields that could not be read are empty."""

  name: str  # as it was asked for
  id: str  # 'file.parquet:row'
  reason: str  # why it would be dropped; '' when it would not be
  fault: str  # the reason in words
  messages: tuple[dict[str, Any], ...]
  tokens: tuple[tuple[Token, ...], ...]  # by message
  counts: dict[str, int]


def view_row(
  name: str,
  conversation: Conversation,
  tok: ChatTokenizer,
  frames: sft.Frames,
  options: sft.FrameOptions,
  limits: Limits,
) -> RowView:
  """A row as it would be packed; unreadable media give a view without tokens, and the reason.

  Args:
    name: how the row was asked for, 'source:number'.
    conversation, tok, frames, options: as for `sft.sample`.
    limits: of a row of the batch; what does not fit would be dropped.
  """
  decode, shown = sft.decoded(frames, options), []

  def media(ref: VideoRef | ImageRef) -> list[template.Piece]:
    shown.append(decode(ref))
    return shown[-1]

  try:
    sample = sft.sample(tok, conversation, media, options)
  except (MediaError, ChatError) as error:
    reason = f'media_{error.reason}' if isinstance(error, MediaError) else 'chat'
    return RowView(
      name, conversation.id, reason, str(error), _messages(conversation, shown), (), {}
    )
  counts = _counts(sample, limits)
  reason, fault = _verdict(counts, limits)
  return RowView(
    name,
    conversation.id,
    reason,
    fault,
    _messages(conversation, shown),
    _tokens(tok, sample),
    counts,
  )


def unreadable(name: str, where: str, reason: str, fault: str) -> RowView:
  """Returns the view of a row that breaks the schema: only the reason."""
  return RowView(name, where, reason, fault, (), (), {})


def write(out_html: Path | str, title: str, looks: Sequence[RowView], limits: Limits) -> Path:
  """Writes the page atomically and returns its path. Raises ParavtError when it cannot be
  written.
  """
  return write_whole(out_html, render(title, looks, limits), 'write the preview')


def render(title: str, looks: Sequence[RowView], limits: Limits) -> str:
  """The page as text."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_HERE),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  environment.filters['visible'] = visible
  script = (_HERE / 'page.js').read_text()
  return environment.get_template('preview.html.j2').render(
    title=title,
    looks=looks,
    limits=limits,
    style=Markup((_HERE / 'page.css').read_text() + (_HERE / 'preview.css').read_text()),
    script=Markup(script),
    policy=policy.meta(script),
    written=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
  )


def visible(text: str) -> str:
  """A token's text with its line ends marked, so that a token with only a line break is visible."""
  return text.replace('\r', '␍').replace('\n', '⏎\n')


def _counts(sample: packing.Sample, limits: Limits) -> dict[str, int]:
  tokens, images, large_images = packing.sizes(packing.Tree(sample), limits.image_patches)
  seen = sum(_image_tokens(image) for image in sample.images)
  return {
    'tokens': tokens,
    'images': images,
    'large_images': large_images,
    'image_tokens': seen,
    'targets': int(sample.extras[sft.MASK].sum()),
  }


def _verdict(counts: dict[str, int], limits: Limits) -> tuple[str, str]:
  """Why the planner would drop such a sample, as its reason and in words; ('', '') when it would
  not.
  """
  if counts['tokens'] > limits.row_tokens:
    return (
      batches.TOO_LONG,
      f'{counts["tokens"]:,} tokens; a row holds {limits.row_tokens:,} (train.row_tokens)',
    )
  for kind, most in (('images', limits.row_images), ('large_images', limits.row_large_images)):
    if counts[kind] > most:
      return (
        batches.TOO_MANY_IMAGES,
        f'{counts[kind]:,} {kind.replace("_", " ")}; a row holds {most:,} (train.row_{kind})',
      )
  if not counts['targets']:
    return batches.NO_TARGET, 'no token counts in the loss'
  return '', ''


# Messages


def _messages(
  conversation: Conversation, shown: Sequence[list[template.Piece]]
) -> tuple[dict[str, Any], ...]:
  """{role, parts, note} of each message. `shown`: the pieces of its media in order; those behind a
  broken one are missing.
  """
  pieces = iter(shown)
  return tuple(_message(message, pieces) for message in conversation.messages)


def _message(message: Message, shown: Iterator[list[template.Piece]]) -> dict[str, Any]:
  if message.role == 'system':
    own = ''.join(part for part in message.parts if isinstance(part, str))
    text = prompts.system(own)
    return {
      'role': 'system',
      'parts': [{'spans': _plain_spans(text)}],
      'note': '' if text == own else _REPLACED,
    }
  cut = scenes.spans if message.role == 'assistant' else _plain_spans
  media = lambda ref: {'title': ref.path, 'label': _label(ref), **_pictures(next(shown, None))}
  parts = [{'spans': cut(part)} if isinstance(part, str) else media(part) for part in message.parts]
  return {'role': message.role, 'parts': parts, 'note': ''}


def _plain_spans(text: str) -> list[scenes.Span]:
  return [scenes.Span('plain', False, text)]


def _label(ref: VideoRef | ImageRef) -> str:
  """'clip.mp4 · 8 frames · 3 s – 9 s': the file and what the row asks of it."""
  words = [Path(ref.path).name]
  if isinstance(ref, VideoRef):
    if ref.num_frames is not None:
      words.append(f'{_many(ref.num_frames, "frame")} asked for')
    if ref.start is not None or ref.end is not None:
      words.append(
        f'from {scenes.clock(ref.start or 0)} to '
        + ('the end' if ref.end is None else scenes.clock(ref.end))
      )
  return ' · '.join(words)


def _pictures(pieces: list[template.Piece] | None) -> dict[str, Any]:
  """{thumbs, size, note} of one video's or image's pieces; None: they could not be read."""
  if pieces is None:
    return {'thumbs': [], 'size': 'few', 'note': 'could not be read'}
  thumbs, before = [], ''
  for piece in pieces:
    if isinstance(piece, str):
      before = piece
      continue
    height, width = piece.shape[:2]
    time = before.strip('<>').replace(' seconds', ' s')
    thumbs.append(
      {
        'src': scenes.data_uri(piece),
        'pixelated': max(height, width) < _PIXELATED,
        'text': time or f'{width}×{height}',
        'title': f'{time + " · " if time else ""}{width}×{height} · '
        f'{_many(_image_tokens(piece), "token")}',
      }
    )
    before = ''
  few = (
    'still'
    if thumbs and all('×' in thumb['text'] for thumb in thumbs)
    else 'few'
    if len(thumbs) <= 16
    else 'some'
  )
  return {'thumbs': thumbs, 'size': few, 'note': ''}


def _many(count: int, noun: str) -> str:
  return f'{count:,} {noun}{"" if count == 1 else "s"}'


def _image_tokens(image: np.ndarray) -> int:
  high, wide = packing.image_grid(image)
  return high * wide // packing.MERGE**2


# Tokens


def _tokens(tok: ChatTokenizer, sample: packing.Sample) -> tuple[tuple[Token, ...], ...]:
  """The sample's tokens, a tuple for each message: no text can forge the token that begins one."""
  starts = np.flatnonzero(sample.ids == tok.im_start).tolist()
  images = 0
  found = []
  for start, stop in zip(starts, [*starts[1:], len(sample.ids)]):
    ids, mask = sample.ids[start:stop], sample.extras[sft.MASK][start:stop] > 0
    found.append(tuple(_message_tokens(tok, ids, mask, sample.images, images)))
    images += int((ids == tok.image_pad).sum())
  return tuple(found)


def _message_tokens(
  tok: ChatTokenizer, ids: np.ndarray, mask: np.ndarray, images: Sequence[np.ndarray], seen: int
) -> Iterator[Token]:
  at = 0
  while at < len(ids):
    if ids[at] == tok.image_pad:
      seen += 1
      yield Token((int(ids[at]),), '', bool(mask[at]), seen, _image_tokens(images[seen - 1]))
      at += 1
      continue
    size = _character(tok, ids[at:], mask[at:])
    run = tuple(int(i) for i in ids[at : at + size])
    yield Token(run, tok.decode(run), bool(mask[at]), 0, size)
    at += size


def _character(tok: ChatTokenizer, ids: np.ndarray, mask: np.ndarray) -> int:
  """How many of the next tokens make whole characters: 1, or more when the first one ends within a
  character.
  """
  for size in range(1, min(_PER_CHARACTER, len(ids)) + 1):
    if mask[size - 1] != mask[0]:
      break
    if _BROKEN not in tok.decode(ids[:size]):
      return size
  return 1
