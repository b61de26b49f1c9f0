"""An adapter is one more part of the parameters, and folding it in changes nothing that is computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import lora
from paravt_jax.models.layers import GatedLinear, Linear
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import PUBLISHED
from tests.train import common

FORM = lora.Adapter(rank=3, alpha=6.0, products=lora.PRODUCTS)
CONFIG = dataclasses.replace(common.CONFIG, adapter=FORM)
MB_8B = 200  # of a published adapter of rank 32


def random_adapter(seed=0, config=CONFIG):
  """An adapter with both matrices drawn at random, so that it changes what the model says."""
  rng = np.random.default_rng(seed)
  shapes = model.abstract_params(config)[lora.PART]
  return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def test_a_linear_adds_x_a_b_to_its_product_and_a_gated_one_to_that_of_its_hidden_units():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, up, kernel, a, b = draw(5, 4), draw(5, 4), draw(4, 6), draw(4, 2), draw(2, 6)
  pair = {'params': {'kernel': kernel, lora.A: a, lora.B: b}}
  plain = Linear(6, ('embed', 'mlp'), jnp.dtype('float32'), False)
  np.testing.assert_allclose(plain.apply(pair, x), x @ kernel + x @ a @ b, rtol=1e-5, atol=1e-5)
  gated = GatedLinear(6, ('embed', 'mlp'), jnp.dtype('float32'), False)
  hidden = jax.nn.silu(x) * up
  np.testing.assert_allclose(
    gated.apply(pair, x, up), hidden @ kernel + hidden @ a @ b, rtol=1e-5, atol=1e-5
  )


def test_a_new_adapter_has_a_random_a_a_b_of_zeros_and_leaves_the_base_its_own_draws():
  params, base = (model.init(config, jax.random.key(1)) for config in (CONFIG, CONFIG.base))
  adapter = params.pop(lora.PART)
  jax.tree.map(np.testing.assert_array_equal, params, base)
  assert set(adapter['layers']) == set(lora.PRODUCTS)
  for product, pair in adapter['layers'].items():
    width = base['text']['layers'][product]['kernel'].shape[1]
    assert np.std(pair[lora.A]) == pytest.approx(width**-0.5, rel=0.3)
    assert not np.any(pair[lora.B])
  # different layers and products have different numbers
  q = np.asarray(adapter['layers']['q'][lora.A])
  assert not np.array_equal(q[0], q[1])
  assert not np.array_equal(q, adapter['layers']['k'][lora.A])


def test_the_stated_shapes_and_axes_are_those_of_a_new_adapter():
  shapes = lora.shapes(FORM, model.abstract_params(CONFIG.base)['text']['layers'])
  made = model.abstract_params(CONFIG)[lora.PART]
  assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == jax.tree.map(
    lambda x: (x.shape, x.dtype), made
  )
  axes = model.logical_axes(CONFIG)[lora.PART]['layers']
  assert axes['o'] == {lora.A: ('layers', 'heads', 'rank'), lora.B: ('layers', 'rank', 'embed')}
  assert axes['up'] == {lora.A: ('layers', 'embed', 'rank'), lora.B: ('layers', 'rank', 'mlp')}


def test_a_new_adapter_gives_the_bits_of_the_base():
  """Operation by operation: two programs that XLA compiled may round differently."""
  params = model.init(CONFIG, jax.random.key(2))
  base = {name: part for name, part in params.items() if name != lora.PART}
  inputs = model.single_inputs(CONFIG, np.arange(10, 22, dtype=np.int32), ())
  options = {'dtype': jnp.dtype('bfloat16'), 'remat': 'none', 'freeze_vision': True}
  with jax.disable_jit():
    one, other, alone = (
      model.hidden(config, values, inputs, **options)
      for config, values in ((CONFIG, params), (CONFIG.base, base), (CONFIG, base))
    )
  np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
  np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(alone, np.float32))


@pytest.mark.parametrize('products', [lora.PRODUCTS, ('q', 'v'), ('down',)])
def test_folded_weights_compute_what_the_adapter_does(products):
  config = dataclasses.replace(CONFIG, adapter=dataclasses.replace(FORM, products=products))
  params = {**common.params(), lora.PART: random_adapter(config=config)}
  folded = lora.fold(config.adapter, params)
  ids = np.arange(10, 30, dtype=np.int32)
  want = np.asarray(model.logits(config, params, ids, ()))
  np.testing.assert_allclose(model.logits(config.base, folded, ids, ()), want, atol=2e-5)
  base = np.asarray(model.logits(config.base, common.params(), ids, ()))
  assert np.abs(want - base).max() > 1e-2
  # one product on the host gives the same kernel
  product = products[0]
  kernel = np.asarray(params['text']['layers'][product]['kernel'])
  host = lora.fold_kernel(config.adapter, kernel, params[lora.PART]['layers'][product])
  np.testing.assert_allclose(host, folded['text']['layers'][product]['kernel'], atol=1e-6)


def test_an_adapter_of_rank_32_at_8b_is_less_than_200_mb_in_bfloat16():
  config = dataclasses.replace(PUBLISHED['8b'](), adapter=lora.Adapter(32, 32.0, lora.PRODUCTS))
  leaves = jax.tree.leaves(model.abstract_params(config)[lora.PART])
  assert sum(leaf.size for leaf in leaves) * 2 <= MB_8B * 1e6


@pytest.mark.parametrize('changes', [{'rank': 0}, {'products': ()}, {'products': ('q', 'qkv')}])
def test_a_form_that_is_none_is_refused(changes):
  with pytest.raises(ValueError, match='wanted a rank of at least 1 and some of'):
    dataclasses.replace(FORM, **changes)
