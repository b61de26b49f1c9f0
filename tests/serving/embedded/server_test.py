"""The real server process over HTTP, with a random tiny model."""

import concurrent.futures
import json
import os
import pathlib
import shutil
import threading
import time
import urllib.error
import urllib.request

import jax
import numpy as np
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import publish
from paravt_jax.serving.embedded.launch import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.protocol import GenerateReply, GenerateRequest
from paravt_jax.testing import tiny

LANES = ((128, 8), (256, 4))
CHUNK = 32


def options(folder: pathlib.Path, **changes) -> ServerOptions:
  given = {
      'model_path': str(folder), 'host': '127.0.0.1', 'port': 0, 'port_file': None, 'api_key': None, 'dtype': 'float32',
      'eos_token_ids': (), 'lanes': LANES, 'chunk_tokens': CHUNK, 'prefill_rows': 4, 'pages': 64, 'decode_steps': 4,
      'image_batch': 4, 'image_slots': 32, 'max_image_patches': 16, 'bias_rows': 4, 'max_stop_ids': 4, 'max_body_mb': 16,
      'compile_cache': None, 'parent_pid': None}
  return ServerOptions(**{**given, **changes})


class Client:
  """Just enough HTTP."""

  def __init__(self, url: str):
    self.url = url

  def call(self, path: str, body: dict | None = None) -> tuple[int, dict]:
    data = None if body is None else json.dumps(body).encode()
    try:
      with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as reply:
        return reply.status, json.loads(reply.read() or b'{}')
    except urllib.error.HTTPError as error:
      return error.code, json.loads(error.read() or b'{}')

  def generate(self, request: GenerateRequest) -> GenerateReply:
    status, body = self.call('/generate', request.to_json())
    assert status == 200, body
    return GenerateReply.from_json(body)

  def together(self, requests: list[GenerateRequest]) -> list[GenerateReply]:
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
      return list(pool.map(self.generate, requests))

  def counts(self) -> dict:
    return self.call('/get_server_info')[1]['counts']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp('serving') / 'model'
  tiny.build_model_folder(path, seed=3)
  return path


@pytest.fixture(scope='module')
def loaded(folder):
  return weights.load_hf(folder)


@pytest.fixture(scope='module')
def client(folder, tmp_path_factory):
  log = tmp_path_factory.mktemp('log') / 'server.log'
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  server = launch(options(folder), env=environment, log=log, deadline_s=120.0, parent_pid=os.getpid())
  yield Client(server.url)
  assert server.alive, server.tail()
  server.stop(5.0)
  assert server.process.returncode == 0, server.tail()


_serial = iter(range(10**6))


def request(ids, images=(), **changes) -> GenerateRequest:
  given = {'rid': f'test-{next(_serial)}', 'input_ids': list(map(int, ids)), 'images': tuple(images),
           'temperature': 0.7, 'top_p': 1.0, 'top_k': -1,
           'max_new_tokens': 12, 'stop_token_ids': (), 'banned_ids': (), 'seed': 11, 'ignore_eos': True}
  return GenerateRequest(**{**given, **changes})


def words(config, number: int, seed: int) -> list[int]:
  """Random text ids, none of which is a vision id."""
  rng = np.random.default_rng(seed)
  return [int(t) for t in rng.integers(200, 500, number)]


