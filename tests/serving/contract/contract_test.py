"""The contract of a rollout server: every test here holds for the embedded server and for real
SGLang.
"""

import asyncio
import dataclasses
import http.client
import itertools
import json
import socket
import time

import jax
import numpy as np
import pytest

from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.models.qwen3_vl import model
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.serving.protocol import GenerateReply, encode_image
from tests import patience
from tests.serving.contract.drive import (
  CONTEXT,
  KEY,
  Flight,
  expanded,
  frame,
  request,
  together,
  tokens,
)

LONG = 200  # new tokens of requests that are to be caught at work


def banned(served):
  """What a policy must not sample: the ids that stand for pictures."""
  config = served.config
  return (config.image_id, config.video_id, config.vision_start_id, config.vision_end_id)


def long_requests(served, number, **changes):
  return [
    request(
      served.with_image(10 + i, 3, 70),
      (frame(70),),
      **{'seed': 40 + i, 'max_new_tokens': LONG, 'banned_ids': banned(served), **changes},
    )
    for i in range(number)
  ]


def caught(served, requests):
  """The requests under way, at least one of them decoding."""
  flight = Flight(served, requests)
  patience.until(lambda: served.running() > 0 or all(flight.done))
  return flight


def test_log_probs_are_the_learners_for_text_and_for_images_of_several_sizes(served):
  images = (frame(1), frame(2, 64, 64), frame(3, 32, 64))
  mixed = served.with_image(29, 3, 5) + served.with_image(20, 7, 6) + served.with_image(4, 9, 7)
  for sent in (
    request(served.words(5, 1), temperature=0.0),
    request(served.words(64, 2)),
    request(served.words(101, 3), max_new_tokens=40, banned_ids=banned(served)),
    request(mixed, images, banned_ids=banned(served)),
  ):
    reply = served.generate(sent)
    assert len(reply.output_ids) == sent.max_new_tokens
    assert served.gap(sent, reply) < 1e-4
  assert reply.image_tokens == 1 + 4 + 2
  assert reply.prompt_tokens == len(mixed) + 7 - 3 == len(expanded(served.config, sent))


def test_ids_are_taken_as_they_are_even_where_the_text_would_be_tokenised_otherwise(served):
  spelled = tokens(served.folder, 'r', 'e', 'd', '4', '1')  # 'red' and '41' are one token each
  sent = request(
    spelled * 4 + served.with_image(0, 0, 1) + spelled, (frame(4),), banned_ids=banned(served)
  )
  reply = served.generate(sent)
  assert reply.prompt_tokens == 28 and served.gap(sent, reply) < 1e-4


def test_eight_requests_at_once_with_images_keep_apart(served):
  sent = [
    request(
      served.with_image(9 + i, 5, 30 + i),
      (frame(30 + i),),
      seed=i,
      max_new_tokens=20,
      banned_ids=banned(served),
    )
    for i in range(8)
  ]
  for one, reply in zip(sent, together(served, sent)):
    assert len(reply.output_ids) == 20 and reply.image_tokens == 1
    assert served.gap(one, reply) < 1e-4


def test_a_prefix_with_an_image_is_reused_and_another_image_is_not_taken_for_it(served):
  prompt = served.with_image(70, 5, 50)
  for picture, cached in ((frame(50), False), (frame(50), True), (frame(51), False)):
    sent = request(prompt, (picture,), banned_ids=banned(served))
    reply = served.generate(sent)
    assert (reply.cached_tokens > 72) == cached  # the image is the token 71
    assert served.gap(sent, reply) < 1e-4


