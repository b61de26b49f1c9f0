"""The contract of a rollout server, its commands: weights, abort, pause, flush.

Every test here holds for the embedded server and for real SGLang.
"""

import dataclasses
import time

import jax
import numpy as np
import pytest

from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import model
from paravt_jax.serving import changes, publish, staging
from tests import patience
from tests.serving.contract.drive import (
  LONG,
  Flight,
  banned,
  caught,
  frame,
  long_requests,
  request,
)


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


@pytest.mark.parametrize('products', [lora.PRODUCTS, ('q', 'down')])
def test_an_adapter_is_added_to_the_first_weights_and_the_next_one_takes_its_place(
  served, products
):
  form = lora.Adapter(4, 8.0, products)
  config = dataclasses.replace(served.config, adapter=form)
  shapes = model.abstract_params(config)[lora.PART]
  sent = request(served.words(9, 72), temperature=0.0, banned_ids=banned(served))
  if served.kind == 'embedded':  # a staged version holds what it changes: SGLang keeps the rest
    served.update(jax.tree.map(lambda x: np.asarray(x) * np.float32(1.1), served.params), 2)
  for version in (3, 4):
    draw = np.random.default_rng(version).normal
    part = jax.tree.map(lambda x, draw=draw: draw(size=x.shape, scale=0.1).astype('f4'), shapes)
    served.update({lora.PART: part}, version, form)
    folded = lora.fold(form, {**served.params, lora.PART: part})
    reply = served.generate(sent)
    assert reply.weight_versions == [(version, 0, 12)]
    assert served.gap(sent, reply, folded) < 1e-4 < 1e-2 < served.gap(sent, reply)


def test_changes_are_loaded_by_a_server_of_the_version_before_and_refused_by_others(
  served, tmp_path
):
  def stepped(params, seed):
    draw = np.random.default_rng(seed).random
    step = lambda x: np.where(draw(x.shape) < 0.05, x * np.float32(1.3), x)
    return jax.tree.map(step, params)

  first = jax.tree.map(np.asarray, served.params)
  second = stepped(first, 1)
  third = stepped(second, 2)
  stage = lambda folder: folder
  if served.kind == 'sglang':
    stage = staging.Staging(served.folder, tmp_path / 'staged', keep=True).stage
  outlet = changes.Outlet(tmp_path)
  with publish.Publisher(tmp_path / 'weights', keep=3, changes=outlet) as publisher:
    out = [
      publisher.start(version, params, frozen=None, canary=None).ready()
      for version, params in ((11, first), (12, second), (13, third))
    ]
    sent = request(served.words(9, 73), temperature=0.0, banned_ids=banned(served))

    def expect(version, params, old):
      reply = served.generate(sent)
      assert reply.weight_versions == [(version, 0, 12)]
      assert served.gap(sent, reply, params) < 1e-4 < 1e-2 < served.gap(sent, reply, old)

    assert served.load(stage(out[0].whole()), 11)[0] == 200
    status, body = served.load(stage(out[2].changes), 13)  # changes of 12
    assert (status, body['success']) == (400, False), body
    expect(11, first, second)
    for version, one, params, old in ((12, out[1], second, first), (13, out[2], third, second)):
      status, body = served.load(stage(one.changes), version)
      assert (status, body['success']) == (200, True), body
      expect(version, params, old)


# SGLang 0.5.21 ends itself where an update without a pause arrives as its last request ends
# (third_party/sglang/README.md). The client always pauses.
@pytest.mark.parametrize('served', ['embedded'], indirect=True)
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
