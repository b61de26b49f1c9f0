"""Calls merged by their log-sums are one softmax, whatever a kernel returns for no keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models.attention import merged
from tests.models.attention import kernels


@dataclasses.dataclass(frozen=True)
class PlainKernel:
  """Whole softmax over one range; nan where it is empty."""

  most_keys: int = 1000

  def _scores(self, q, k, range_BT2):
    k = jnp.repeat(k, q.shape[2] // k.shape[2], axis=2)
    index = jnp.arange(k.shape[1])
    seen = (range_BT2[..., :1] <= index) & (index < range_BT2[..., 1:])
    return jnp.where(seen[:, None], jnp.einsum('BTHF,BUHF->BHTU', q, k), -jnp.inf)

  def forward(self, q, k, v, range_BT2):
    scores = self._scores(q, k, range_BT2)
    v = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)
    out = jnp.einsum('BHTU,BUHF->BTHF', jax.nn.softmax(scores), v)
    some = (range_BT2[..., 0] < range_BT2[..., 1])[..., None]
    log_sum = jnp.swapaxes(jax.nn.logsumexp(scores, axis=-1), 1, 2)
    return jnp.where(some[..., None], out, jnp.nan), jnp.where(some, log_sum, jnp.nan)

  def backward(self, q, k, v, range_BT2, out, log_sum, d_out):
    def partial(q, k, v):
      # this range's part of the numerator and of the sum, relative to the whole sum
      weights = jnp.exp(self._scores(q, k, range_BT2) - jnp.swapaxes(log_sum, 1, 2)[..., None])
      v = jnp.repeat(v, q.shape[2] // v.shape[2], axis=2)
      total = jnp.swapaxes(jnp.sum(weights, axis=-1), 1, 2)[..., None]
      return jnp.einsum('BHTU,BUHF->BTHF', weights, v), total

    d_total = -jnp.sum(out * d_out, axis=-1, keepdims=True)
    return jax.vjp(partial, q, k, v)[1]((d_out, d_total))


@pytest.mark.parametrize('most_keys', [1000, 33])
def test_its_calls_have_the_values_and_gradients_of_one_softmax(most_keys):
  kernels.compare(lambda *x: merged.attend_merged(PlainKernel(most_keys), *x))


def test_a_row_without_keys_gives_zeros():
  q, k, v = np.ones((3, 1, 5, 2, 4), np.float32)
  call = lambda *x: jnp.sum(
    merged.attend_merged(PlainKernel(), *x, jnp.zeros((1, 5, 4), jnp.int32))
  )
  value, gradients = jax.value_and_grad(call, (0, 1, 2))(q, k, v)
  assert value == 0 and not any(np.abs(x).max() for x in gradients)
