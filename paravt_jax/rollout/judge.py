"""An LLM judge that compares an open answer with the gold one, on an OpenAI-compatible server.

If the judge fails, the episode has no score. It leaves the group and is counted.
"""

import collections
import dataclasses
import re
from typing import Annotated, cast

import orjson

from paravt_jax.chat import tags
from paravt_jax.options import COUNT, LARGEST, POSITIVE, PROSE, RETRIES, TEXT, URL, Options
from paravt_jax.rollout.chat_dialect import message_text
from paravt_jax.rollout.chat_server import Reply, Sampling, Server, ServerOptions, more
from paravt_jax.rollout.outcomes import Rejected

_PROMPT = """Is the answer right? Compare it with the reference; wording may differ, facts may not.
Question: {question}
Reference: {gold}
Answer: {prediction}
Reply with one last line, either "VERDICT: right" or "VERDICT: wrong"."""
# Patterns for a line after `_words`.
_VERDICT = re.compile(r'(?:\d+ )?(?:(?:my|the|final) )*verdict (?:is )?(right|wrong)')
_HEADING, _WORD = re.compile(r'(?:(?:my|the|final) )*verdict'), re.compile(r'right|wrong')
_REPLY_BYTES = 1 << 20  # a longer reply is not read
_FENCE = re.compile(r'\s*(?:```|~~~)\s*\w*\s*')
_PROBE = ('What colour is a ripe tomato?', 'red', 'It is red.')
_WAYS_OUT = {
  'connection': 'start it, or correct --config.judge.url',
  'timeout': 'raise --config.judge.timeout_s',
  'unreadable': 'raise --config.judge.max_tokens if the reply was cut off; else correct '
  '--config.judge.url, or name another '
  '--config.judge.model',
  'busy': 'wait until it serves again, or see to its quota, then run the same command again',
  '': 'correct --config.judge.url and --config.judge.model, or set --config.judge.more (a JSON '
  'object that is merged into every '
  'request; null takes a field out)',
}
_REASONS = {
  'connection': 'judge_connection',
  'timeout': 'judge_timeout',
  'status': 'judge_status',
  'refused': 'judge_status',
  'too_large': 'judge_unreadable',
  'unreadable': 'judge_unreadable',
}


