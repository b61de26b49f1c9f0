"""The judge: strict about its verdict, and a failure is never a score."""

import asyncio
import json

import pytest
from aiohttp import web

from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.rollout.judge import Judge, JudgeFailure, JudgeOptions, Verdict, read_verdict
from tests import patience


def completion(text):
  return json.dumps({'choices': [{'message': {'content': text}}]}).encode()


@pytest.mark.parametrize(
  'text, verdict',
  [('VERDICT: right', True), ('It differs.\nVERDICT: wrong\n', False), ('verdict: Right.', True)],
)
def test_the_last_line_is_the_verdict(text, verdict):
  assert read_verdict(completion(text)) == Verdict(verdict)


@pytest.mark.parametrize('word', ['right', 'wrong'])
@pytest.mark.parametrize(
  'text',
  [
    '**VERDICT: {}**',
    '**VERDICT:** {}',
    '`VERDICT:** {}`',
    'Verdict: **{}**',
    '__VERDICT: {}__',
    '***VERDICT:*** *{}*',
    '> VERDICT: {}',
    '- VERDICT: {}',
    '* VERDICT: {}.',
    '1. VERDICT: {}',
    '`VERDICT: {}`',
    '```\nVERDICT: {}\n```',
    '```text\nVERDICT: {}\n```\n',
    '```VERDICT: {}```',
    '## VERDICT\n{}',
    '**VERDICT**\n\n**{}**',
    'VERDICT:\n{}.',
    '"VERDICT: {}"',
    'VERDICT: [{}]',
    'VERDICT: "{}"!',
    'VERDICT — {}',
    'VERDICT：{}',
    'VERDICT {}',
    'Final verdict: {}',
    'My final verdict is {}.',
    'VERDICT: {} ✅',
    'VERDICT: {}\n\n---\n',
    'a\r\nVERDICT: {}\r\n',
    '\tVERDICT: {}  ',
    'VERDICT: wrong, no:\nVERDICT: right, no:\nVERDICT: {}',
    '<think>VERDICT: wrong\nVERDICT: right</think>\nVERDICT: {}',
  ],
)
def test_a_verdict_is_read_in_whatever_markdown(text, word):
  for form in (word, word.upper(), word.title()):
    assert read_verdict(completion(text.replace('{}', form))) == Verdict(word == 'right'), form


@pytest.mark.parametrize(
  'text',
  [
    'VERDICT: right or wrong',
    'VERDICT: right/wrong',
    'VERDICT: ~~right~~ wrong',
    'VERDICT: not right',
    'VERDICT: right?',
    'right',
    '**right**',
    'VERDICT: rightly',
    'VERDICT: right\nor is it?',
    'VERDICT:',
    '## VERDICT',
    '## VERDICT\nright or wrong',
    'VERDICT: partially right',
    '<think>VERDICT: right',
    '<think>a</think><think>VERDICT: right',
    '<think>\nVERDICT: right\n</think>',
    'The verdict of history is right',
    'wrong\nverdict',
    '---',
    '```\n```',
    'VERDICT: right (95%)',
    'VERDICT: верно',
  ],
)
def test_an_ambiguous_verdict_is_none(text):
  assert read_verdict(completion(text)).reason == 'judge_unreadable'


def test_text_in_parts_is_read_and_thoughts_among_them_are_not():
  parts = [
    {'type': 'thinking', 'thinking': [{'type': 'text', 'text': 'VERDICT: wrong'}]},
    {'type': 'text', 'text': 'VERDICT: '},
    {'type': 'text', 'text': 'right'},
  ]
  assert read_verdict(completion(parts)) == Verdict(True)
  assert (
    read_verdict(completion([{'type': 'image_url'}])).reason
    == read_verdict(completion([])).reason
    == 'judge_unreadable'
  )


def test_what_is_beside_the_content_is_no_verdict_but_tells_why_there_is_none():
  def of(finish, **message):
    return read_verdict(
      json.dumps({'choices': [{'message': message, 'finish_reason': finish}]}).encode()
    )

  assert of('stop', content='VERDICT: wrong', reasoning_content='VERDICT: right') == Verdict(False)
  assert (
    'cut off by max_tokens' in of('length', content='', reasoning_content='VERDICT: right').detail
  )
  assert "refuses: 'I cannot'" in of('stop', content=None, refusal='I cannot').detail


