"""Evaluates any model behind an OpenAI-compatible server: contexts become messages, replies become
tokens.

Our chat template can be read backwards, because control tokens are placed by id and no other text
has their ids. A local tokenizer encodes the reply. There are no log-probs, so such episodes serve
evaluation only.
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

_SHOWN = 200  # characters of a reply that a message shows
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
  """The text of a reply and how it ended."""

  finish: str  # 'stop', or 'length' when a limit cut it


class ChatModel:
  """A `Sampler` over a chat server. Use it inside `async with server`.

  `counts` has requests, prompt_tokens and sampled_tokens, both by the local tokenizer.
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
    """Returns how many tokens may still be sampled after these segments, with `reserved` left free.

    For another tokenizer this is an estimate.
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

    The segment is encoded from the reply's text. Its log-probs and versions are 0.

    Args:
      on_tokens: receives all ids once, because a reply arrives complete.

    Raises:
      RolloutError: the server failed or refused, or its reply cannot be read. The message begins
        with the name of the reason.
    """
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
    written = cast(Written, outcome)  # as `read_written` gives it
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
  """Turns segments of our template into messages; frames become data URLs, texts between them stay
  whole.

  A last assistant message is the beginning of the reply. An empty one is left out.
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
  """Returns one message from its tokens between `<|im_start|>` and `<|im_end|>`."""
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
  """Reads a chat completion: its text and how it ended.

  Reasoning that a server moved to its own field is put back before the text. The model may write an
  empty text. A reply whose calls were moved out of the text shows wrong server settings and is an
  error.
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
  """Returns the part of a reply that follows its given beginning; some servers repeat the opened
  thought.
  """
  opened = begun.rstrip() == tags.THINK_OPEN and text.lstrip().startswith(tags.THINK_OPEN)
  return text.lstrip().removeprefix(tags.THINK_OPEN).removeprefix('\n') if opened else text


def more(text: str) -> dict[str, Any]:
  """`ChatOptions.more` as fields. Raises ConfigError when it is no JSON object."""
  return chat_server.more(text, 'chat.more')