def test_budget_stop_id_and_end_of_text_give_their_reasons_and_the_stop_id_is_among_the_ids(served):
  sent = request(served.words(10, 60), temperature=0.0)
  free = served.generate(sent)
  assert (free.finish, len(free.output_ids)) == ('length', 12)
  stop = free.output_ids[3]
  first = free.output_ids.index(stop)
  stopped = request(sent.input_ids, temperature=0.0, stop_token_ids=(stop,), ignore_eos=False)
  body = served.call('/generate', stopped.to_json())[1]
  assert body['output_ids'] == free.output_ids[: first + 1]
  assert body['meta_info']['finish_reason'] == {'type': 'stop', 'matched': stop}
  end = tokens(served.folder, '<|im_end|>')[0]
  others = tuple(i for i in range(served.config.text.vocab) if i != end)
  ends = [
    served.generate(request(sent.input_ids, banned_ids=others, ignore_eos=ignore))
    for ignore in (False, True)
  ]
  assert [(reply.finish, reply.output_ids) for reply in ends] == [
    ('stop', [end]),
    ('length', [end] * 12),
  ]


def test_greedy_takes_the_best_token_and_reports_temperature_one(served):
  sent = request(served.words(20, 61), temperature=0.0, max_new_tokens=6)
  reply = served.generate(sent)
  logits = np.asarray(
    model.logits(
      served.config, served.params, np.array(sent.input_ids + reply.output_ids, np.int32), ()
    )
  )
  assert reply.output_ids == logits[19:25].argmax(-1).tolist()
  np.testing.assert_allclose(reply.logprobs, served.expected(sent, reply), atol=1e-4)


def test_banned_ids_are_never_sampled_and_top_k_keeps_to_the_best(served):
  allowed = list(range(300, 320))
  others = tuple(i for i in range(served.config.text.vocab) if i not in allowed)
  sent = request(served.words(8, 62), banned_ids=others, max_new_tokens=60, temperature=5.0)
  reply = served.generate(sent)
  assert set(reply.output_ids) <= set(allowed) and len(set(reply.output_ids)) > 8
  assert served.gap(sent, reply) < 1e-4
  greedy = served.generate(request(sent.input_ids, temperature=0.0))
  for cut in ({'top_k': 1}, {'top_p': 1e-3}):
    assert (
      served.generate(request(sent.input_ids, temperature=1.0, **cut)).output_ids
      == greedy.output_ids
    )


def test_prompt_and_new_tokens_may_fill_the_context_and_more_is_refused(served):
  room = 40
  prompt = served.with_image(
    CONTEXT - room - 7, 0, 63
  )  # two ids around an image of four tokens, one to come
  picture = (frame(63, 64, 64),)
  full = served.generate(
    request([*prompt, 300], picture, max_new_tokens=room, banned_ids=banned(served))
  )
  assert (full.prompt_tokens, len(full.output_ids), full.finish) == (CONTEXT - room, room, 'length')
  for sent in (
    request(prompt, picture, max_new_tokens=room + 20),
    request(served.words(CONTEXT + 20, 64), max_new_tokens=1),
  ):
    status, reply = served.call('/generate', sent.to_json())
    assert status == 400 and '25' in reply['error']['message'], (
      reply
    )  # the limit: 256, or 258 where two are never filled


@pytest.mark.parametrize(
  'change',
  [
    {'input_ids': []},
    {'input_ids': ['a']},
    {'input_ids': None},
    {'sampling_params': {'temperature': -1}},
    {'sampling_params': {'max_new_tokens': 10**4}},
    {'sampling_params': {'max_new_tokens': -1}},
    {'sampling_params': {'top_p': 0}},
    {'sampling_params': {'logit_bias': {'x': 1}}},
  ],
)
def test_a_wrong_request_is_refused_and_the_next_one_is_served(served, change):
  status, _ = served.call('/generate', {'input_ids': [1, 2], **change})
  assert status == 400
  assert served.generate(request(served.words(5, 65))).finish == 'length'


