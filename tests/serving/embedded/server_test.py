"""What the embedded server promises beyond the contract (../contract): equal bits, whole-prefix
reuse, clear refusals.
"""

import os
import shutil

import numpy as np
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.serving import publish
from paravt_jax.serving.embedded.launch import launch
from tests import patience, xla
from tests.serving.contract.drive import Flight, embedded_options, frame, request, together


@pytest.fixture
def served(embedded_server):
  return embedded_server


def counts(served) -> dict:
  return served.call('/get_server_info')[1]['counts']


def test_a_request_gives_the_same_bits_alone_in_a_crowd_and_with_its_prefix_cached(served):
  prompts = [served.with_image(5 + 7 * i, 3 + i, 20 + i) for i in range(10)]
  sent = [
    request(p, (frame(30 + i),), seed=1000 + i, max_new_tokens=9 + i) for i, p in enumerate(prompts)
  ]
  alone = []
  for one in sent:
    served.call('/flush_cache', {})
    alone.append(served.generate(one))
    assert alone[-1].cached_tokens == 0
  again = served.generate(sent[9])
  assert again.cached_tokens == again.prompt_tokens
  served.call('/flush_cache', {})
  crowd = together(
    served, sent[::-1] + [request(served.words(90, 77), max_new_tokens=60) for _ in range(4)]
  )[:10][::-1]
  warm = together(served, sent)
  for first, second, third in zip(alone, crowd, warm):
    assert first.output_ids == second.output_ids == third.output_ids
    assert first.logprobs == second.logprobs == third.logprobs
  assert again.logprobs == alone[9].logprobs


def test_a_groups_prefix_is_computed_once(served):
  prompt = served.words(75, 50)
  served.call('/flush_cache', {})
  before = counts(served)['prefilled_tokens']
  replies = together(served, [request(prompt, seed=i) for i in range(8)])
  assert counts(served)['prefilled_tokens'] - before == 75
  assert sorted(reply.cached_tokens for reply in replies) == [0] + [75] * 7
  assert len({tuple(reply.output_ids) for reply in replies}) == 8
  longer = served.generate(request(prompt + replies[0].output_ids + served.words(9, 51)))
  assert longer.cached_tokens == 64  # whole chunks of 32 that both share


def test_broken_weights_are_refused_and_the_old_ones_stay(served, tmp_path):
  params = served.params
  sent = request(served.words(12, 80), temperature=0.0)
  expected = served.generate(sent).logprobs
  good = publish.save(tmp_path, 3, params, keep=9)
  missing = shutil.copytree(good, tmp_path / 'missing')
  shutil.rmtree(next(p for p in (missing / 'arrays').iterdir() if 'embed' in p.name))
  changed = {**params, 'text': {**params['text'], 'norm': {'scale': np.ones(7, np.float32)}}}
  shaped = publish.save(tmp_path, 4, changed, keep=9)
  for broken, says in (
    (missing, 'embed'),
    (shaped, 'text/norm/scale'),
    (tmp_path / 'nowhere', 'manifest.json'),
  ):
    status, body = served.call(
      '/update_weights_from_disk', {'model_path': str(broken), 'weight_version': '9'}
    )
    assert status == 400 and body['success'] is False and says in body['message'], body
  assert served.call('/get_model_info')[1]['weight_version'] in ('0', 'default')
  assert served.generate(request(sent.input_ids, temperature=0.0)).logprobs == expected


def test_a_request_that_came_while_paused_is_aborted_by_its_rid_alone(served):
  served.told('/pause_generation', {'mode': 'in_place'})
  with Flight(
    served, [request(served.words(12, 82), rid=rid) for rid in ('one', 'other')]
  ) as flight:
    patience.until(lambda: served.call('/get_server_info')[1]['waiting'] == 2)
    assert served.call('/abort_request', {'rid': 'one'})[1] == {'aborted': 1}
    patience.until(lambda: flight.done[0])
    served.told('/continue_generation', {})
    one, other = flight.replies()
  assert (one.finish, one.output_ids, other.finish) == ('abort', [], 'length')


@pytest.mark.parametrize(
  'change, says',
  [
    ({'input_ids': [1, 10**6]}, 'input_ids: got 1000000'),
    ({'input_ids': []}, 'at least one'),
    ({'input_ids': [[1, 2]]}, 'flat list'),
    ({'image_data': ['AAAA']}, 'not a base64 PNG'),
    ({'temperatur': 1}, "unknown key 'temperatur'"),
    ({'sampling_params': {'temperature': -1}}, 'temperature: got -1'),
    ({'sampling_params': {'max_new_tokens': 10**4}}, 'wanted at most 256'),
    ({'sampling_params': {'stop_token_ids': [1, 2, 3, 4, 5]}}, 'stop_token_ids: got 6 with'),
  ],
)
def test_a_wrong_request_is_one_clear_line(served, change, says):
  status, body = served.call('/generate', {'input_ids': [1, 2], **change})
  assert status == 400 and says in body['error']['message'] and '\n' not in body['error']['message']


def test_placeholders_and_images_must_agree_in_number_and_size(served):
  pad, one = served.config.image_id, (frame(1),)
  for ids, images, says in (
    ([pad] * 2, one, 'hold 2 image placeholders'),
    ([5], one, 'hold 0 image placeholders'),
    ([pad], (frame(1, 40, 32),), '40x32'),
    ([pad], (frame(1, 96, 96),), 'max_image_patches'),
  ):
    status, body = served.call('/generate', request(ids, images).to_json())
    assert status == 400 and says in body['error']['message'], body


def test_a_port_in_use_and_a_wrong_model_end_in_one_clear_line(served, tmp_path):
  port = int(served.process.url.rsplit(':', 1)[1])
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK}
  for given, says in (
    (embedded_options(served.folder, port=port), f'cannot listen on 127.0.0.1:{port}'),
    (embedded_options(tmp_path), 'config.json'),
  ):
    with pytest.raises(RolloutError, match='ended with status 2') as error:
      launch(
        given,
        env=environment,
        log=tmp_path / 'log',
        deadline_s=patience.seconds(300),
        parent_pid=os.getpid(),
      )
    assert says in str(error.value) and 'Traceback' not in str(error.value)
