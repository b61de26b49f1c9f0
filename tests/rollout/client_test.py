"""The client against a scripted server: what it sends, what it refuses, what it resumes."""

import asyncio
import base64
import dataclasses
import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.client import check_counts, image_tokens, resumed_seed
from paravt_jax.rollout.router import Router, State
from paravt_jax.serving.protocol import GenerateReply
from paravt_jax.testing.scripted import Die, Garbage, Hang, Refuse, Reply, ScriptedServer, turns
from tests import patience
from tests.rollout.wire import PAD, REQUEST, generate, opened

FRAME = np.arange(64 * 32 * 3, dtype=np.uint8).reshape(64, 32, 3)


def test_ids_log_probs_and_versions_come_back_as_the_server_sent_them():
  with ScriptedServer(
    turns(Reply(ids=(7, 8, 2), logprobs=(-1, -2, -3), versions=((3, 0, 2), (4, 2, 3))))
  ) as server:
    got, counts = generate(server)
  assert (got.ids.tolist(), got.logprobs.tolist(), got.finish) == ([7, 8, 2], [-1, -2, -3], 'stop')
  assert got.versions.tolist() == [3, 3, 4]
  assert counts == {
    'requests': 1,
    'prompt_tokens': 3,
    'cached_tokens': 0,
    'sampled_tokens': 3,
    'images': 0,
  }


def test_a_request_is_sent_verbatim_with_one_png_per_image_and_the_vision_ids_banned():
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    generate(server, dataclasses.replace(REQUEST, input_ids=[1, PAD, 3], images=(FRAME,)))
    body = server.requests[0].body
  assert body['input_ids'] == [1, PAD, 3]
  assert body['sampling_params']['logit_bias'] == {'90': -1e9, '91': -1e9}
  assert body['sampling_params']['sampling_seed'] == 5
  picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body['image_data'][0]))))
  np.testing.assert_array_equal(picture, FRAME)


def test_deviation_16_an_interrupted_request_resumes_with_what_is_left_of_its_budget():
  """The release halved the budget of a request that a weight update had interrupted; 1100 of 2048
  done leave 948.
  """
  first = list(range(3, 53)) * 22
  cut = Reply(ids=first, finish='abort', versions=((1, 0, 1100),))
  rest = Reply(ids=(60, 2), versions=((2, 0, 2),))
  with ScriptedServer(turns(cut, rest)) as server:
    got, counts = generate(server)
    resumed = server.requests[1]
  assert resumed.sampling['max_new_tokens'] == 948
  assert resumed.input_ids == (1, 2, 3, *first)
  assert resumed.sampling['sampling_seed'] == resumed_seed(5, 1100) != 5
  assert got.ids.tolist() == [*first, 60, 2]
  assert got.versions.tolist() == [1] * 1100 + [2] * 2
  assert got.finish == 'stop' and counts['interrupted'] == 1


def test_an_interruption_that_spent_the_whole_budget_is_a_truncation():
  with ScriptedServer(turns(Reply(ids=(5, 6), finish='abort'))) as server:
    got, _ = generate(server, dataclasses.replace(REQUEST, max_new_tokens=2))
    assert len(server.requests) == 1
  assert (got.ids.tolist(), got.finish) == ([5, 6], 'length')


def test_aborts_without_a_token_are_bounded():
  with ScriptedServer(turns(Reply(ids=(), finish='abort', versions=()))) as server:
    got, _ = generate(server)
    assert len(server.requests) == 3
  assert (len(got.ids), got.finish) == (0, 'abort')


def test_an_abort_on_purpose_does_not_resume():
  async def run(url):
    async with opened(Router((url,))) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await patience.seen(lambda: server.requests)
      await client.abort('a')
      await client.abort('stranger')
      answer.set()
      return await waiting

  answer = threading.Event()
  with ScriptedServer(turns(Reply(ids=(5,), finish='abort', until=answer))) as server:
    got = asyncio.run(run(server.url))
    assert server.commands == [('/abort_request', {'rid': 'a'})]
  assert (got.ids.tolist(), got.finish) == ([5], 'abort')