def test_what_is_no_image_no_json_or_no_object_is_refused(served):
  pad = served.config.image_id
  assert served.call('/generate', request([5, pad]).to_json() | {'image_data': ['AAAA']})[0] == 400
  for body in (b'{', b'[1]'):
    assert served.call('/generate', body)[0] == 400
  assert served.call('/pause_generation', {'mode': 'later'})[0] == 400
  for body in ({'weight_version': '9'}, {'model_path': '/not/a/folder', 'weight_version': '9'}):
    assert served.call('/update_weights_from_disk', body)[0] == 400
  assert served.call('/get_model_info')[1]['weight_version'] in ('default', '0')


@pytest.mark.parametrize('key', [None, 'another', ''])
def test_without_the_key_only_health_and_readiness_answer(served, key):
  for path in ('/health', '/ready'):
    assert served.call(path, key=key)[0] == 200
  posts = (
    '/generate',
    '/update_weights_from_disk',
    '/pause_generation',
    '/continue_generation',
    '/abort_request',
    '/flush_cache',
  )
  for path, body in [(path, {}) for path in posts] + [
    ('/get_model_info', None),
    ('/get_server_info', None),
  ]:
    assert served.call(path, body, key=key)[0] == 401, path


def test_it_says_what_it_is(served):
  info, server = served.call('/get_model_info')[1], served.call('/get_server_info')[1]
  assert info['model_path'] == info['tokenizer_path'] == str(served.folder)
  assert info['is_generation'] is True and info['weight_version'] in ('default', '0')
  assert server['version'] == {'embedded': 'paravt_jax', 'sglang': '0.5.21'}[served.kind]


def test_an_update_under_pause_retract_leaves_spans_that_are_exact_under_their_own_weights(served):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(9)))
  for go in range(20):  # a fast machine may finish before the pause arrives: then again
    sent = long_requests(served, 4, seed=4 * go)
    with caught(served, sent) as flight:
      served.told('/pause_generation', {'mode': 'retract'})
      assert served.call('/health', timeout=60.0)[0] == 200
      served.update(other, 7)
      assert served.call('/get_model_info')[1]['weight_version'] == '7'
      served.told('/continue_generation', {})
      replies = flight.replies()
    if any(check_spans(served, one, reply, other) for one, reply in zip(sent, replies)):
      return
    served.update(None, 0)
  pytest.fail('20 times four requests of 200 tokens were done before a pause could arrive')


def check_spans(served, sent, reply, other) -> bool:
  """Whether the reply was sampled by both, weights 0 first and 7 (`other`) then; either way its
  log-probs are theirs.
  """
  assert [version for version, _, _ in reply.weight_versions] in ([0], [7], [0, 7]) and len(
    reply.output_ids
  ) == LONG
  old, new = (served.expected(sent, reply, params) for params in (served.params, other))
  expected = np.where(reply.versions() == 0, old, new)
  assert np.abs(np.array(reply.logprobs) - expected).mean() < 1e-4
  if len(reply.weight_versions) == 1:
    return False
  assert (
    reply.weight_versions[0][2] == reply.weight_versions[1][1] > 0
    and reply.weight_versions[1][2] == LONG
  )
  assert reply.retractions == 1
  return True


def test_an_update_changes_the_vision_tower_too(served):
  """What was computed from an image under the old weights is not used under the new ones."""
  sent = request(
    served.with_image(4, 4, 71), (frame(71),), temperature=0.0, banned_ids=banned(served)
  )
  served.generate(sent)
  visual = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.5), served.params['visual'])
  other = {**served.params, 'visual': visual}
  served.update(other, 3)
  reply = served.generate(sent)
  assert reply.weight_versions == [(3, 0, 12)]
  assert served.gap(sent, reply, other) < 1e-4 < 1e-2 < served.gap(sent, reply)


def test_an_update_without_pause_waits_for_what_runs(served):
  sent = long_requests(served, 4)
  with caught(served, sent) as flight:
    served.update(None, 5)
    replies = flight.replies()
  for one, reply in zip(sent, replies):
    assert (
      len(reply.weight_versions) == 1 and reply.retractions == 0 and served.gap(one, reply) < 1e-4
    )
    assert reply.weight_versions[0][0] in (0, 5)


