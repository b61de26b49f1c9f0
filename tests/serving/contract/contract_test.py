"""The contract of a rollout server: every test here holds for the embedded server and for real
SGLang.
"""

import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import model
from paravt_jax.serving.protocol import GenerateReply, encode_image
from tests.serving.contract.drive import (
  CONTEXT,
  banned,
  expanded,
  frame,
  request,
  together,
  tokens,
)


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


def test_the_same_image_may_be_sent_with_a_data_header(served):
  sent = request(
    served.with_image(4, 4, 90), (frame(90),), temperature=0.0, banned_ids=banned(served)
  )
  body = sent.to_json(['data:image/png;base64,' + encode_image(frame(90))])
  status, reply = served.call('/generate', body)
  assert status == 200 and served.gap(sent, GenerateReply.from_json(reply)) < 1e-4
