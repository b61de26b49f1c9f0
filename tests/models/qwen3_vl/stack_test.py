"""A stack that adds its gradients to sums: the oracle is a plain scan, differentiated by JAX."""

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.qwen3_vl import stack

DEPTH, WIDTH, TOKENS = 6, 64, 8


def layer(i, x, params):
  """Differs by layer, so that a wrong order shows."""
  return jnp.tanh(x @ params['w'] + params['b']) + i * 0.1 * x


def arrays(seed):
  rng = np.random.default_rng(seed)
  w = rng.normal(size=(DEPTH, WIDTH, WIDTH)).astype(np.float32) / 8
  return {'w': jnp.asarray(w), 'b': jnp.asarray(rng.normal(size=(DEPTH, WIDTH)), jnp.float32)}


def plain(x, params):
  return jax.lax.scan(
    lambda x, one: (layer(*one[:1], x, one[1]), None), x, (jnp.arange(DEPTH), params)
  )[0]


def test_values_and_gradients_are_those_of_a_scan_and_the_sums_are_added():
  x, params, sums = jnp.ones((TOKENS, WIDTH)) * 0.3, arrays(0), arrays(1)

  def loss(run):
    return lambda x, params, *more: (run(x, params, *more) ** 2).sum()

  wanted, (wanted_x, wanted_params) = jax.value_and_grad(loss(plain), (0, 1))(x, params)
  run = lambda *inputs: stack.run_stack(layer, *inputs)
  value, (d_x, added, d_sums) = jax.value_and_grad(loss(run), (0, 1, 2))(x, params, sums)
  np.testing.assert_allclose(value, wanted, rtol=1e-6)
  np.testing.assert_allclose(d_x, wanted_x, rtol=1e-5, atol=1e-6)
  for name in params:
    np.testing.assert_allclose(added[name] - sums[name], wanted_params[name], rtol=2e-4, atol=2e-5)
    assert not np.any(d_sums[name])


def temporary_bytes(run, params):
  """Temporary memory of three micro-batches whose gradients are summed."""

  def total(params):
    def body(index, sums):
      return run(params, sums, jnp.ones((TOKENS, WIDTH)) * index)

    return jax.lax.fori_loop(0, 3, body, jax.tree.map(jnp.zeros_like, params))

  return jax.jit(total).lower(params).compile().memory_analysis().temp_size_in_bytes


def test_no_second_array_as_large_as_the_sums_is_made():
  params = arrays(0)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))

  def in_place(params, sums, x):
    return jax.grad(lambda p: (stack.run_stack(layer, x, p, sums) ** 2).sum())(params)

  def apart(params, sums, x):
    return jax.tree.map(jnp.add, sums, jax.grad(lambda p: (plain(x, p) ** 2).sum())(params))

  assert temporary_bytes(apart, params) - temporary_bytes(in_place, params) > 0.7 * size


def test_what_the_layer_closes_over_may_differ_between_micro_batches():
  params, data = arrays(0), jnp.arange(3.0)

  def gradient(run):
    def total(params):
      def body(index, sums):
        scaled = lambda i, x, p: layer(i, x, p) * (1 + data[index])
        return run(scaled, params, sums)

      return jax.lax.fori_loop(0, 3, body, jax.tree.map(jnp.zeros_like, params))

    return jax.jit(total)(params)

  x = jnp.ones((TOKENS, WIDTH)) * 0.3

  def in_place(scaled, params, sums):
    return jax.grad(lambda p: stack.run_stack(scaled, x, p, sums).mean())(params)

  def apart(scaled, params, sums):
    def loss(params):
      run = lambda x, one: (scaled(one[0], x, one[1]), None)
      return jax.lax.scan(run, x, (jnp.arange(DEPTH), params))[0].mean()

    return jax.tree.map(jnp.add, sums, jax.grad(loss)(params))

  one, other = gradient(in_place), gradient(apart)
  for name in params:
    np.testing.assert_allclose(one[name], other[name], rtol=1e-4, atol=1e-6)