def test_abort_all_answers_everyone_with_what_there_is(served):
  for _ in range(20):
    sent = long_requests(served, 8)
    with caught(served, sent) as flight:
      served.told('/abort_request', {'rid': '', 'abort_all': True})
      replies = flight.replies()
    cut = [(one, reply) for one, reply in zip(sent, replies) if reply.finish == 'abort']
    assert all(len(reply.output_ids) < LONG for _, reply in cut)
    begun = [(one, reply) for one, reply in cut if reply.output_ids]
    if begun:
      assert all(served.gap(one, reply) < 1e-4 for one, reply in begun)
      return
  pytest.fail('20 times eight requests of 200 tokens were done before an abort could arrive')


def test_abort_by_rid_leaves_the_others(served):
  for _ in range(20):
    one, other = long_requests(served, 2)
    with caught(served, [one, other]) as flight:
      served.told('/abort_request', {'rid': one.rid})
      first, second = flight.replies()
    assert (second.finish, len(second.output_ids)) == ('length', LONG)
    if first.finish == 'abort':
      assert len(first.output_ids) < LONG
      return
  pytest.fail('20 times a request of 200 tokens was done before its abort could arrive')


def test_aborting_nobody_is_no_error(served):
  assert served.call('/abort_request', {'rid': 'nobody'})[0] == 200


@pytest.mark.parametrize('mode', ['retract', 'abort', 'in_place'])
def test_a_paused_server_is_healthy_takes_requests_and_serves_them_when_it_goes_on(served, mode):
  served.told('/pause_generation', {'mode': mode})
  served.told('/pause_generation', {'mode': mode})
  with Flight(served, [request(served.words(5, 82))]) as flight:
    start = time.monotonic()
    for path in ('/health', '/get_model_info', '/get_server_info'):
      assert served.call(path, timeout=60.0)[0] == 200
    patience.until(lambda: time.monotonic() - start > 0.2)
    assert flight.done == [False]
    served.told('/continue_generation', {})
    assert flight.replies()[0].finish == 'length'


def test_pausing_with_abort_answers_what_runs(served):
  for _ in range(20):
    with caught(served, long_requests(served, 2)) as flight:
      served.told('/pause_generation', {'mode': 'abort'})
      patience.until(
        lambda: any(flight.done)
      )  # answered while paused; one that arrived after the pause waits for its end
      served.told('/continue_generation', {})
      replies = flight.replies()
    if any(reply.finish == 'abort' for reply in replies):
      return
  pytest.fail('20 times two requests of 200 tokens were done before a pause could arrive')


def test_the_cache_is_flushed_when_idle_and_refused_while_something_runs(served):
  for _ in range(20):
    with caught(served, long_requests(served, 2)) as flight:
      status, _ = served.call('/flush_cache', {})
      flight.replies()
    if status == 400:
      assert served.call('/flush_cache', {})[0] == 200
      return
  pytest.fail('20 times two requests of 200 tokens were done before a flush could arrive')


def test_the_same_image_may_be_sent_with_a_data_header(served):
  sent = request(
    served.with_image(4, 4, 90), (frame(90),), temperature=0.0, banned_ids=banned(served)
  )
  body = sent.to_json(['data:image/png;base64,' + encode_image(frame(90))])
  status, reply = served.call('/generate', body)
  assert status == 200 and served.gap(sent, GenerateReply.from_json(reply)) < 1e-4


# Streams