def frame(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def learner_logprobs(loaded, sent: GenerateRequest, output_ids, params=None) -> np.ndarray:
  """Teacher-forced: log-softmax of (masked logits / temperature) of the whole sequence, read at the sampled tokens."""
  config, own = loaded
  ids = []
  frames = iter(sent.images)
  for token in sent.input_ids:
    repeats = 1
    if token == config.image_id:
      image = next(frames)
      repeats = image.shape[0] // 32 * (image.shape[1] // 32)
    ids += [token] * repeats
  whole = np.array(ids + list(output_ids), np.int32)
  padded = np.concatenate([whole, np.zeros(-len(whole) % 64, np.int32)])           # few shapes to compile
  logits = np.asarray(model.logits(config, own if params is None else params, padded, sent.images), np.float64)
  logits = logits[len(ids) - 1:len(whole) - 1] / (sent.temperature or 1.0)
  logits[:, list(sent.banned_ids)] = -np.inf
  logits -= logits.max(-1, keepdims=True)
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  return logits[np.arange(len(output_ids)), output_ids]


def with_image(config, before: int, after: int, seed: int) -> list[int]:
  image = [config.vision_start_id, config.image_id, config.vision_end_id]
  return words(config, before, seed) + image + words(config, after, seed + 1)


def test_log_probs_are_the_learners_for_text_and_images_over_chunk_borders(client, loaded):
  config, _ = loaded
  images = (frame(1), frame(2, 64, 64), frame(3, 32, 64))
  mixed = with_image(config, 29, 3, 5) + with_image(config, 20, 7, 6) + with_image(config, 4, 9, 7)
  for sent in (request(words(config, 5, 1), temperature=0.0), request(words(config, 64, 2)),
               request(words(config, 101, 3), max_new_tokens=40, banned_ids=(config.image_id, config.video_id)),
               request(mixed, images, banned_ids=(config.image_id, config.video_id))):
    reply = client.generate(sent)
    assert len(reply.output_ids) == sent.max_new_tokens
    gap = np.abs(np.array(reply.logprobs) - learner_logprobs(loaded, sent, reply.output_ids))
    assert gap.mean() < 1e-4, gap
  assert reply.image_tokens == 1 + 4 + 2
  assert reply.prompt_tokens == len(mixed) + 7 - 3


def test_a_request_gives_the_same_bits_alone_in_a_crowd_and_with_its_prefix_cached(client, loaded):
  config, _ = loaded
  prompts = [with_image(config, 5 + 7 * i, 3 + i, 20 + i) for i in range(10)]
  sent = [request(p, (frame(30 + i),), seed=1000 + i, max_new_tokens=9 + i) for i, p in enumerate(prompts)]
  alone = []
  for one in sent:
    client.call('/flush_cache', {})
    alone.append(client.generate(one))
    assert alone[-1].cached_tokens == 0
  again = client.generate(sent[9])
  assert again.cached_tokens == again.prompt_tokens
  client.call('/flush_cache', {})
  crowd = client.together(sent[::-1] + [request(words(config, 90, 77), max_new_tokens=60) for _ in range(4)])[:10][::-1]
  warm = client.together(sent)
  for first, second, third in zip(alone, crowd, warm):
    assert first.output_ids == second.output_ids == third.output_ids
    assert first.logprobs == second.logprobs == third.logprobs
  assert again.logprobs == alone[9].logprobs


def test_a_groups_prefix_is_computed_once(client, loaded):
  config, _ = loaded
  prompt = words(config, 75, 50)
  client.call('/flush_cache', {})
  before = client.counts()['prefilled_tokens']
  replies = client.together([request(prompt, seed=i) for i in range(8)])
  assert client.counts()['prefilled_tokens'] - before == 75
  assert sorted(reply.cached_tokens for reply in replies) == [0] + [75] * 7
  assert len({tuple(reply.output_ids) for reply in replies}) == 8
  longer = client.generate(request(prompt + replies[0].output_ids + words(config, 9, 51)))
  assert longer.cached_tokens == 64            # whole chunks of 32 that both share


def test_budget_stop_id_and_end_of_text_give_their_reasons(client, loaded):
  config, _ = loaded
  sent = request(words(config, 10, 60), temperature=0.0)
  free = client.generate(sent)
  assert (free.finish, len(free.output_ids)) == ('length', 12)
  stop = free.output_ids[3]
  first = free.output_ids.index(stop)
  status, body = client.call('/generate', request(sent.input_ids, temperature=0.0, stop_token_ids=(stop,)).to_json())
  assert body['output_ids'] == free.output_ids[:first + 1]
  assert body['meta_info']['finish_reason'] == {'type': 'stop', 'matched': stop}


def test_greedy_takes_the_best_token_and_reports_temperature_one(client, loaded):
  config, params = loaded
  sent = request(words(config, 20, 61), temperature=0.0, max_new_tokens=6)
  reply = client.generate(sent)
  logits = np.asarray(model.logits(config, params, np.array(sent.input_ids + reply.output_ids, np.int32), ()))
  assert reply.output_ids == logits[19:25].argmax(-1).tolist()
  np.testing.assert_allclose(reply.logprobs, learner_logprobs(loaded, sent, reply.output_ids), atol=1e-4)


def test_banned_ids_are_never_sampled_and_top_k_keeps_to_the_best(client, loaded):
  config, params = loaded
  allowed = list(range(300, 320))
  banned = tuple(i for i in range(config.text.vocab) if i not in allowed)
  sent = request(words(config, 8, 62), banned_ids=banned, max_new_tokens=60, temperature=5.0)
  reply = client.generate(sent)
  assert set(reply.output_ids) <= set(allowed) and len(set(reply.output_ids)) > 8
  assert np.abs(np.array(reply.logprobs) - learner_logprobs(loaded, sent, reply.output_ids)).mean() < 1e-4
  greedy = client.generate(request(sent.input_ids, temperature=0.0))
  for cut in ({'top_k': 1}, {'top_p': 1e-3}):
    assert client.generate(request(sent.input_ids, temperature=1.0, **cut)).output_ids == greedy.output_ids


def test_an_update_under_pause_retract_leaves_spans_that_are_exact_under_their_own_weights(client, loaded, folder, tmp_path):
  config, params = loaded
  other = jax.tree.map(np.asarray, model.init(config, jax.random.key(9)))
  published = publish.save(tmp_path / 'weights', 7, other, keep=2)
  spanning = 0
  for go in range(20):                       # a fast machine may finish before the pause arrives: then again
    sent = [request(with_image(config, 10 + i, 3, 70), (frame(70),), seed=4 * go + i, max_new_tokens=200,
                    banned_ids=(config.image_id, config.video_id)) for i in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
      before = client.counts()['sampled_tokens']
      running = [pool.submit(client.generate, one) for one in sent]
      wait_until(lambda: client.counts()['sampled_tokens'] > before)
      assert client.call('/pause_generation', {'mode': 'retract'})[0] == 200
      assert client.call('/health')[0] == 200
      assert client.call('/get_server_info')[1]['running'] == [0, 0]
      update(client, published, 7)
      assert client.call('/get_model_info')[1]['weight_version'] == '7'
      client.call('/continue_generation', {})
      replies = [future.result() for future in running]
    for one, reply in zip(sent, replies):
      assert [v for v, _, _ in reply.weight_versions] in ([0], [7], [0, 7]) and len(reply.output_ids) == 200
      old, new = (learner_logprobs(loaded, one, reply.output_ids, p) for p in (params, other))
      expected = np.where(reply.versions() == 0, old, new)
      assert np.abs(np.array(reply.logprobs) - expected).mean() < 1e-4
      if len(reply.weight_versions) == 2:
        spanning += 1
        assert reply.weight_versions[0][2] == reply.weight_versions[1][1] > 0 and reply.weight_versions[1][2] == 200
        assert reply.retractions == 1
    update(client, folder, 0)
    if spanning:
      return
  pytest.fail('20 times four requests of 200 tokens were done before a pause could arrive')


def update(client, folder, version: int) -> None:
  status, body = client.call('/update_weights_from_disk',
                             {'model_path': str(folder), 'weight_version': str(version), 'flush_cache': True})
  assert (status, body['success']) == (200, True), body


def test_an_update_without_pause_waits_for_what_runs(client, loaded, folder):
  config, _ = loaded
  sent = [request(words(config, 12, 83), seed=i, max_new_tokens=200, banned_ids=(config.image_id,)) for i in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    before = client.counts()['sampled_tokens']
    running = [pool.submit(client.generate, one) for one in sent]
    wait_until(lambda: client.counts()['sampled_tokens'] > before)
    assert client.call('/update_weights_from_disk', {'model_path': str(folder), 'weight_version': '5'})[0] == 200
    replies = [future.result() for future in running]
  assert all(len(reply.weight_versions) == 1 and reply.retractions == 0 for reply in replies)
  assert {reply.weight_versions[0][0] for reply in replies} <= {0, 5}
  assert client.call('/update_weights_from_disk', {'model_path': str(folder), 'weight_version': '0'})[0] == 200


def wait_until(condition, seconds: float = 20.0) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'it did not come'
    time.sleep(0.005)


def test_broken_weights_are_refused_and_the_old_ones_stay(client, loaded, folder, tmp_path):
  config, params = loaded
  sent = request(words(config, 12, 80), temperature=0.0)
  expected = client.generate(sent).logprobs
  good = publish.save(tmp_path, 3, params, keep=9)
  missing = shutil.copytree(good, tmp_path / 'missing')
  shutil.rmtree(next(p for p in (missing / 'arrays').iterdir() if 'embed' in p.name))
  changed = {**params, 'text': {**params['text'], 'norm': {'scale': np.ones(7, np.float32)}}}
  shaped = publish.save(tmp_path, 4, changed, keep=9)
  for broken, says in ((missing, 'embed'), (shaped, 'text/norm/scale'), (tmp_path / 'nowhere', 'manifest.json')):
    status, body = client.call('/update_weights_from_disk', {'model_path': str(broken), 'weight_version': '9'})
    assert status == 400 and body['success'] is False and says in body['message'], body
  assert client.call('/get_model_info')[1]['weight_version'] in ('0', 'default')
  assert client.generate(request(sent.input_ids, temperature=0.0)).logprobs == expected


def test_abort_all_answers_everyone_with_what_there_is(client, loaded):
  config, _ = loaded
  sent = [request(words(config, 12, 81), seed=i, max_new_tokens=240, banned_ids=(config.image_id,)) for i in range(16)]
  with concurrent.futures.ThreadPoolExecutor(16) as pool:
    before = client.counts()['sampled_tokens']
    running = [pool.submit(client.generate, one) for one in sent]
    wait_until(lambda: client.counts()['sampled_tokens'] > before)
    client.call('/abort_request', {'abort_all': True})
    replies = [future.result() for future in running]
  cut = [(one, reply) for one, reply in zip(sent, replies) if reply.finish == 'abort' and reply.output_ids]
  assert cut and all(len(reply.output_ids) < 240 for _, reply in cut)
  one, reply = cut[0]
  assert np.abs(np.array(reply.logprobs) - learner_logprobs(loaded, one, reply.output_ids)).mean() < 1e-4


def test_abort_by_rid_leaves_the_others(client, loaded):
  config, _ = loaded
  client.call('/pause_generation', {'mode': 'in_place'})
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    one, other = (pool.submit(client.generate, request(words(config, 12, 82), rid=rid)) for rid in ('one', 'other'))
    wait_until(lambda: client.call('/get_server_info')[1]['waiting'] == 2)
    assert client.call('/abort_request', {'rid': 'one'})[1] == {'aborted': 1}
    assert (one.result().finish, one.result().output_ids) == ('abort', [])
    client.call('/continue_generation', {})
    assert other.result().finish == 'length'


def test_a_paused_server_queues_and_goes_on(client, loaded):
  config, _ = loaded
  client.call('/pause_generation', {'mode': 'abort'})
  done = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    future = pool.submit(client.generate, request(words(config, 5, 82)))
    future.add_done_callback(lambda _: done.set())
    assert not done.wait(0.3)
    client.call('/continue_generation', {})
    assert future.result().finish == 'length'


@pytest.mark.parametrize('change, says', [
    ({'input_ids': [1, 10**6]}, 'input_ids: got 1000000'),
    ({'input_ids': []}, 'at least one'),
    ({'input_ids': [[1, 2]]}, 'flat list'),
    ({'image_data': ['AAAA']}, 'not a base64 PNG'),
    ({'temperatur': 1}, "unknown key 'temperatur'"),
    ({'sampling_params': {'temperature': -1}}, 'temperature: got -1'),
    ({'sampling_params': {'max_new_tokens': 10**4}}, 'wanted at most 256'),
    ({'sampling_params': {'stop_token_ids': [1, 2, 3, 4, 5]}}, 'stop_token_ids: got 5'),
])
def test_a_wrong_request_is_one_clear_line(client, change, says):
  status, body = client.call('/generate', {'input_ids': [1, 2], **change})
  assert status == 400 and says in body['error']['message'] and '\n' not in body['error']['message']


def test_placeholders_and_images_must_agree_in_number_and_size(client, loaded):
  config, _ = loaded
  pad, one = config.image_id, (frame(1),)
  for ids, images, says in (([pad] * 2, one, 'hold 2 image placeholders'), ([5], one, 'hold 0 image placeholders'),
                            ([pad], (frame(1, 40, 32),), '40x32'), ([pad], (frame(1, 96, 96),), 'max_image_patches')):
    status, body = client.call('/generate', request(ids, images).to_json())
    assert status == 400 and says in body['error']['message'], body


def test_a_port_in_use_and_a_wrong_model_end_in_one_clear_line(client, folder, tmp_path):
  port = int(client.url.rsplit(':', 1)[1])
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  for given, says in ((options(folder, port=port), f'cannot listen on 127.0.0.1:{port}'), (options(tmp_path), 'config.json')):
    with pytest.raises(RolloutError, match='ended with status 2') as error:
      launch(given, env=environment, log=tmp_path / 'log', deadline_s=60.0, parent_pid=os.getpid())
    assert says in str(error.value) and 'Traceback' not in str(error.value)
