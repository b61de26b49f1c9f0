"""An engine whose devices share the model says what one device says."""

import dataclasses
import queue
import threading

import jax
import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.models.qwen3_vl import model
from paravt_jax.serving.embedded import programs
from paravt_jax.serving.embedded.engine import Job
from paravt_jax.serving.embedded.images import cut
from paravt_jax.serving.embedded.prompts import expand
from paravt_jax.serving.protocol import GenerateRequest, parse_generate
from paravt_jax.testing import tiny
from tests import patience
from tests.serving.embedded import engine_test

NEW = 12


@pytest.fixture(scope='module')
def wide():
  """A model with eight heads of each kind, and sizes that eight devices divide."""
  small = tiny.tiny_config(tiny.make_tokenizer(), layers=2, width=64)
  text = dataclasses.replace(small.text, heads=16, kv_heads=8, mlp=96, vocab=768)
  vision = dataclasses.replace(small.vision, width=64, heads=8, mlp=96)
  config = dataclasses.replace(small, text=text, vision=vision)
  return config, jax.tree.map(np.asarray, model.init(config, jax.random.key(1)))


def said(engine):
  """(ids, log-probs) of four requests: greedy and sampled, one with a picture."""
  config = engine.config
  done: queue.SimpleQueue = queue.SimpleQueue()
  picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
  for n in range(4):
    ids = list(range(200 + 30 * n, 200 + 30 * n + 20 + n))
    images = (picture,) if n == 3 else ()
    if images:
      ids[5] = config.image_id
    temperature = 0.0 if n % 2 else 0.8
    sent = GenerateRequest(str(n), ids, images, temperature, 1.0, -1, NEW, (), (), n, True)
    parsed = parse_generate(sent.to_json([]), config.text.vocab)
    prompt = expand(ids, tuple(map(cut, images)), config.image_id, engine_test.CHUNK)

    def answer(reply, _, n=n):
      done.put((n, (reply.output_ids, reply.logprobs)))

    engine.submit(Job(str(n), prompt, prompt, 0, parsed, n, frozenset(), answer))
  life = threading.Thread(target=engine.run, daemon=True)
  life.start()
  found = dict(done.get(timeout=patience.seconds(300)) for _ in range(4))
  engine.call(engine.stop, lambda _: None)
  life.join(60)
  return found


def engine_on(wide, devices):
  return engine_test.engine(wide, ((64, 2), (64, 2)), tensor_parallel=devices)


@pytest.fixture(scope='module')
def one(wide):
  return said(engine_on(wide, 1))


@pytest.mark.parametrize('devices', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_devices_that_share_the_model_say_the_same_ids(wide, one, devices):
  engine = engine_on(wide, devices)
  found = said(engine)
  for n, (ids, logprobs) in one.items():
    assert found[n][0] == ids
    np.testing.assert_allclose(found[n][1], logprobs, atol=2e-5)
  # each has its heads, hidden units and part of the vocabulary, and its part of keys and values
  config = engine.config
  for leaf, axis in (
    (engine.params['text']['layers'][0]['q']['kernel'], 1),
    (engine.params['text']['layers'][0]['down']['kernel'], 0),
    (engine.params['text']['embed']['embedding'], 0),
    (engine._page_store['layers'][0][0], 1),
    (engine.lanes[0].blocks[0].caches[1][1], 1),
  ):
    part = leaf.sharding.shard_shape(leaf.shape)
    assert part[axis] * devices == leaf.shape[axis]
    assert part[1 - axis] == leaf.shape[1 - axis]
  assert config.text.kv_heads % devices == 0


def test_new_weights_lie_as_the_old_ones_do(wide):
  config, params = wide
  place = programs.place_on(config, 2)
  made = programs.prepare(config, params, 'float32', place)
  again = programs.prepare(config, params | {'visual': made['visual']}, 'float32', place)
  jax.tree.map(np.testing.assert_array_equal, made, again)
  assert jax.tree.map(lambda x: x.sharding, made) == jax.tree.map(lambda x: x.sharding, again)


def test_named_devices_hold_the_model_also_if_it_is_one(wide):
  place = programs.place_on(wide[0], 1, jax.devices()[5:6])
  made = programs.prepare(*wide, 'float32', place)
  assert {one for leaf in jax.tree.leaves(made) for one in leaf.devices()} == {jax.devices()[5]}


@pytest.mark.parametrize(
  ('devices', 'message'),
  [(1000, 'this process has .* devices'), (3, 'wanted a multiple of 3')],
)
def test_devices_that_are_not_there_or_do_not_divide_the_model_are_refused(wide, devices, message):
  with pytest.raises(ConfigError, match=message):
    programs.place_on(wide[0], devices)