@pytest.mark.parametrize(
  'content',
  [
    completion(''),
    completion('right'),
    completion('VERDICT: right\nor is it?'),
    completion('VERDICT: right or wrong'),
    completion(None),
    b'<html>',
    b'{}',
  ],
)
def test_anything_else_is_unreadable(content):
  assert read_verdict(content).reason == 'judge_unreadable'


def ask(*replies, prediction='crimson', check=False, times=1, **options):
  """The outcome of one comparison, and the bodies that the server got; replies are (status, body),
  functions of a body that give one, or seconds to hang. check: the judge is checked first; times:
  comparisons at once, whose last outcome it is.
  """
  bodies = []

  async def handle(request):
    bodies.append(json.loads(await request.read()))
    reply = replies[min(len(bodies), len(replies)) - 1]
    if isinstance(reply, float):
      await asyncio.sleep(reply)
      return web.Response()
    status, body = reply(bodies[-1]) if callable(reply) else reply
    await asyncio.sleep(0)
    return web.Response(status=status, body=body)

  async def run():
    app = web.Application()
    app.router.add_post('/v1/chat/completions', handle)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, '127.0.0.1', 0).start()
    values = {
      'url': f'http://127.0.0.1:{runner.addresses[0][1]}/v1',
      'model': 'm',
      'api_key': '',
      'more': '',
      'max_tokens': 64,
      'timeout_s': patience.seconds(60.0),
      'retries': 2,
      'backoff_s': 0.01,
      'concurrency': 2,
      **options,
    }
    try:
      async with Judge(JudgeOptions(**values)) as judge:
        if check:
          await judge.check()
        outcomes = await asyncio.gather(
          *(judge.compare('What?', 'red', prediction) for _ in range(times))
        )
        return outcomes[-1], judge.counts
    finally:
      await runner.cleanup()

  outcome, counts = asyncio.run(run())
  return outcome, bodies, counts


def test_question_reference_and_answer_reach_the_judge_at_temperature_0():
  outcome, bodies, counts = ask((200, completion('VERDICT: right')))
  text = bodies[0]['messages'][0]['content']
  assert outcome == Verdict(True) and counts == {'right_true': 1}
  assert (
    all(words in text for words in ('What?', 'red', 'crimson')) and bodies[0]['temperature'] == 0
  )


def test_overload_is_retried_and_a_refusal_is_not():
  outcome, bodies, _ = ask((503, b'busy'), (429, b'slow'), (200, completion('VERDICT: wrong')))
  assert outcome == Verdict(False) and len(bodies) == 3
  outcome, bodies, counts = ask((401, b'no'))
  assert outcome.reason == 'judge_status' and len(bodies) == 1 and counts == {'judge_status': 1}


@pytest.mark.parametrize('status', [400, 413, 422, 404])
def test_a_request_that_is_refused_is_a_failure_of_its_status(status):
  outcome, bodies, counts = ask((status, b'no'))
  assert (
    outcome == JudgeFailure('judge_status', f"{status}: b'no'")
    and len(bodies) == 1
    and counts == {'judge_status': 1}
  )


def test_a_reply_without_a_verdict_or_without_an_end_is_unreadable():
  outcome, bodies, counts = ask((200, completion('Perhaps.')))
  assert (
    outcome == JudgeFailure('judge_unreadable', "'Perhaps.'")
    and len(bodies) == 1
    and counts == {'judge_unreadable': 1}
  )
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


# Servers that want other parameters


def error(message, param=None, code=None):
  return json.dumps(
    {'error': {'message': message, 'type': 'invalid_request_error', 'param': param, 'code': code}}
  ).encode()


def picky(body):
  """As the servers of reasoning models answer."""
  if 'max_tokens' in body:
    return 400, error(
      "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
      "'max_completion_tokens' instead.",
      'max_tokens',
      'unsupported_parameter',
    )
  if 'temperature' in body:
    return 400, error(
      "Unsupported value: 'temperature' does not support 0 with this model. Only the default "
      '(1) value is supported.',
      'temperature',
      'unsupported_value',
    )
  if 'seed' in body:
    return 422, json.dumps(
      {
        'detail': [
          {
            'type': 'extra_forbidden',
            'loc': ['body', 'seed'],
            'msg': 'Extra inputs are not permitted',
            'input': 0,
          }
        ]
      }
    ).encode()
  return 200, completion('**VERDICT: right**')