def test_a_lost_connection_is_retried():
  with ScriptedServer(turns(Die(), Die(), Reply(ids=(2,)))) as server:
    got, counts = generate(server)
    assert [request.rid for request in server.requests] == [
      'a',
      'a!1',
      'a!2',
    ]  # the lost ones may still run
  assert got.ids.tolist() == [2] and counts['retried'] == 2


def test_retries_are_bounded_and_the_error_says_so():
  with ScriptedServer(turns(Die())) as server:
    with pytest.raises(RolloutError, match=r'connection lost .*tried 3 times'):
      generate(server)
    assert len(server.requests) == 3


def test_a_server_that_hangs_is_an_error_within_the_timeout_and_is_told_to_stop():
  with ScriptedServer(turns(Hang())) as server:
    with pytest.raises(RolloutError, match=r'no reply within 0\.2 s'):
      generate(server, timeout_s=0.2)
    assert len(server.requests) == 1
    assert ('/abort_request', {'rid': 'a'}) in server.commands


@pytest.mark.parametrize(
  'outcome, message',
  [
    (Garbage(), 'wanted JSON'),
    (Garbage(b'[1]'), 'wanted a JSON object'),
    (Garbage(b'{"output_ids": [1]}'), 'meta_info'),
    (Refuse(500, 'out of memory'), 'status 500.*out of memory'),
    (Reply(ids=(5, 2), logprobs=(-1,)), '2 ids but 1 log-probs'),
    (Reply(ids=(100,)), 'ids in 100..100'),
    (Reply(ids=(90,)), 'banned id 90'),
    (Reply(ids=(5, 2), versions=((1, 0, 1),)), 'weight version spans'),
    (Reply(ids=(5, 2), versions=((1, 1, 2), (1, 0, 1))), 'weight version spans'),
    (Reply(ids=(5,), logprobs=(0.5,)), 'log-prob'),
    (Reply(ids=(5,), finish='tired'), "finish reason 'tired'"),
    (Reply(ids=(5,) * 2049), 'wanted at most 2048'),
  ],
)
def test_a_reply_that_breaks_the_protocol_is_refused_and_not_retried(outcome, message):
  with ScriptedServer(turns(outcome)) as server:
    with pytest.raises(RolloutError, match=message):
      generate(server)
    assert len(server.requests) == 1


def test_a_server_that_resized_our_frames_is_refused_with_the_remedy():
  with (
    ScriptedServer(turns(Reply(ids=(2,), image_tokens=64))) as server,
    pytest.raises(RolloutError) as caught,
  ):
    generate(
      server,
      dataclasses.replace(REQUEST, input_ids=[PAD], images=(np.zeros((224, 224, 3), np.uint8),)),
    )
  assert 'counts 64 image tokens, we 49' in str(caught.value) and 'preprocessor_config.json' in str(
    caught.value
  )


@pytest.mark.parametrize(('finish', 'refused'), [('abort', False), ('stop', True)])
def test_a_request_that_was_aborted_before_its_prompt_was_read_has_no_counts(finish, refused):
  sent = dataclasses.replace(REQUEST, input_ids=[1, PAD, 3], images=(FRAME,))
  reply = GenerateReply([], [], finish, 0, 0, 0, [])
  if not refused:
    return check_counts(sent, reply)
  with pytest.raises(RolloutError, match='counts 0 image tokens, we 2'):
    check_counts(sent, reply)


def test_image_tokens_are_squares_of_32_pixels():
  assert image_tokens((np.zeros((64, 96, 3), np.uint8), np.zeros((32, 32, 3), np.uint8))) == 7


def test_the_api_key_is_sent_and_a_wrong_one_is_an_error():
  with ScriptedServer(turns(Reply(ids=(2,))), api_key='secret') as server:
    assert generate(server, api_key='secret')[0].ids.tolist() == [2]
    with pytest.raises(RolloutError, match='401'):
      generate(server)


def test_connections_are_kept_alive_and_limited():
  async def run(url):
    async with opened(Router((url,)), connections=3) as client:
      await asyncio.gather(
        *(client.generate(dataclasses.replace(REQUEST, rid=str(i))) for i in range(12))
      )

  with ScriptedServer(turns(Reply(ids=(2,), delay=0.02))) as server:
    asyncio.run(run(server.url))
    assert len(server.requests) == 12 and len(server.connections) == 3 and server.most_at_once == 3