@dataclasses.dataclass(frozen=True)
class JudgeOptions(Options):
  """An LLM that judges open answers, behind the OpenAI protocol."""

  url: Annotated[str, URL]  # of the server, up to and without '/chat/completions'
  model: Annotated[str, TEXT]  # its name there
  # bearer token; '' sends none; env:NAME or file:PATH keeps it off the command line
  api_key: Annotated[str, TEXT] = dataclasses.field(repr=False)
  # further fields of each request, a JSON object such as '{"reasoning_effort": "low"}'; null takes
  # one of ours out
  more: Annotated[str, PROSE]
  max_tokens: Annotated[int, COUNT]  # of a reply
  timeout_s: Annotated[float, POSITIVE]  # for one request
  retries: Annotated[int, RETRIES]  # after a lost connection, or status 408, 429 or 5xx
  backoff_s: Annotated[float, POSITIVE]  # before the first retry; it doubles with each
  concurrency: Annotated[int, COUNT]  # requests at once

  @classmethod
  def published(cls) -> 'JudgeOptions':
    """Returns options without a judge, and limits that suit a hosted one."""
    return cls(
      url='',
      model='',
      api_key='',
      more='',
      max_tokens=256,
      timeout_s=60.0,
      retries=3,
      backoff_s=1.0,
      concurrency=16,
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The judge's verdict on an answer."""

  right: bool  # whether the prediction means the same as the reference


@dataclasses.dataclass(frozen=True)
class JudgeFailure:
  """Why there is no verdict."""

  reason: str  # 'judge_connection', 'judge_timeout', 'judge_status' or 'judge_unreadable'
  detail: str  # what the server returned, in one line


@dataclasses.dataclass(frozen=True)
class _Read(Reply):
  """A completion with a readable verdict."""

  verdict: Verdict


class Judge:
  """A client of the judge. Use as `async with Judge(options) as judge`.

  `counts` has verdicts and failures by name.

  Raises:
    ConfigError: options.more is not a JSON object.
  """

  def __init__(self, options: JudgeOptions):
    self._more = more(options.more, 'judge.more')
    self._sampling = Sampling(options.max_tokens, 0, 0)
    # No limit on failures: a failure loses its episode but never ends the run.
    self._server = Server(
      ServerOptions(
        url=options.url,
        model=options.model,
        api_key=options.api_key or '',
        timeout_s=options.timeout_s,
        retries=options.retries,
        backoff_s=options.backoff_s,
        max_backoff_s=min(options.backoff_s * 2**options.retries, LARGEST),
        concurrency=options.concurrency,
        max_reply_bytes=_REPLY_BYTES,
        max_failures=LARGEST,
      ),
      '--config.judge',
    )
    self.counts: collections.Counter[str] = collections.Counter()

  async def __aenter__(self):
    await self._server.__aenter__()
    return self

  async def __aexit__(self, *exception):
    await self._server.__aexit__(*exception)

  async def check(self) -> None:
    """Requests one trivial verdict before the run starts.

    Raises:
      RolloutError: no readable verdict. One line has the server's answer and the knobs that may
      help.
    """
    await self._server.probe(
      _messages(*_PROBE), self._sampling, self._more, _read, ways_out=_WAYS_OUT
    )

  async def compare(self, question: str, gold: str, prediction: str) -> Verdict | JudgeFailure:
    """Returns the judge's verdict at temperature 0, or a failure as a value.

    A blank prediction is wrong without a request.

    Raises:
      RolloutError: the url is not valid.
    """
    if not prediction.strip():
      return Verdict(False)
    found = await self._server.complete(
      _messages(question, gold, prediction), self._sampling, self._more, _read
    )
    if isinstance(found, Reply):  # `_read` returns no other Reply than this one
      verdict = cast(_Read, found).verdict
      self.counts[f'right_{verdict.right}'.lower()] += 1
      return verdict
    failure = JudgeFailure(_REASONS[found.reason], found.detail)
    self.counts[failure.reason] += 1
    return failure


def _messages(question: str, gold: str, prediction: str) -> list[dict[str, str]]:
  return [
    {'role': 'user', 'content': _PROMPT.format(question=question, gold=gold, prediction=prediction)}
  ]


def _read(content: bytes) -> Reply | Rejected:
  verdict = read_verdict(content)
  return (
    Rejected('unreadable', verdict.detail)
    if isinstance(verdict, JudgeFailure)
    else _Read('', verdict)
  )


def read_verdict(content: bytes) -> Verdict | JudgeFailure:
  """Parses a chat completion: its last line must be the verdict, in any Markdown.

  Thoughts are ignored.
  """
  try:
    choice = orjson.loads(content)['choices'][0]
    text, finish = message_text(choice['message']['content']), choice.get('finish_reason')
    refusal = choice['message'].get('refusal')
  except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
    return JudgeFailure('judge_unreadable', repr(content[:200]))
  verdict = _verdict_of(text) if isinstance(text, str) else None
  if verdict is not None:
    return verdict
  why = (
    ' (cut off by max_tokens)'
    if finish == 'length'
    else f' (the model refuses: {refusal!r:.120})'
    if refusal
    else ''
  )
  return JudgeFailure('judge_unreadable', repr(str(text)[-200:]) + why)


def _verdict_of(text: str) -> Verdict | None:
  """Returns the verdict on the last line with a word, or None.

  Below a heading such as "Verdict", the line may be only "right" or "wrong".
  """
  if tags.THINK_OPEN in text[tags.after_think(text) :]:  # the thought has no end tag
    return None
  lines = [
    _words(line)
    for line in text[tags.after_think(text) :].splitlines()
    if not _FENCE.fullmatch(line)
  ]
  last, above = [*(line for line in reversed(lines) if line), '', ''][:2]
  found = _VERDICT.fullmatch(last) or (_WORD.fullmatch(last) if _HEADING.fullmatch(above) else None)
  return None if found is None else Verdict(found[found.lastindex or 0] == 'right')


def _words(line: str) -> str:
  """Returns a line's words in lower case, separated by one space.

  Markdown, quotes and periods are removed. A question mark stays, because it expresses doubt.
  """
  return ' '.join(re.findall(r'[^\W_]+|\?', re.sub(r'(?<=\w)/(?=\w)', ' or ', line.lower())))
