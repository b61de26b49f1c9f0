"""An engine that decodes from pages says what one says that decodes from slots' columns."""

import jax
import numpy as np
import pytest

from paravt_jax.serving.embedded import layouts
from tests.serving.embedded import engine_test, mesh_test

model = engine_test.model  # the fixture
wide = mesh_test.wide
LANES = ((64, 2), (64, 2), (64, 2))
NUMBERS = range(engine_test.JOBS)


@pytest.fixture(scope='module')
def columns(model):
  """What the engine says that decodes from columns."""
  return engine_test.answers(engine_test.engine(model, LANES, attention='slots'), NUMBERS)


def same(found, wanted):
  assert found.keys() == wanted.keys()
  for number, (ids, logprobs) in wanted.items():
    assert found[number][0] == ids
    np.testing.assert_allclose(found[number][1], logprobs, atol=2e-5)


def test_jobs_that_run_together_say_what_slots_say_and_give_every_page_back(model, columns):
  engine = engine_test.engine(model, LANES, attention='pages')
  same(engine_test.answers(engine, NUMBERS), columns)
  assert engine.pages.available == engine.options.pages
  assert engine.lanes[0].blocks[0].caches == ()  # a slot has no columns


def test_jobs_wait_for_pages_and_then_say_the_same(model, columns):
  # one full context and one page more: two jobs do not fit
  engine = engine_test.engine(model, LANES, attention='pages', pages=5)
  same(engine_test.answers(engine, NUMBERS), columns)
  assert engine.pages.available == 5


def test_contexts_with_a_common_beginning_share_its_pages_while_they_decode(model):
  # Eight contexts of 64 tokens would take 32 pages. Here they have two pages of the beginning, the
  # third that each copies, and two of their own.
  engine = engine_test.engine(model, ((64, 8),), attention='pages', pages=2 + 1 + 2 * 8)
  found = engine_test.answers(engine, range(8), [list(range(200, 240))] * 8)
  # all at once: the tokens of one prompt, and one call for each four of the ten new tokens
  assert engine.counts['prefilled_tokens'] == 40
  assert engine.counts['decode_calls'] == 3
  assert len({tuple(ids) for ids, _ in found.values()}) > 1  # each has its own seed


@pytest.mark.parametrize('form', ['slots', 'pages'])
def test_a_version_that_is_not_finite_leaves_nothing_behind(model, form):
  # few pages: those of the bad version are used again
  engine = engine_test.engine(model, ((64, 2),), attention=form, pages=5)
  good = engine.params
  wanted = engine_test.answers(engine, range(2))
  for params in (jax.tree.map(lambda x: x * np.nan, good), good):
    engine._stopping = False
    engine.call(lambda p=params: engine.update(p, 1, lambda: None), lambda _: None)
    found = engine_test.answers(engine, range(2))
  assert found == wanted


@pytest.mark.slow
def test_the_kernel_of_gpus_says_the_same(wide):
  lanes = ((64, 4),)
  wanted = mesh_test.said(engine_test.engine(wide, lanes, attention='slots'))
  layout = layouts.layout_of('triton', interpret=True)
  same(mesh_test.said(engine_test.engine(wide, lanes, layout)), wanted)


def test_devices_that_share_the_model_have_their_heads_of_every_page(wide):
  lanes = ((64, 2), (64, 2))
  wanted = mesh_test.said(engine_test.engine(wide, lanes, attention='slots'))
  engine = engine_test.engine(wide, lanes, attention='pages', tensor_parallel=2)
  same(mesh_test.said(engine), wanted)
  for pages in jax.tree.leaves(engine._page_store['layers']):
    assert pages.sharding.shard_shape(pages.shape)[0] * 2 == pages.shape[0]
