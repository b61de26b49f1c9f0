"""The client of chat servers: a real socket, and everything that can come over one."""

import asyncio
import base64
import gzip
import io
import json

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.chat_server import (
  Reply,
  Sampling,
  Server,
  ServerOptions,
  _retry_after,
  image_part,
  read_completion,
  text_part,
  video_part,
)
from paravt_jax.rollout.outcomes import Failed, Rejected
from tests import patience
from tests.longvideo_reason.chat_server import ChatServer, Raw, completion

DEFAULTS = {
  'model': 'seer',
  'api_key': '',
  'timeout_s': patience.seconds(30.0),
  'retries': 2,
  'backoff_s': 0.001,
  'max_backoff_s': 0.002,
  'concurrency': 4,
  'max_reply_bytes': 10_000,
  'max_failures': 1000,
}
MESSAGES = [{'role': 'user', 'content': 'Say it.'}]


def ask(*replies, times=1, **options):
  """(outcomes, bodies, counts): the n-th request gets the n-th reply, the last one repeats."""

  async def run(server):
    async with Server(
      ServerOptions(**{**DEFAULTS, 'url': server.url, **options}), '--config.vision'
    ) as client:
      outcomes = await asyncio.gather(
        *(client.complete(MESSAGES, Sampling(7, 0.5, 3)) for _ in range(times))
      )
      return outcomes, client.counts

  with ChatServer(lambda body, number: replies[min(number, len(replies) - 1)]) as server:
    outcomes, counts = asyncio.run(run(server))
  return outcomes, server, counts


def check(url=None, **options):
  """Runs the check against a server, or against a url."""

  async def run(url):
    async with Server(
      ServerOptions(**{**DEFAULTS, 'url': url, **options}), '--config.vision'
    ) as client:
      await client.check()

  if url:
    return asyncio.run(run(url))
  keywords = {key: options.pop(key) for key in ('models', 'key') if key in options}
  with ChatServer(
    models=keywords.get('models', ('seer',)), api_key=keywords.get('key', '')
  ) as server:
    return asyncio.run(run(server.url))


def test_a_request_holds_model_messages_and_sampling_and_gives_the_text():
  (outcome,), server, counts = ask('It is\r\nred.')
  assert outcome == Reply('It is\nred.') and counts == {'replies': 1}
  assert server.bodies == [
    {
      'model': 'seer',
      'messages': MESSAGES,
      'max_tokens': 7,
      'temperature': 0.5,
      'seed': 3,
      'stream': False,
    }
  ]


@pytest.mark.parametrize(
  'bad',
  [
    Raw(503),
    Raw(500, b'oops'),
    Raw(429, headers={'Retry-After': '9999'}),
    Raw(408),
    Raw(close=True),
  ],
)
def test_overload_and_lost_connections_are_tried_again(bad):
  (outcome,), server, counts = ask(bad, bad, 'red')
  assert (
    outcome == Reply('red') and len(server.bodies) == 3 and counts == {'replies': 1, 'retries': 2}
  )


def test_what_stays_broken_is_a_failure_to_be_tried_another_time():
  assert ask(Raw(503, b'busy'))[0] == [Failed('status', "503: b'busy'")]
  assert ask(Raw(close=True))[0][0].reason == 'connection'
  (outcome,), server, _ = ask(Raw(401, b'who?'))
  assert outcome == Failed('status', "401: b'who?'") and len(server.bodies) == 1
  assert ask(Raw(hang=True), timeout_s=0.2)[0] == [Failed('timeout', 'no reply within 0.2 s')]


@pytest.mark.parametrize('status', [400, 413, 422])
def test_a_refusal_of_this_very_request_is_final(status):
  (outcome,), server, _ = ask(Raw(status, b'too long'))
  assert outcome == Rejected('refused', f"{status}: b'too long'") and len(server.bodies) == 1


@pytest.mark.parametrize(
  'reply, reason',
  [
    (Raw(body=b'<html>'), 'unreadable'),
    (Raw(body=b''), 'unreadable'),
    (Raw(body=b'{}'), 'unreadable'),
    (Raw(body=b'[]'), 'unreadable'),
    (Raw(body=b'{"choices": []}'), 'unreadable'),
    (Raw(body=b'{"choices": [3]}'), 'unreadable'),
    (Raw(body=b'null'), 'unreadable'),
    (Raw(body=b'{"choices": [{"message": {"content": "\xff"}}]}'), 'unreadable'),
    (Raw(body=b'[' * 9_000), 'unreadable'),
    (Raw(body=b'{"choices": [{"message": {"content": "\\ud800"}}]}'), 'unreadable'),
    (completion(None), 'no_text'),
    (completion(''), 'no_text'),
    (completion(' \n'), 'no_text'),
    (completion(7), 'no_text'),
    (completion(['x']), 'no_text'),
    (completion('half', 'length'), 'truncated'),
    (completion('x', 'content_filter'), 'filtered'),
    (Raw(body=b' ' * 20_000), 'too_large'),
  ],
)
def test_a_reply_that_is_no_whole_text_is_rejected_by_reason(reply, reason):
  (outcome,), server, counts = ask(reply)
  assert (
    isinstance(outcome, Rejected)
    and outcome.reason == reason
    and counts == {reason: 1}
    and len(server.bodies) == 1
  )


