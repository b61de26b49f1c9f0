"""Evaluates any model behind an OpenAI-compatible server.

Contexts become chat messages, and replies become tokens. Our chat template can be decoded to
messages, because only control tokens have control ids. A local tokenizer encodes each reply. There
are no log-probs, so these episodes are for evaluation only.
"""

import asyncio
import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, cast

import numpy as np
import orjson

from paravt_jax.chat import tags
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import RolloutError
from paravt_jax.options import FLAG, PROSE, QUALITY, Options
from paravt_jax.rollout import chat_server
from paravt_jax.rollout.chat_dialect import message_text
from paravt_jax.rollout.chat_server import Reply, Sampling, Server, image_part, text_part
from paravt_jax.rollout.outcomes import Failed, Rejected
from paravt_jax.rollout.sampler import Address, ContextOptions, expanded
from paravt_jax.types import Segment, TokenClass

_SHOWN = 200  # characters of a reply in an error message
_CONTINUE = {'continue_final_message': True, 'add_generation_prompt': False}


@dataclasses.dataclass(frozen=True)
class ChatOptions(Options):
  """How requests to a model behind the OpenAI protocol are made."""

  quality: Annotated[int, QUALITY]  # of the JPEGs that frames are sent as; 0: PNG, every pixel
  # a pinned prefix is sent as the beginning of the reply: vLLM and SGLang continue from it
  prefill: Annotated[bool, FLAG]
  # further fields of each request, a JSON object such as
  # '{"chat_template_kwargs": {"enable_thinking": false}}'; null takes one of ours out
  more: Annotated[str, PROSE]

  @classmethod
  def published(cls) -> 'ChatOptions':
    """Every pixel, for servers that continue from a prefix."""
    return cls(quality=0, prefill=True, more='')


@dataclasses.dataclass(frozen=True)
class Written(Reply):
  """The text of a reply and its finish reason."""

  finish: str  # 'stop', or 'length' when the token limit cut the reply


class ChatModel:
  """A `Sampler` that sends requests to a chat server. Use it inside `async with server`.

  `counts` has requests, prompt_tokens and sampled_tokens. The local tokenizer counts the tokens.
  """

  def __init__(
    self, server: Server, tok: ChatTokenizer, context: ContextOptions, options: ChatOptions
  ):
    self.tok, self.options = tok, context
    self._server, self._chat = server, options
    self._more = more(options.more)
    self.counts: collections.Counter[str] = collections.Counter()

  @property
  def prefills(self) -> bool:
    """Whether the server accepts the beginning of a reply."""
    return self._chat.prefill

  def remaining(self, segments: Sequence[Segment], reserved: int = 0) -> int:
    """Returns how many tokens can be sampled after these segments, minus `reserved`.

    This is an estimate if the served model has another tokenizer.
    """
    return self.options.context - expanded(segments) - reserved

  async def sample(
    self,
    segments: Sequence[Segment],
    *,
    address: Address,
    turn: int,
    call: int,
    max_new_tokens: int,
    token_class: TokenClass,
    on_tokens: Callable[[list[int]], None] | None = None,
  ) -> tuple[Segment, str]:
    """Samples the next segment and returns it with the finish reason ('stop' or 'length').

    The local tokenizer encodes the reply into the segment. Its log-probs and versions are 0.

    Args:
      on_tokens: called once with all ids, because the reply arrives in one piece.

    Raises:
      RolloutError: the server failed or refused, or the reply is unreadable. The message starts
        with the reason's name.
    """
    # Encode images in a thread, so that the event loop stays free.
    messages = await asyncio.to_thread(
      lambda: list(to_messages(self.tok, segments, self._chat.quality))
    )
    fields = dict(self._more)
    if messages[-1]['role'] == 'assistant':
      fields |= _CONTINUE
    if self.options.top_p < 1:
      fields['top_p'] = self.options.top_p
    if self.options.top_k > 0:
      fields['top_k'] = self.options.top_k
    sampling = Sampling(max_new_tokens, self.options.temperature, address.sampling_seed(turn, call))
    outcome = await self._server.complete(messages, sampling, fields, read_written)
    if isinstance(outcome, Rejected | Failed):
      raise RolloutError(f'{outcome.reason}: {outcome.detail}')
    written = cast(Written, outcome)  # the type that `read_written` returns
    # Turn the reply into tokens, without the beginning that we sent.
    begun = messages[-1]['content'] if messages[-1]['role'] == 'assistant' else ''
    ids = self.tok.encode(_continuation(begun, written.text), trusted=True)
    if written.finish == 'stop':
      ids = np.append(ids, np.int32(self.tok.im_end))
    self.counts.update(requests=1, prompt_tokens=expanded(segments), sampled_tokens=len(ids))
    if on_tokens is not None:
      on_tokens(ids.tolist())
    return Segment(
      ids,
      sampled=True,
      logprobs=np.zeros(len(ids), np.float32),
      versions=np.zeros(len(ids), np.int32),
      token_class=token_class,
    ), written.finish


