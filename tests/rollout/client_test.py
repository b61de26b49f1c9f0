"""The client against a scripted server: what it sends, what it refuses, what it resumes."""

import asyncio
import base64
import dataclasses
import io
import time

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.rollout.client import Client, ClientOptions, Control, ImageCache, image_tokens, resumed_seed
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.testing.scripted import Die, Garbage, Hang, Refuse, Reply, ScriptedServer, turns

OPTIONS = ClientOptions(urls=(), api_key=None, connections=64, timeout_s=10.0, ready_timeout_s=2.0, retries=2, backoff_s=0.01,
                        image_cache=256)
REQUEST = GenerateRequest(rid='a', input_ids=[1, 2, 3], images=(), temperature=0.7, top_p=1.0, top_k=-1, max_new_tokens=2048,
                          stop_token_ids=(2,), banned_ids=(90, 91), seed=5, ignore_eos=False)
FRAME = np.arange(64 * 32 * 3, dtype=np.uint8).reshape(64, 32, 3)


def generate(server, request=REQUEST, **options):
  async def run():
    async with Client(dataclasses.replace(OPTIONS, urls=(server.url,), **options), vocab_size=100) as client:
      return await client.generate(request), dict(client.counts)
  return asyncio.run(run())


def control(server, use, **options):
  async def run():
    async with Control(dataclasses.replace(OPTIONS, urls=(server.url,), **options)) as it:
      return await use(it)
  return asyncio.run(run())


def test_ids_log_probs_and_versions_come_back_as_the_server_sent_them():
  with ScriptedServer(turns(Reply(ids=(7, 8, 2), logprobs=(-1, -2, -3), versions=((3, 0, 2), (4, 2, 3))))) as server:
    got, counts = generate(server)
  assert (got.ids.tolist(), got.logprobs.tolist(), got.finish) == ([7, 8, 2], [-1, -2, -3], 'stop')
  assert got.versions.tolist() == [3, 3, 4]
  assert counts == {'requests': 1, 'prompt_tokens': 3, 'cached_tokens': 0, 'sampled_tokens': 3}


def test_a_request_is_sent_verbatim_with_one_png_per_image_and_the_vision_ids_banned():
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    generate(server, dataclasses.replace(REQUEST, images=(FRAME,)))
    body = server.requests[0].body
  assert body['input_ids'] == [1, 2, 3]
  assert body['sampling_params']['logit_bias'] == {'90': -1e9, '91': -1e9}
  assert body['sampling_params']['sampling_seed'] == 5
  picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body['image_data'][0]))))
  np.testing.assert_array_equal(picture, FRAME)


def test_deviation_16_an_interrupted_request_resumes_from_its_tokens_with_what_is_left_of_its_budget():
  """The release halved the budget of a request that a weight update had interrupted; 1100 of 2048 done leave 948."""
  first = list(range(3, 53)) * 22
  cut, rest = Reply(ids=first, finish='abort', versions=((1, 0, 1100),)), Reply(ids=(60, 2), versions=((2, 0, 2),))
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
    async with Client(dataclasses.replace(OPTIONS, urls=(url,)), vocab_size=100) as client:
      waiting = asyncio.create_task(client.generate(REQUEST))
      await asyncio.sleep(0.1)
      await client.abort('a')
      await client.abort('stranger')
      return await waiting
  with ScriptedServer(turns(Reply(ids=(5,), finish='abort', delay=0.3))) as server:
    got = asyncio.run(run(server.url))
    assert server.commands == [('/abort_request', {'rid': 'a'})]
  assert (got.ids.tolist(), got.finish) == ([5], 'abort')


def test_a_lost_connection_is_retried():
  with ScriptedServer(turns(Die(), Die(), Reply(ids=(2,)))) as server:
    got, counts = generate(server)
    assert [request.rid for request in server.requests] == ['a', 'a!1', 'a!2']       # the lost ones may still run
  assert got.ids.tolist() == [2] and counts['retried'] == 2


def test_retries_are_bounded_and_the_error_says_so():
  with ScriptedServer(turns(Die())) as server:
    with pytest.raises(RolloutError, match='connection lost 3 times'):
      generate(server)
    assert len(server.requests) == 3


def test_a_server_that_hangs_is_an_error_within_the_timeout_and_is_told_to_stop():
  with ScriptedServer(turns(Hang())) as server:
    started = time.monotonic()
    with pytest.raises(RolloutError, match=r'no reply within 0\.2 s'):
      generate(server, timeout_s=0.2)
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1
    assert ('/abort_request', {'rid': 'a'}) in server.commands


@pytest.mark.parametrize('outcome, message', [
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
])
def test_a_reply_that_breaks_the_protocol_is_refused_and_not_retried(outcome, message):
  with ScriptedServer(turns(outcome)) as server:
    with pytest.raises(RolloutError, match=message):
      generate(server)
    assert len(server.requests) == 1