def test_a_compressed_bomb_is_cut_off_at_the_bound():
  bomb = Raw(body=gzip.compress(b' ' * 50_000_000), headers={'Content-Encoding': 'gzip'})
  assert ask(bomb, max_reply_bytes=1_000_000)[0][0].reason == 'too_large'


def test_a_redirect_is_not_followed_so_the_key_stays_here():
  with ChatServer() as other:
    (outcome,), _, _ = ask(
      Raw(307, headers={'Location': f'{other.url}/chat/completions'}), api_key='secret'
    )
    assert outcome.reason == 'status' and other.bodies == []


def test_text_in_parts_is_joined_and_zeros_are_dropped():
  assert read_completion(
    completion([{'type': 'text', 'text': 'a'}, {'type': 'text', 'text': 'b'}]).body
  ) == Reply('ab')
  assert read_completion(completion('a\0b').body) == Reply('ab')


def test_no_more_requests_are_under_way_than_allowed():
  outcomes, server, _ = ask('red', times=40, concurrency=3)
  assert outcomes == [Reply('red')] * 40 and 1 <= server.most_at_once <= 3


def test_a_server_that_fails_again_and_again_ends_the_run_in_one_line():
  with pytest.raises(
    RolloutError,
    match=r'--config.vision.url=http.*: 3 requests in a row failed, the last with status .*it '
    r'continues',
  ):
    ask(Raw(401), times=5, concurrency=1, max_failures=3)
  outcomes, _, _ = ask(
    Raw(401), Raw(401), 'red', Raw(401), Raw(401), 'red', times=6, concurrency=1, max_failures=3
  )
  assert [type(outcome).__name__ for outcome in outcomes] == ['Failed', 'Failed', 'Reply'] * 2


def test_a_server_is_checked_for_being_there_its_key_and_its_model():
  check()
  check(models=None)  # no list of models: nothing to compare with
  check(key='secret', api_key='secret')
  with pytest.raises(
    RolloutError,
    match=r"--config.vision.model='seer': http.* serves other, more; name one of these",
  ):
    check(models=('other', 'more'))
  with pytest.raises(
    RolloutError, match=r'--config.vision.api_key: .* answered 401: the key was refused'
  ):
    check(key='secret', api_key='wrong')
  with pytest.raises(RolloutError, match='it wants a key and got none'):
    check(key='secret')
  with pytest.raises(
    RolloutError, match=r'--config.vision.url=http://127.0.0.1:9/v1: no server answers there'
  ):
    check('http://127.0.0.1:9/v1')
  with pytest.raises(RolloutError, match='not a URL'):
    check('http://[nonsense/v1')


def test_images_go_as_jpeg_data_urls_and_videos_as_file_addresses():
  pixels = np.full((32, 64, 3), (200, 30, 30), np.uint8)
  url = image_part(pixels, 90)['image_url']['url']
  head, _, data = url.partition(',')
  decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
  assert (
    head == 'data:image/jpeg;base64'
    and decoded.shape == pixels.shape
    and abs(decoded.astype(int) - pixels).max() < 8
  )
  assert video_part('/a b/é.mp4') == {
    'type': 'video_url',
    'video_url': {'url': 'file:///a%20b/%C3%A9.mp4'},
  }
  assert json.dumps(text_part('x')) == '{"type": "text", "text": "x"}'


def test_a_parameter_that_is_refused_by_name_is_left_out_from_then_on_and_told_once(caplog):
  refusal = Raw(400, b'{"error": {"message": "Unsupported parameter: \'seed\'"}}')
  outcomes, server, counts = ask(refusal, 'red', times=3, concurrency=1)
  assert outcomes == [Reply('red')] * 3 and counts == {'replies': 3}
  assert ['seed' in body for body in server.bodies] == [True, False, False, False]
  assert sum('seed is left out' in record.getMessage() for record in caplog.records) == 1


def test_a_refusal_that_never_ends_is_asked_a_few_times_at_most():
  def script(body, number):
    return Raw(
      400,
      f'Unsupported parameter: {next(iter(set(body) - {"model", "messages"}), "nothing")}'.encode(),
    )

  with ChatServer(script) as server:

    async def run():
      async with Server(
        ServerOptions(**{**DEFAULTS, 'url': server.url}), '--config.vision'
      ) as client:
        return await client.complete(MESSAGES, Sampling(7, 0.5, 3))

    assert asyncio.run(run()).reason == 'refused'
    assert len(server.bodies) == 6 and server.bodies[-1].keys() == {'model', 'messages'}


@pytest.mark.parametrize(
  ('header', 'least'),
  [
    ('1', 1.0),
    ('0.25', 0.25),
    ('Wed, 21 Oct 2099 07:28:00 GMT', 9e8),
    ('soon', 0.0),
    ('', 0.0),
    ('-1', 0.0),
    ('Wed, 21 Oct 2015 07:28:00 GMT', 0.0),
  ],
)
def test_retry_after_is_seconds_or_a_date(header, least):
  assert _retry_after(header) == least or least == 9e8 < _retry_after(header)


def test_a_refusal_of_the_model_itself_says_so():
  body = json.dumps(
    {'choices': [{'message': {'content': None, 'refusal': 'I cannot'}, 'finish_reason': 'stop'}]}
  ).encode()
  assert read_completion(body) == Rejected('filtered', "the model refuses: 'I cannot'")
