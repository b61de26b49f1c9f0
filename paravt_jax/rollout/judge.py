"""An LLM that says whether an open answer means the gold one, behind any OpenAI-compatible server.

A judge that fails is no score: its episode leaves the group and is counted.
"""

import collections
import dataclasses
import re
import sys

import orjson

from paravt_jax.rollout.chat_server import Reply, Sampling, Server, ServerOptions
from paravt_jax.rollout.outcomes import Rejected

_PROMPT = """Is the answer right? Compare it with the reference; wording may differ, facts may not.
Question: {question}
Reference: {gold}
Answer: {prediction}
Reply with one last line, either "VERDICT: right" or "VERDICT: wrong"."""
_VERDICT = re.compile(r'^\s*VERDICT:\s*(right|wrong)\s*\.?\s*$', re.IGNORECASE)
_REPLY_BYTES = 1 << 20       # a longer reply is unread
_REASONS = {'connection': 'judge_connection', 'timeout': 'judge_timeout', 'status': 'judge_status', 'refused': 'judge_status',
            'too_large': 'judge_unreadable', 'unreadable': 'judge_unreadable'}


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
  """url: of the server, up to and without '/chat/completions'. model: its name there. api_key: bearer token, or None.
  max_tokens: of a reply. timeout_s: for a request. retries: after a lost connection or status 408, 429 or 5xx, backoff_s apart
  and doubling. concurrency: requests at once."""
  url: str
  model: str
  api_key: str | None
  max_tokens: int
  timeout_s: float
  retries: int
  backoff_s: float
  concurrency: int


@dataclasses.dataclass(frozen=True)
class Verdict:
  """right: whether the prediction means the reference."""
  right: bool


@dataclasses.dataclass(frozen=True)
class JudgeFailure:
  """reason: 'judge_connection', 'judge_timeout', 'judge_status' or 'judge_unreadable'; detail: what came."""
  reason: str
  detail: str


@dataclasses.dataclass(frozen=True)
class _Read(Reply):
  """A completion whose verdict could be read."""
  verdict: Verdict


class Judge:
  """Use as `async with Judge(options) as judge`. `counts` holds verdicts and failures by name."""

  def __init__(self, options: JudgeOptions):
    self._options = options
    self._server = Server(ServerOptions(
      url=options.url, model=options.model, api_key=options.api_key or '', timeout_s=options.timeout_s, retries=options.retries,
      backoff_s=options.backoff_s, max_backoff_s=options.backoff_s * 2**options.retries, concurrency=options.concurrency,
      max_reply_bytes=_REPLY_BYTES, max_failures=sys.maxsize), '--config.judge')      # a failure costs its episode, never the run
    self.counts: collections.Counter[str] = collections.Counter()

  async def __aenter__(self):
    await self._server.__aenter__()
    return self

  async def __aexit__(self, *exception):
    await self._server.__aexit__(*exception)

  async def compare(self, question: str, gold: str, prediction: str) -> Verdict | JudgeFailure:
    """The judge's verdict at temperature 0; a blank prediction is wrong without asking. Failures are values.

    Raises:
      RolloutError: the url is none.
    """
    if not prediction.strip():
      return Verdict(False)
    messages = [{'role': 'user', 'content': _PROMPT.format(question=question, gold=gold, prediction=prediction)}]
    found = await self._server.complete(messages, Sampling(self._options.max_tokens, 0, 0), read=_read)
    outcome = found.verdict if isinstance(found, _Read) else JudgeFailure(_REASONS[found.reason], found.detail)
    self.counts[outcome.reason if isinstance(outcome, JudgeFailure) else f'right_{outcome.right}'.lower()] += 1
    return outcome


def _read(content: bytes) -> Reply | Rejected:
  verdict = read_verdict(content)
  return Rejected('unreadable', verdict.detail) if isinstance(verdict, JudgeFailure) else _Read('', verdict)


def read_verdict(content: bytes) -> Verdict | JudgeFailure:
  """Reads a chat completion strictly: its last non-blank line must be the verdict, as asked for."""
  try:
    text = orjson.loads(content)['choices'][0]['message']['content']
  except (orjson.JSONDecodeError, KeyError, IndexError, TypeError):
    return JudgeFailure('judge_unreadable', repr(content[:200]))
  lines = [line for line in text.splitlines() if line.strip()] if isinstance(text, str) else []
  match = _VERDICT.match(lines[-1]) if lines else None
  if match is None:
    return JudgeFailure('judge_unreadable', repr(str(text)[-200:]))
  return Verdict(match.group(1).lower() == 'right')
