"""The judge: strict about its verdict, and a failure is never a score."""

import asyncio
import json

import pytest
from aiohttp import web

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.judge import Judge, JudgeFailure, JudgeOptions, Verdict, read_verdict
from tests import patience


def completion(text):
  return json.dumps({'choices': [{'message': {'content': text}}]}).encode()


@pytest.mark.parametrize('text, verdict', [
  ('VERDICT: right', True), ('It differs.\nVERDICT: wrong\n', False), ('verdict: Right.', True)])
def test_the_last_line_is_the_verdict(text, verdict):
  assert read_verdict(completion(text)) == Verdict(verdict)


@pytest.mark.parametrize('content', [
  completion(''), completion('right'), completion('VERDICT: right\nor is it?'), completion('VERDICT: right or wrong'),
  completion(None), b'<html>', b'{}'])
def test_anything_else_is_unreadable(content):
  assert read_verdict(content).reason == 'judge_unreadable'


def ask(*replies, prediction='crimson', **options):
  """The outcome of one comparison, and the bodies that the server got; replies are (status, body) or seconds to hang."""
  bodies = []

  async def handle(request):
    bodies.append(json.loads(await request.read()))
    reply = replies[min(len(bodies), len(replies)) - 1]
    if isinstance(reply, float):
      await asyncio.sleep(reply)
      return web.Response()
    return web.Response(status=reply[0], body=reply[1])

  async def run():
    app = web.Application()
    app.router.add_post('/v1/chat/completions', handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    values = {'url': f'http://127.0.0.1:{runner.addresses[0][1]}/v1', 'model': 'm', 'api_key': None, 'max_tokens': 64,
              'timeout_s': patience.seconds(60.0), 'retries': 2, 'backoff_s': 0.01, 'concurrency': 2, **options}
    async with Judge(JudgeOptions(**values)) as judge:
      outcome = await judge.compare('What?', 'red', prediction)
    await runner.cleanup()
    return outcome, judge.counts

  outcome, counts = asyncio.run(run())
  return outcome, bodies, counts


def test_question_reference_and_answer_reach_the_judge_at_temperature_0():
  outcome, bodies, counts = ask((200, completion('VERDICT: right')))
  text = bodies[0]['messages'][0]['content']
  assert outcome == Verdict(True) and counts == {'right_true': 1}
  assert all(words in text for words in ('What?', 'red', 'crimson')) and bodies[0]['temperature'] == 0


def test_overload_is_retried_and_a_refusal_is_not():
  outcome, bodies, _ = ask((503, b'busy'), (429, b'slow'), (200, completion('VERDICT: wrong')))
  assert outcome == Verdict(False) and len(bodies) == 3
  outcome, bodies, counts = ask((401, b'no'))
  assert outcome.reason == 'judge_status' and len(bodies) == 1 and counts == {'judge_status': 1}


@pytest.mark.parametrize('status', [400, 413, 422, 404])
def test_a_request_that_is_refused_is_a_failure_of_its_status(status):
  outcome, bodies, counts = ask((status, b'no'))
  assert outcome == JudgeFailure('judge_status', f"{status}: b'no'") and len(bodies) == 1 and counts == {'judge_status': 1}


def test_a_reply_without_a_verdict_or_without_an_end_is_unreadable():
  outcome, bodies, counts = ask((200, completion('Perhaps.')))
  assert outcome == JudgeFailure('judge_unreadable', "'Perhaps.'") and len(bodies) == 1 and counts == {'judge_unreadable': 1}
  assert ask((200, b' ' * ((1 << 20) + 1)))[0].reason == 'judge_unreadable'


def test_an_address_that_is_none_is_one_line():
  with pytest.raises(RolloutError, match=r"--config.judge.url='http://\[x': not a URL"):
    ask((200, b''), url='http://[x')


def test_a_hang_and_a_dead_server_are_typed_failures():
  assert ask(60.0, timeout_s=0.1)[0] == JudgeFailure('judge_timeout', 'no reply within 0.1 s')
  assert ask((200, b''), url='http://127.0.0.1:9/v1', retries=0)[0].reason == 'judge_connection'


def test_a_blank_answer_is_wrong_without_asking():
  outcome, bodies, _ = ask((200, completion('VERDICT: right')), prediction=' ')
  assert outcome == Verdict(False) and not bodies
