"""Asking for a question and for fluent reasons: what the model is told, and what of a rewriting is
refused.
"""

import asyncio

import pytest

from paravt_jax.longvideo_reason.ask import (
  AskOptions,
  RewriteOptions,
  ask,
  fill,
  read_rewrite,
  rewrite,
)
from paravt_jax.longvideo_reason.items import Caption, Question, Rejected, Step
from paravt_jax.rollout.chat_server import Server, ServerOptions
from tests import patience
from tests.longvideo_reason.chat_server import REWRITTEN, ChatServer

QUESTION = Question(
  'Why?',
  ('red', 'blue', 'green', 'grey'),
  'B',
  (Step(0.0, 10.0, ('It rains.',)), Step(65.0, 70.5, ('So', 'blue.'))),
)
SERVER = {
  'model': 'thinker',
  'api_key': '',
  'timeout_s': patience.seconds(60.0),
  'retries': 0,
  'backoff_s': 0.1,
  'max_backoff_s': 0.1,
  'concurrency': 2,
  'max_reply_bytes': 10_000,
  'max_failures': 9,
}


def served(work):
  """(outcome, text of the request)."""

  async def run(url):
    async with Server(ServerOptions(url=url, **SERVER), 'x') as client:
      return await work(client)

  with ChatServer(lambda body, number: REWRITTEN) as server:
    return asyncio.run(run(server.url)), server.bodies[0]['messages'][0]['content']


def test_the_captions_stand_in_the_prompt_with_their_times():
  captions = [Caption(0.0, 10.01, 'A {duration} sign.'), Caption(10.01, 20.0, 'Rain.')]
  outcome, text = served(
    lambda client: ask(
      client, captions, 20.0, AskOptions('{duration} s:\n{captions}\n{x}', 9, 0.0, 0.1), 0
    )
  )
  assert (
    outcome == REWRITTEN
    and text == '20 s:\n[0 to 10.01] A {duration} sign.\n[10.01 to 20] Rain.\n{x}'
  )


def test_question_options_answer_and_reasons_stand_in_the_prompt():
  options = RewriteOptions('{question}|{options}|{answer}|{reasons}', 9, 0.0, 10)
  outcome, text = served(lambda client: rewrite(client, QUESTION, options, 0))
  assert (
    outcome == REWRITTEN
    and text
    == 'Why?|A. red\nB. blue\nC. green\nD. grey|B|[0 to 10] It rains.\n[65 to 70.5] So blue.'
  )


def test_braces_inside_a_value_are_text():
  assert fill('{a} {b} {c}', a='{b}', b='\\1') == '{b} \\1 {c}'


@pytest.mark.parametrize(
  'text, outcome',
  [
    (
      '<think>x</think> It rains in [0 to 10], so the answer is B.\n',
      'It rains in [0 to 10], so the answer is B.',
    ),
    (
      'It rains in [01:05 to 01:10.5], so it is blue.',
      'It rains in [01:05 to 01:10.5], so it is blue.',
    ),
    ('It is [20 to 30] that matters.', 'new_window'),
    ('It rains.', 'short'),
    ('It rains, so the answer is C.', 'contradiction'),
    ('It rains <answer>B</answer> today.', 'markup'),
    ('<think>It rains today.', 'unclosed_think'),
  ],
)
def test_a_rewriting_adds_no_window_no_markup_and_no_other_answer(text, outcome):
  found = read_rewrite(text, QUESTION, 15)
  assert (found.reason if isinstance(found, Rejected) else found) == outcome