def streamed(served, sent, after=lambda body: None):
  """The events of a streamed request, as objects. after: hears each as it arrives."""
  connection = http.client.HTTPConnection(
    '127.0.0.1', int(served.process.url.rsplit(':', 1)[1]), timeout=patience.seconds(60)
  )
  headers = {'Authorization': f'Bearer {KEY}', 'Content-Type': 'application/json'}
  connection.request('POST', '/generate', json.dumps({**sent.to_json(), 'stream': True}), headers)
  reply = connection.getresponse()
  assert reply.status == 200 and reply.headers['Content-Type'].startswith('text/event-stream')
  events = []
  while (line := reply.readline()) and line.strip() != b'data: [DONE]':
    if line.startswith(b'data: '):
      events.append(json.loads(line.removeprefix(b'data: ')))
      after(events[-1])
  connection.close()
  assert line.strip() == b'data: [DONE]'
  return events


def test_a_stream_tells_all_ids_so_far_and_ends_as_the_plain_reply(served):
  sent = request(
    served.with_image(20, 5, 91),
    (frame(91),),
    temperature=0.0,
    max_new_tokens=60,
    banned_ids=banned(served),
  )
  plain = served.generate(dataclasses.replace(sent, rid=sent.rid + '-plain'))
  events = streamed(served, sent)
  assert [event['meta_info']['finish_reason'] for event in events[:-1]] == [None] * (
    len(events) - 1
  ) and len(events) > 2
  whole = GenerateReply.from_json(events[-1])
  assert (whole.output_ids, whole.finish) == (plain.output_ids, 'length')
  np.testing.assert_allclose(
    whole.logprobs, plain.logprobs, atol=0 if served.kind == 'embedded' else 1e-4
  )
  lengths = [len(event['output_ids']) for event in events]
  assert (
    lengths == sorted(lengths) and 0 < lengths[0] < 60
  )  # the first is there before the last token is
  assert all(
    event['output_ids'] == whole.output_ids[:length] for event, length in zip(events, lengths)
  )


def test_a_stream_whose_reader_goes_away_is_aborted_and_frees_its_place(served):
  aborted = lambda: (
    served.call('/get_server_info')[1]['counts']['aborted'] if served.kind == 'embedded' else None
  )
  before = aborted()
  for _ in range(20):
    body = json.dumps({**long_requests(served, 1)[0].to_json(), 'stream': True}).encode()
    port = int(served.process.url.rsplit(':', 1)[1])
    with socket.create_connection(('127.0.0.1', port), patience.seconds(120)) as raw:
      raw.sendall(
        b'POST /generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: '
        b'application/json\r\n'
        b'Content-Length: %d\r\n\r\n%s' % (KEY.encode(), len(body), body)
      )
      came = b''
      while b'data: ' not in came:
        came += raw.recv(4096)
    patience.until(lambda: served.running() == 0, 'the place of a reader that went away')
    if b'[DONE]' not in came and (before is None or aborted() > before):
      return
  pytest.fail(
    '20 times a request of 200 tokens was done before its reader could go away, or went on '
    'without it'
  )


def test_a_wrong_stream_is_refused_like_any_request(served):
  body = {'input_ids': [1, 2], 'sampling_params': {'temperature': -1}, 'stream': True}
  status, reply = served.call('/generate', body)
  assert status == 400 or (
    status == 200 and '"error"' in reply
  )  # SGLang may have opened its stream by then


def through_client(served, scenario, key=KEY):
  """What `await scenario(client, control, url)` gives."""
  options = ClientOptions(
    api_key=key,
    connections=16,
    timeout_s=patience.seconds(60.0),
    ready_timeout_s=patience.seconds(30.0),
    retries=2,
    backoff_s=0.05,
    image_cache=16,
  )

  async def run():
    url = served.process.url
    async with (
      Client(
        options, served.config.text.vocab, Router((url,)), image_id=served.config.image_id
      ) as client,
      Control(options) as control,
    ):
      return await scenario(client, control, url)

  return asyncio.run(run())


