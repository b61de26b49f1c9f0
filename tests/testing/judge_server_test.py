"""The judge that tests start as a process, asked by the client of runs, and killed under it."""

import asyncio
import dataclasses
import subprocess
import sys

import pytest

from paravt_jax.rollout.judge import Judge, JudgeFailure, JudgeOptions, Verdict
from paravt_jax.testing import judge_server


def start(port):
  process = subprocess.Popen(
    [sys.executable, '-m', 'paravt_jax.testing.judge_server', f'--port={port}'],
    stdout=subprocess.PIPE,
    text=True,
  )
  return process, process.stdout.readline().strip()


@pytest.fixture
def served():
  """The process of a judge in a list, and its address."""
  process, url = start(0)
  running = [process]
  yield running, url
  for one in running:
    one.kill()
    one.communicate()


def options(url, **changes):
  knobs = {'url': url, 'model': judge_server.MODEL, 'backoff_s': 0.05, **changes}
  return dataclasses.replace(JudgeOptions.published(), **knobs)


def test_an_answer_with_all_words_of_the_reference_is_right(served):
  _, url = served

  async def ask():
    async with Judge(options(url)) as judge:
      await judge.check()
      return [
        await judge.compare('What does the sign say?', gold, answer)
        for gold, answer in (
          ('a red bus', 'It is a big, red Bus.'),
          ('a red bus', 'a red car'),
          ('red', ''),
        )
      ]

  assert asyncio.run(ask()) == [Verdict(True), Verdict(False), Verdict(False)]
  assert judge_server.verdict('nothing of the kind') == 'VERDICT: wrong'


def test_a_judge_that_is_killed_and_comes_back_within_the_retries_loses_no_verdict(served):
  running, url = served
  port = int(url.rsplit(':', 1)[1].split('/')[0])

  async def ask():
    async with Judge(options(url, retries=12)) as judge:
      first = await judge.compare('?', 'red', 'red')
      running[0].kill()
      asked = asyncio.create_task(judge.compare('?', 'red', 'red'))
      await asyncio.sleep(0.3)
      again, _ = await asyncio.to_thread(start, port)
      running.append(again)
      return first, await asked, dict(judge.counts)

  assert asyncio.run(ask()) == (Verdict(True), Verdict(True), {'right_true': 2})


def test_a_judge_that_stays_away_is_a_failure_by_reason(served):
  running, url = served

  async def ask():
    async with Judge(options(url, retries=1)) as judge:
      running[0].kill()
      await asyncio.to_thread(running[0].wait)
      return await judge.compare('?', 'red', 'red'), dict(judge.counts)

  found, counts = asyncio.run(ask())
  assert isinstance(found, JudgeFailure) and found.reason == 'judge_connection'
  assert counts == {'judge_connection': 1}