def to_messages(
  tok: ChatTokenizer, segments: Sequence[Segment], quality: int
) -> Iterator[dict[str, Any]]:
  """Yields the chat messages of segments in our template.

  Frames become data URLs, and each text between two frames becomes one part. A last assistant
  message without an end token is the beginning of the reply. It is omitted when empty.
  """
  ids = np.concatenate([np.asarray(segment.ids, np.int32) for segment in segments])
  images = iter([image for segment in segments for image in segment.images])
  starts = np.flatnonzero(ids == tok.im_start)
  for start, limit in zip(starts, [*starts[1:], len(ids)]):
    body = ids[start + 1 : limit]
    ends = np.flatnonzero(body == tok.im_end)
    yield from _message(
      tok, body[: ends[0]] if len(ends) else body, images, quality, closed=bool(len(ends))
    )


def _message(
  tok: ChatTokenizer, body: np.ndarray, images: Iterator[np.ndarray], quality: int, *, closed: bool
) -> Iterator[dict[str, Any]]:
  """Yields the message of the tokens between `<|im_start|>` and `<|im_end|>`.

  Yields nothing for an unfinished message without content.
  """
  parts, texts = [], np.split(body, np.flatnonzero(body == tok.image_pad))
  for index, run in enumerate(texts):
    text = tok.decode(run[~np.isin(run, tok.vision_ids)])
    if not index:
      role, _, text = text.partition('\n')
    else:
      parts.append(image_part(next(images), quality))
    if text:
      parts.append(text_part(text))
  if all(part['type'] == 'text' for part in parts):
    content: Any = ''.join(part['text'] for part in parts)
  else:
    content = parts
  if closed or content:
    yield {'role': role, 'content': content}


def read_written(content: bytes) -> Written | Rejected:
  """Returns the text and finish reason of a chat completion, or why it was rejected.

  Reasoning in a separate field is put back before the text. An empty text is allowed. A reply with
  tool calls in a separate field is rejected, because the server settings are wrong.
  """
  try:
    choice = orjson.loads(content)['choices'][0]
    message, finish = choice['message'], choice.get('finish_reason')
    text = message_text(message.get('content'))
    reasoning = message.get('reasoning_content') or message.get('reasoning') or ''
  except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
    return Rejected('unreadable', repr(content[:_SHOWN]))
  if finish == 'content_filter':
    return Rejected('filtered', 'the server filtered the reply')
  if message.get('tool_calls'):
    return Rejected(
      'tool_calls', 'the server took the calls out of the text; start it without a tool call parser'
    )
  if text is None:
    text = ''
  if not isinstance(text, str) or not isinstance(reasoning, str):
    return Rejected('unreadable', f'content {text!r:.80}, reasoning {reasoning!r:.80}')
  if reasoning:
    text = f'{tags.THINK_OPEN}\n{reasoning}' + (
      f'\n{tags.THINK_CLOSE}\n{text}' if text or finish != 'length' else ''
    )
  return Written(
    text.replace('\0', '').replace('\r\n', '\n'), 'length' if finish == 'length' else 'stop'
  )


def _continuation(begun: str, text: str) -> str:
  """Returns the part of a reply after its given beginning.

  Some servers repeat the opening think tag, which is removed here.
  """
  opened = begun.rstrip() == tags.THINK_OPEN and text.lstrip().startswith(tags.THINK_OPEN)
  return text.lstrip().removeprefix(tags.THINK_OPEN).removeprefix('\n') if opened else text


def more(text: str) -> dict[str, Any]:
  """Returns `ChatOptions.more` as request fields. Raises ConfigError if it is not a JSON object."""
  return chat_server.more(text, 'chat.more')