def test_a_server_of_todays_kind_is_asked_as_it_wants_and_remembered():
  outcome, bodies, counts = ask(picky, times=6, concurrency=1)
  assert outcome == Verdict(True) and counts == {'right_true': 6}
  assert (
    bodies[3].keys() == {'model', 'messages', 'max_completion_tokens', 'stream'}
    and bodies[3]['max_completion_tokens'] == 64
  )
  assert len(bodies) == 9  # three lessons, then six verdicts at a request each
  outcome, bodies, counts = ask(picky, times=6, concurrency=6)
  assert (
    outcome == Verdict(True) and counts == {'right_true': 6} and len(bodies) <= 24
  )  # those who asked at once learn at once


def test_the_check_at_the_start_learns_it_for_the_run():
  outcome, bodies, counts = ask(picky, check=True)
  assert outcome == Verdict(True) and counts == {'right_true': 1} and len(bodies) == 5
  assert (
    'tomato' in bodies[3]['messages'][0]['content']
    and 'crimson' in bodies[4]['messages'][0]['content']
  )


@pytest.mark.parametrize(
  ('replies', 'options', 'says'),
  [
    (
      [(400, error('You must provide a response_format'))],
      {},
      r'cannot be used: refused .*set --config.judge.more',
    ),
    ([(401, b'who?')], {}, r'401.*; set --config.judge.api_key'),
    ([(404, b'no such model')], {}, r'404.*correct --config.judge.url and'),
    (
      [(200, completion('Perhaps.'))],
      {},
      r"unreadable \('Perhaps.'\); raise --config.judge.max_tokens",
    ),
    ([(503, b'busy')], {}, 'cannot be used: status .*busy.*; wait until it serves again'),
    (
      [(429, error('You exceeded your current quota'))],
      {},
      '429.*quota.*; wait until it serves again, or see to its quota',
    ),
    (
      [(200, b'<!doctype html>')],
      {},
      'unreadable .*; raise --config.judge.max_tokens .*; else correct --config.judge.url',
    ),
    ([60.0], {'timeout_s': 0.1}, 'raise --config.judge.timeout_s'),
    (
      [(200, b'')],
      {'url': 'http://127.0.0.1:9/v1'},
      'connection .*start it, or correct --config.judge.url',
    ),
    ([(200, error('no credit', code=402))], {}, '402.*no credit'),
  ],
)
def test_a_judge_that_cannot_be_used_is_one_line_at_the_start(replies, options, says):
  with pytest.raises(RolloutError, match=says) as caught:
    ask(*replies, check=True, **options)
  assert '\n' not in str(caught.value) and '--config.judge.url=http' in str(caught.value)


def test_more_is_merged_into_each_request_and_null_takes_a_field_out():
  _, bodies, _ = ask(
    (200, completion('VERDICT: right')),
    more='{"temperature": null, "seed": 5, "reasoning_effort": "low"}',
  )
  assert 'temperature' not in bodies[0] and (
    bodies[0]['seed'],
    bodies[0]['reasoning_effort'],
    bodies[0]['max_tokens'],
  ) == (5, 'low', 64)
  for text, says in (('{', 'judge.more=.*is no JSON'), ('[1]', 'got list, wanted a JSON object')):
    with pytest.raises(ConfigError, match=says):
      ask((200, b''), more=text)


def test_what_the_user_has_set_is_not_changed():
  refusal = (400, error("Unsupported parameter: 'max_tokens'", 'max_tokens'))
  outcome, bodies, _ = ask(refusal, more='{"max_tokens": 9}')
  assert outcome.reason == 'judge_status' and len(bodies) == 1


def test_an_error_that_comes_with_status_200_counts_as_its_status():
  outcome, bodies, _ = ask(
    (200, error('busy', code=429)),
    (200, error('gateway', code='502')),
    (200, completion('VERDICT: wrong')),
  )
  assert outcome == Verdict(False) and len(bodies) == 3
  assert ask((200, error('wrong key', code=401)))[0].reason == 'judge_status'