def test_requests_of_one_affinity_keep_to_one_server():
  async def run(urls):
    async with opened(Router(urls)) as client:
      await asyncio.gather(
        *(
          client.generate(dataclasses.replace(REQUEST, rid=str(i)), affinity=i // 2)
          for i in range(4)
        )
      )

  script = turns(Reply(ids=(2,)))
  with ScriptedServer(script) as one, ScriptedServer(script) as two:
    asyncio.run(run((one.url, two.url)))
    assert sorted(r.rid for r in one.requests) == ['0', '1'] and sorted(
      r.rid for r in two.requests
    ) == ['2', '3']


@pytest.mark.parametrize('ids, images', [([1, PAD, PAD], 1), ([1, 2, 3], 1), ([1, PAD, 3], 0)])
def test_placeholders_that_are_not_one_per_image_never_leave_the_client(ids, images):
  """SGLang answers them with status 200 and garbage."""
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    with pytest.raises(
      RolloutError, match=r'image placeholders \(id 98\) for \d images, wanted one each'
    ):
      generate(server, dataclasses.replace(REQUEST, input_ids=ids, images=(FRAME,) * images))
    assert server.requests == []


@pytest.mark.parametrize(
  ('ids', 'says'), [([1, 100], r'ids in 1\.\.100'), ([-1, 5], r'ids in -1\.\.5'), ([], 'no ids')]
)
def test_ids_beyond_the_vocabulary_never_leave_the_client(ids, says):
  """One of them ends SGLang, and all requests that it had."""
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    with pytest.raises(RolloutError, match=rf'got {says}, wanted some in 0\.\.99'):
      generate(server, dataclasses.replace(REQUEST, input_ids=ids))
    assert server.requests == []


def test_a_server_that_does_not_keep_our_ids_is_refused():
  with (
    ScriptedServer(turns(Reply(ids=(2,), prompt_tokens=4))) as server,
    pytest.raises(RolloutError) as caught,
  ):
    generate(server)
  assert 'counts 4 prompt tokens, we 3' in str(caught.value)


def test_a_request_whose_server_dies_goes_on_elsewhere_from_the_tokens_it_has_with_its_seed():
  """The first server aborts after two tokens (an update, say), then dies over the rest."""

  async def run(router):
    async with opened(router, retries=1) as client:
      return await client.generate(REQUEST, affinity=1), dict(client.counts)

  first = turns(Reply(ids=(5, 6), finish='abort', versions=((3, 0, 2),)), Die())
  with (
    ScriptedServer(first) as one,
    ScriptedServer(turns(Reply(ids=(7, 2), versions=((4, 0, 2),)))) as two,
  ):
    router = Router((one.url, two.url))
    got, counts = asyncio.run(run(router))
    assert [request.rid for request in one.requests] == ['a', 'a~1', 'a~1!1']
    (moved,) = two.requests
  assert (moved.rid, moved.input_ids) == ('a~1!2', (1, 2, 3, 5, 6))
  assert moved.sampling['max_new_tokens'] == 2046 and moved.sampling[
    'sampling_seed'
  ] == resumed_seed(5, 2)
  assert (got.ids.tolist(), got.versions.tolist(), got.finish) == (
    [5, 6, 7, 2],
    [3, 3, 4, 4],
    'stop',
  )
  assert (counts['moved'], counts['retried'], counts['interrupted']) == (1, 1, 1)
  assert router.state(one.url) is State.DOWN and router.state(two.url) is State.UP


def test_a_server_that_says_5xx_and_then_is_gone_is_a_lost_server():
  async def run(router):
    async with opened(router) as client:
      return await client.generate(REQUEST), dict(client.counts)

  with (
    ScriptedServer(turns(Refuse(500, 'dying')), ready_after=10**6) as one,
    ScriptedServer(turns(Reply(ids=(2,)))) as two,
  ):
    got, counts = asyncio.run(run(Router((one.url, two.url))))
  assert got.ids.tolist() == [2] and counts['moved'] == 1


def test_a_request_over_which_server_after_server_is_lost_is_given_up():
  async def run(router):
    router.supervised = True
    async with opened(router, retries=0) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      while not waiting.done():  # a fleet that believes in them
        await asyncio.sleep(0.01)
        for url in set(router.urls) - set(router.up_urls()):
          router.up(url)
      return await waiting

  with (
    ScriptedServer(turns(Die())) as one,
    pytest.raises(RolloutError, match='2 servers in a row were lost over it'),
  ):
    asyncio.run(run(Router((one.url,))))


def test_a_request_under_way_leaves_a_server_that_somebody_else_gave_up():
  async def run(router, one):
    async with opened(router) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await patience.seen(lambda: one.requests)
      router.lost(one.url, 'pings missed')
      return await waiting

  with ScriptedServer(turns(Hang())) as one, ScriptedServer(turns(Reply(ids=(2,)))) as two:
    assert asyncio.run(run(Router((one.url, two.url)), one)).ids.tolist() == [2]


def test_a_reply_under_a_held_gate_waits_and_is_thrown_away_when_its_server_proves_wrong():
  async def run(router, one, two):
    async with opened(router) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await patience.seen(lambda: one.requests)
      router.pause()
      answer.set()
      await patience.seen(lambda: not one._at_once)
      await asyncio.sleep(0.1)
      assert not waiting.done() and two.requests == []
      router.lost(one.url, 'the canary does not match')
      router.resume()
      return await waiting

  answer = threading.Event()
  with (
    ScriptedServer(turns(Reply(ids=(66, 2), until=answer))) as one,
    ScriptedServer(turns(Reply(ids=(7, 2)))) as two,
  ):
    got = asyncio.run(run(Router((one.url, two.url)), one, two))
    assert two.requests[0].input_ids == (1, 2, 3)
  assert got.ids.tolist() == [7, 2]


def test_a_reply_under_a_held_gate_is_handed_out_when_the_gate_opens():
  async def run(router, server):
    async with opened(router) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await patience.seen(lambda: server.requests)
      router.pause()
      answer.set()
      await patience.seen(lambda: not server._at_once)
      assert not waiting.done()
      router.resume()
      return await waiting

  answer = threading.Event()
  with ScriptedServer(turns(Reply(ids=(7, 2), until=answer))) as server:
    assert asyncio.run(run(Router((server.url,)), server)).ids.tolist() == [7, 2]
    assert len(server.requests) == 1


def test_an_abort_by_a_server_that_drains_is_no_empty_go():
  async def run(router, one):
    async with opened(router, retries=0) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await patience.seen(lambda: one.requests)
      router.drain(one.url, 'too large')
      answer.set()
      return await waiting

  answer = threading.Event()
  script = turns(Reply(ids=(), finish='abort', versions=(), until=answer))
  with ScriptedServer(script) as one, ScriptedServer(turns(Reply(ids=(7, 2)))) as two:
    assert asyncio.run(run(Router((one.url, two.url)), one)).ids.tolist() == [7, 2]


def test_a_reply_of_older_weights_than_were_delivered_is_thrown_away_and_its_server_lost():
  async def run():
    router = Router([old.url, new.url])
    router.supervised = True
    router.version = 3
    async with opened(router) as client:
      return await client.generate(REQUEST), dict(client.counts), router.reason(old.url)

  with (
    ScriptedServer(turns(Reply(ids=(7, 2), versions=((0, 0, 2),)))) as old,
    ScriptedServer(turns(Reply(ids=(8, 2), versions=((3, 0, 1), (4, 1, 2))))) as new,
  ):
    got, counts, reason = asyncio.run(run())
  assert got.ids.tolist() == [8, 2] and counts['moved'] == 1
  assert 'answers with weights 0, wanted 3 or later; was it restarted?' in reason


def test_a_servers_speed_is_what_it_sampled_over_the_seconds_of_its_requests_since_last_asked():
  """Of eight replies or more: fewer say too little."""

  async def run(url, clock):
    async with opened(Router((url,))) as client:
      taken = []
      for count in (7, 8):
        begin = clock()
        for number in range(count):
          await client.generate(dataclasses.replace(REQUEST, rid=f'{count}.{number}'))
        taken.append((client.take_speeds(), clock() - begin))
      return taken

  with ScriptedServer(turns(Reply(ids=(5, 6, 2)))) as server:
    (few, _), (enough, seconds) = asyncio.run(run(server.url, time.monotonic))
  assert few == {} and list(enough) == [server.url]
  assert enough[server.url] >= 8 * 3 / seconds  # requests one after another, all of them 3 tokens
