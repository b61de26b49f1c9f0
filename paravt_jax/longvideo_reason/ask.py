"""Steps 4 and 6: one hard question about a video from its captions, and its reasons rewritten as
fluent text.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated

from paravt_jax.longvideo_reason import parse
from paravt_jax.longvideo_reason.items import Caption, Failed, Question, Rejected, seconds
from paravt_jax.options import COUNT, PROSE, SHARE, TEMPERATURE, Options, whole
from paravt_jax.rollout import chat_server as server

VERSION = 1
_CITED = re.compile(r'\[\s*([\d.:]+)\s*s?\s+(?:to|-|–)\s+([\d.:]+)\s*s?\s*\]')


@dataclasses.dataclass(frozen=True)
class AskOptions(Options):
  """How the reasoning model is asked for a question, its answer and the reasons."""

  prompt: Annotated[str, PROSE]  # holds {captions} and may hold {duration}
  max_tokens: Annotated[int, COUNT]  # of a reply
  temperature: Annotated[float, TEMPERATURE]  # of sampling
  max_missing: Annotated[float, SHARE]  # share of a video's clips that may lack a caption


@dataclasses.dataclass(frozen=True)
class RewriteOptions(Options):
  """How the reasons are rewritten as one thought."""

  prompt: Annotated[str, PROSE]  # holds {question}, {options}, {answer} and {reasons}
  max_tokens: Annotated[int, COUNT]  # of a reply
  temperature: Annotated[float, TEMPERATURE]  # of sampling
  min_chars: Annotated[int, whole(0)]  # a shorter text is rejected


def fill(prompt: str, **values: str) -> str:
  """Returns a prompt with its {names} replaced. One pass: braces inside a value stay text."""
  return re.sub(r'\{(' + '|'.join(values) + r')\}', lambda match: values[match[1]], prompt)


async def ask(
  client: server.Server,
  captions: Sequence[Caption],
  duration: float,
  options: AskOptions,
  seed: int,
) -> str | Rejected | Failed:
  """Returns the raw reply to the request for a question (`parse.parse` parses it)."""
  lines = '\n'.join(
    f'[{seconds(each.start)} to {seconds(each.end)}] {each.text}' for each in captions
  )
  outcome = await _complete(
    client, fill(options.prompt, captions=lines, duration=seconds(duration)), options, seed
  )
  return outcome.text if isinstance(outcome, server.Reply) else outcome


async def rewrite(
  client: server.Server, question: Question, options: RewriteOptions, seed: int
) -> str | Rejected | Failed:
  """Returns the reasons of a question as fluent text, or Rejected with a reason of
  `read_rewrite`.
  """
  text = fill(
    options.prompt,
    question=question.question,
    options=format_options(question.options),
    answer=question.answer,
    reasons=reasons(question),
  )
  outcome = await _complete(client, text, options, seed)
  return (
    read_rewrite(outcome.text, question, options.min_chars)
    if isinstance(outcome, server.Reply)
    else outcome
  )


async def _complete(
  client, text: str, options: AskOptions | RewriteOptions, seed: int
) -> server.Reply | Rejected | Failed:
  sampling = server.Sampling(options.max_tokens, options.temperature, seed)
  return await client.complete([{'role': 'user', 'content': text}], sampling)


def read_rewrite(reply: str, question: Question, min_chars: int) -> str | Rejected:
  """Returns the rewritten reasoning, or Rejected: 'unclosed_think', 'markup', 'short', 'new_window'
  (it cites a window that the reasons do not cite) or 'contradiction' (it ends with another letter).
  """
  text = parse.without_think(reply)
  if isinstance(text, Rejected):
    return text
  text = text.strip()
  if found := parse.MARKUP.search(text):
    return Rejected('markup', f'the text holds {found.group()}', reply)
  if len(text) < min_chars:
    return Rejected('short', f'{len(text)} characters, wanted {min_chars}', reply)
  known = {
    (parse.time(seconds(step.start)), parse.time(seconds(step.end))) for step in question.steps
  }
  for first, last in _CITED.findall(' '.join(text.split())):
    if (parse.time(first), parse.time(last)) not in known:
      return Rejected(
        'new_window', f'[{first} to {last}] is none of the windows of the reasons', reply
      )
  if (letter := parse.last_letter(text)) not in (None, question.answer):
    return Rejected(
      'contradiction', f'the answer is {question.answer}, the text ends with {letter}', reply
    )
  return text


def format_options(options: Sequence[str]) -> str:
  """Returns the options as lettered lines, such as 'A. red'."""
  return '\n'.join(f'{letter}. {option}' for letter, option in zip(parse.LETTERS, options))


def reasons(question: Question) -> str:
  """Returns the steps of a question as text, one line per step: '[10 to 20] ...'."""
  return '\n'.join(
    f'[{seconds(step.start)} to {seconds(step.end)}] {" ".join(step.reasons)}'
    for step in question.steps
  )