def test_the_client_gets_every_token_of_what_a_server_aborts(served):
  """A pause with mode abort is the harshest: partial replies, sent again from their tokens when
  generation goes on.
  """

  async def scenario(client, control, url):
    await control.wait_ready(url)
    for _ in range(20):
      sent = long_requests(served, 3)
      tasks = [asyncio.create_task(client.generate(one)) for one in sent]
      while not (
        await asyncio.to_thread(served.running) or all(task.done() for task in tasks)
      ):  # each look has its limit
        await asyncio.sleep(0.005)
      await control.pause(url, 'abort')
      await control.resume(url)
      results = await asyncio.gather(*tasks)
      if client.counts['interrupted']:
        return sent, results
    raise AssertionError(
      '20 times three requests of 200 tokens were done before a pause could arrive'
    )

  for one, sampled in zip(*through_client(served, scenario)):
    assert (len(sampled.ids), sampled.finish) == (LONG, 'length') and not sampled.versions.any()
    reply = GenerateReply(sampled.ids.tolist(), sampled.logprobs.tolist(), 'length', 0, 0, 0, [])
    assert served.gap(one, reply) < 1e-4


@pytest.mark.parametrize('mode', ['retract', 'abort'])
def test_what_is_heard_of_a_stream_grows_through_an_update_of_the_weights(served, mode):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(9)))
  folder = served.staged(other, 7)

  async def scenario(client, control, url):
    for _ in range(20):
      sent, heard = long_requests(served, 1)[0], []
      task = asyncio.create_task(client.generate(sent, heard=heard.append))
      await patience.seen(lambda heard=heard: heard, 'the first tokens of a stream', step=0.001)
      await control.pause(url, mode)
      before = len(heard)
      await asyncio.to_thread(
        served.told, '/update_weights_from_disk', {'model_path': str(folder), 'weight_version': '7'}
      )
      await control.resume(url)
      got = await task
      if 0 < (got.versions == 0).sum() < LONG:
        return sent, got, heard, before
      await asyncio.to_thread(served.update, None, 0)
    raise AssertionError('20 times a request of 200 tokens was done before a pause could arrive')

  sent, got, heard, before = through_client(served, scenario)
  assert (
    len(got.ids) == LONG
    and got.versions.tolist() == sorted(got.versions.tolist())
    and 0 < before < len(heard)
  )
  assert heard[-1] == got.ids.tolist()
  assert all(longer[: len(ids)] == ids for ids, longer in itertools.pairwise(heard))
  reply = GenerateReply(got.ids.tolist(), got.logprobs.tolist(), 'length', 0, 0, 0, [])
  old, new = (served.expected(sent, reply, params) for params in (served.params, other))
  assert np.abs(got.logprobs - np.where(got.versions == 0, old, new)).mean() < 1e-4


def test_the_client_refuses_images_and_placeholders_that_disagree_before_a_server_sees_them(served):
  async def scenario(client, control, url):
    for ids, images in (([5, served.config.image_id], ()), ([5], (frame(1),))):
      with pytest.raises(RolloutError, match='placeholder'):
        await client.generate(request(ids, images))
    return client.counts['requests']

  assert through_client(served, scenario) == 0


def test_control_swaps_weights_under_running_requests_and_says_what_it_is_refused(served):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(9)))
  folder = served.staged(other, 2)

  async def scenario(client, control, url):
    await control.inspect(url)
    task = asyncio.create_task(client.generate(long_requests(served, 1)[0]))
    await control.swap_weights(url, str(folder), 2)
    assert await control.version(url) == 2 and len((await task).ids) == LONG
    with pytest.raises(SyncError, match='refused weights 3'):
      await control.swap_weights(url, '/not/a/folder', 3)
    assert (
      len((await client.generate(request(served.words(4, 4)))).ids) == 12
    )  # and it is not left paused
    return await control.version(url)

  assert through_client(served, scenario) == 2


def test_control_names_a_key_that_is_refused(served):
  async def scenario(client, control, url):
    with pytest.raises(RolloutError, match='refuses our key') as error:
      await control.inspect(url)
    return str(error.value)

  assert '\n' not in through_client(served, scenario, key='another')
