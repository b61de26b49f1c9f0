"""Layers with a backward pass of their own, against automatic differentiation of the plain formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import layers

EPS = 1e-3


def _plain_norm(x, scale):
  wide = x.astype(jnp.float32)
  normed = wide / jnp.sqrt((wide**2).mean(-1, keepdims=True) + EPS)
  return (normed * scale).astype(x.dtype)


def _norm(x, scale):
  return layers.rms_norm(EPS, x, scale)


def _plain_swiglu(gate, up, kernel):
  return (gate / (1 + jnp.exp(-gate)) * up) @ kernel


# name: (own form, plain form, shapes of the arguments)
FORMS = {
  'product': (layers.product, jnp.matmul, ((2, 5, 4), (4, 3))),
  'product of one row': (layers.product, jnp.matmul, ((5, 4), (4, 3))),
  'rms_norm': (_norm, _plain_norm, ((2, 5, 3, 4), (4,))),
  'swiglu_product': (layers.swiglu_product, _plain_swiglu, ((2, 5, 4), (2, 5, 4), (4, 3))),
}


def _draw(shapes, dtype=np.float32):
  rng = np.random.default_rng(0)
  return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize('name', FORMS)
def test_value_and_gradients_are_those_of_the_plain_formula(name):
  own, plain, shapes = FORMS[name]
  arguments = _draw(shapes)
  found, found_back = jax.vjp(own, *arguments)
  wanted, wanted_back = jax.vjp(plain, *arguments)
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  (direction,) = _draw([wanted.shape])
  for mine, theirs in zip(found_back(direction), wanted_back(direction), strict=True):
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', FORMS)
def test_gradients_have_the_dtype_of_their_arguments(name):
  own, _, shapes = FORMS[name]
  arguments = _draw(shapes, jnp.bfloat16)
  value, back = jax.vjp(own, *arguments)
  assert {x.dtype for x in (value, *back(value))} == {jnp.dtype(jnp.bfloat16)}


def test_a_float32_scale_of_a_bfloat16_norm_gets_a_float32_gradient():
  x, scale = _draw([(2, 4)], jnp.bfloat16)[0], jnp.ones(4, jnp.float32)
  value, back = jax.vjp(_norm, x, scale)
  assert [one.dtype for one in back(value)] == [jnp.bfloat16, jnp.float32]


def test_the_backward_pass_of_a_decoder_mlp_saves_only_what_its_products_give():
  """Automatic differentiation would save five arrays of hidden units: the sigmoid too, and silu."""

  def mlp(x, gate, up, down):
    return layers.swiglu_product(layers.product(x, gate), layers.product(x, up), down)

  arguments = _draw([(7, 4), (4, 6), (4, 6), (6, 4)])
  back = jax.vjp(mlp, *arguments)[1]
  saved = [leaf.shape for leaf in jax.tree.leaves(back)]
  assert saved.count((7, 6)) == 2  # gate and up


def test_no_operand_of_a_kernel_gradient_is_transposed():
  """XLA copies a transposed operand on a CPU: the copy costs as much as the product."""
  x, kernel, direction = _draw([(4, 256, 64), (64, 128), (4, 256, 128)])

  def both(x, kernel, direction):
    return jax.vjp(layers.product, x, kernel)[1](direction)

  text = jax.jit(both).lower(x, kernel, direction).compile().as_text()
  assert ' transpose(' not in text and ' copy(' not in text
