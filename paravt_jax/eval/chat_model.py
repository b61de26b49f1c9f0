"""Any model behind an OpenAI-compatible server, in the place of our own: contexts become messages
again, replies become tokens.

Our chat template can be read backwards: control tokens are placed by id and nothing else has
theirs. The reply's tokens are those of a local tokenizer; there are no log-probs, so such episodes
are for evaluation only.
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
  """How a model behind the OpenAI protocol is spoken to."""

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
  """What a model wrote."""

  finish: str  # 'stop', or 'length' when a limit cut it


class ChatModel:
  """A Sampler twin over a chat server. Use inside `async with server`. `counts`: requests,
  prompt_tokens and sampled_tokens, both by the local tokenizer.
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
    """Whether a reply can be given its beginning."""
    return self._chat.prefill

  def remaining(self, segments: Sequence[Segment], reserved: int = 0) -> int:
    """Tokens that may still be sampled after these segments, with `reserved` left free; an estimate
    for another tokenizer.
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
    """The next segment, encoded from the reply's text, log-probs and versions 0, and the finish
    reason ('stop' or 'length').

    on_tokens: receives all ids once, because a reply arrives complete.

    Raises:
      RolloutError: the server failed or refused, or its reply cannot be read; begins with the
      reason's name.
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
  """The messages that segments of our template stand for; frames as data URLs, texts between them
  whole.

  A last assistant message is the beginning that a reply is given; an empty one is left out.
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
  """One message, from its tokens between `<|im_start|>` and `<|im_end|>`."""
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
  """Reads a chat completion: its text, with the reasoning that a server took out put back before
  it, and how it ended.

  An empty text is what the model wrote. Calls that the server took out of the text are a fault of
  its settings.
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
  """What a reply adds to its beginning: some servers open the thought again that it was given
  opened.
  """
  opened = begun.rstrip() == tags.THINK_OPEN and text.lstrip().startswith(tags.THINK_OPEN)
  return text.lstrip().removeprefix(tags.THINK_OPEN).removeprefix('\n') if opened else text


def more(text: str) -> dict[str, Any]:
  """`ChatOptions.more` as fields. Raises ConfigError when it is no JSON object."""
  return chat_server.more(text, 'chat.more')
