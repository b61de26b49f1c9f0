"""An LLM that says whether an open answer means the gold one, behind any OpenAI-compatible server.

A judge that fails is no score: its episode leaves the group and is counted.
"""

import asyncio
import collections
import dataclasses
import re

import aiohttp
import orjson

_PROMPT = """Is the answer right? Compare it with the reference; wording may differ, facts may not.
Question: {question}
Reference: {gold}
Answer: {prediction}
Reply with one last line, either "VERDICT: right" or "VERDICT: wrong"."""
_VERDICT = re.compile(r'^\s*VERDICT:\s*(right|wrong)\s*\.?\s*$', re.IGNORECASE)
_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
  """url: of the server, up to and without '/chat/completions'. model: its name there. api_key: bearer token, or None.
  max_tokens: of a reply. timeout_s: for a request. retries: after a lost connection or status 429 or 5xx, backoff_s apart and
  doubling. concurrency: requests at once."""
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


class Judge:
  """Use as `async with Judge(options) as judge`. `counts` holds verdicts and failures by name."""

  def __init__(self, options: JudgeOptions):
    self._options = options
    self._gate = asyncio.Semaphore(options.concurrency)
    self._session: aiohttp.ClientSession | None = None
    self.counts: collections.Counter[str] = collections.Counter()

  async def __aenter__(self):
    headers = {'Content-Type': 'application/json'}
    if self._options.api_key:
      headers['Authorization'] = f'Bearer {self._options.api_key}'
    self._session = aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=self._options.timeout_s))
    return self

  async def __aexit__(self, *exception):
    await self._session.close()

  async def compare(self, question: str, gold: str, prediction: str) -> Verdict | JudgeFailure:
    """The judge's verdict at temperature 0; a blank prediction is wrong without asking. Failures are values."""
    if not prediction.strip():
      return Verdict(False)
    body = orjson.dumps({
      'model': self._options.model, 'temperature': 0, 'max_tokens': self._options.max_tokens,
      'messages': [{'role': 'user', 'content': _PROMPT.format(question=question, gold=gold, prediction=prediction)}],
    })
    async with self._gate:
      outcome = await self._ask(body)
    self.counts[outcome.reason if isinstance(outcome, JudgeFailure) else f'right_{outcome.right}'.lower()] += 1
    return outcome

  async def _ask(self, body: bytes) -> Verdict | JudgeFailure:
    failure = JudgeFailure('judge_connection', 'not asked')
    for attempt in range(self._options.retries + 1):
      if attempt:
        await asyncio.sleep(self._options.backoff_s * 2**(attempt - 1))
      try:
        async with self._session.post(f'{self._options.url}/chat/completions', data=body) as reply:
          content = await reply.read()
      except TimeoutError:
        return JudgeFailure('judge_timeout', f'no reply within {self._options.timeout_s:g} s')
      except _LOST as error:
        failure = JudgeFailure('judge_connection', f'{type(error).__name__}: {error}')
        continue
      if reply.status == 200:
        return read_verdict(content)
      failure = JudgeFailure('judge_status', f'{reply.status}: {content[:200]!r}')
      if reply.status != 429 and reply.status < 500:
        return failure
    return failure


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