def test_a_server_that_resized_our_frames_is_refused_with_the_remedy():
  with ScriptedServer(turns(Reply(ids=(2,), image_tokens=64))) as server, pytest.raises(RolloutError) as caught:
    generate(server, dataclasses.replace(REQUEST, images=(np.zeros((224, 224, 3), np.uint8),)))
  assert 'counts 64 image tokens, we 49' in str(caught.value) and 'preprocessor_config.json' in str(caught.value)


def test_image_tokens_are_squares_of_32_pixels():
  assert image_tokens((np.zeros((64, 96, 3), np.uint8), np.zeros((32, 32, 3), np.uint8))) == 7


def test_the_api_key_is_sent_and_a_wrong_one_is_an_error():
  with ScriptedServer(turns(Reply(ids=(2,))), api_key='secret') as server:
    assert generate(server, api_key='secret')[0].ids.tolist() == [2]
    with pytest.raises(RolloutError, match='401'):
      generate(server)


def test_connections_are_kept_alive_and_limited():
  async def run(url):
    async with Client(dataclasses.replace(OPTIONS, urls=(url,), connections=3), vocab_size=100) as client:
      await asyncio.gather(*(client.generate(dataclasses.replace(REQUEST, rid=str(i))) for i in range(12)))
  with ScriptedServer(turns(Reply(ids=(2,), delay=0.02))) as server:
    asyncio.run(run(server.url))
    assert len(server.requests) == 12 and len(server.connections) == 3 and server.most_at_once == 3


def test_requests_of_one_affinity_keep_to_one_server():
  async def run(urls):
    async with Client(dataclasses.replace(OPTIONS, urls=urls), vocab_size=100) as client:
      await asyncio.gather(*(client.generate(dataclasses.replace(REQUEST, rid=str(i)), affinity=i // 2) for i in range(4)))
  script = turns(Reply(ids=(2,)))
  with ScriptedServer(script) as one, ScriptedServer(script) as two:
    asyncio.run(run((one.url, two.url)))
    assert sorted(r.rid for r in one.requests) == ['0', '1'] and sorted(r.rid for r in two.requests) == ['2', '3']


def test_a_frame_is_encoded_once_even_when_eight_ask_at_the_same_moment(monkeypatch):
  encoded = []
  from paravt_jax.serving import protocol
  monkeypatch.setattr(protocol, 'encode_image', lambda image: encoded.append(image) or 'x')
  async def run():
    cache = ImageCache(capacity=8)
    await asyncio.gather(*(cache.encode((FRAME, FRAME)) for _ in range(8)))
    await cache.encode((FRAME,))
  asyncio.run(run())
  assert len(encoded) == 1


def test_a_request_with_more_frames_than_the_cache_holds_is_still_whole():
  async def run():
    return await ImageCache(capacity=2).encode([np.full((32, 32, 3), i, np.uint8) for i in range(5)])
  assert len(asyncio.run(run())) == 5


def test_weights_are_swapped_between_a_pause_and_a_continue():
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    control(server, lambda it: it.swap_weights('/weights/7', 7))
    assert server.commands == [
      ('/pause_generation', {'mode': 'retract'}),
      ('/update_weights_from_disk', {'model_path': '/weights/7', 'weight_version': '7', 'flush_cache': True}),
      ('/continue_generation', {})]
    assert control(server, lambda it: it.info()) == [{'model_path': '/weights/7', 'weight_version': '7'}]


def test_a_refused_update_is_a_sync_error_and_generation_goes_on():
  with ScriptedServer(turns(Reply(ids=(2,))), weights_ok=False) as server:
    with pytest.raises(SyncError, match=r'refused weights 7.*wrong shapes'):
      control(server, lambda it: it.swap_weights('/weights/7', 7))
    assert server.commands[-1] == ('/continue_generation', {})


def test_abort_and_flush_reach_the_server():
  async def use(it):
    await it.abort()
    await it.flush()
  with ScriptedServer(turns(Reply(ids=(2,)))) as server:
    control(server, use)
    assert server.commands == [('/abort_request', {'rid': '', 'abort_all': True}), ('/flush_cache', {})]


def test_wait_ready_waits_and_gives_up_with_the_last_word():
  with ScriptedServer(turns(Reply(ids=(2,))), ready_after=3) as server:
    control(server, lambda it: it.wait_ready())
  gives_up = pytest.raises(RolloutError, match=r'not ready after 0\.1 s \(last: status 503\)')
  with ScriptedServer(turns(Reply(ids=(2,))), ready_after=10**6) as server, gives_up:
    control(server, lambda it: it.wait_ready(), ready_timeout_s=0.1)
