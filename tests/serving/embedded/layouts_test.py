"""Pages of keys and values: every layout and kernel attends as plain attention does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from paravt_jax.models import sharding
from paravt_jax.models.attention.plain import masked
from paravt_jax.serving.embedded import layouts
from tests.serving.embedded import tpu_kernels

CHUNK, PAGES, ROWS = 32, 12, 3
HEADS, KV_HEADS, WIDTH = 8, 4, 128
LENGTHS = (1, 37, 96)  # the first token of a page, the middle of one, and full pages
TABLE = np.array([[4, 0, 0], [7, 2, 0], [1, 9, 5]], np.int32)


def filled(layout, dtype='float32'):
  """A layer whose pages hold the contexts of TABLE, and their keys and values [S, U, K, F]."""
  keys = jax.random.split(jax.random.key(3), 2)
  shape = (ROWS, 3 * CHUNK, KV_HEADS, WIDTH)
  k_SUKF, v_SUKF = (jax.random.normal(key, shape).astype(dtype) for key in keys)
  # what was in the pages before is far from zero
  layer = tuple(
    jnp.full(shape, 50.0, dtype) for shape in layout.shapes(PAGES, KV_HEADS, CHUNK, WIDTH)
  )
  for j in range(3):
    part = slice(j * CHUNK, (j + 1) * CHUNK)
    used = [s for s in range(ROWS) if LENGTHS[s] > j * CHUNK]
    rows = (x[np.array(used), part] for x in (k_SUKF, v_SUKF))
    layer = layout.write_pages(layer, *rows, jnp.asarray(TABLE[used, j]))
  return layer, k_SUKF, v_SUKF


def wanted(q_STHF, k_SUKF, v_SUKF, first):
  """Plain attention of queries that begin at place `first` of each context."""
  at = np.asarray(first)[:, None] + np.arange(q_STHF.shape[1])
  mask = np.arange(k_SUKF.shape[1]) <= at[:, :, None]
  return masked(*(x.astype(jnp.float32) for x in (q_STHF, k_SUKF, v_SUKF)), jnp.asarray(mask))


def queries(tokens, dtype='float32'):
  return jax.random.normal(jax.random.key(9), (ROWS, tokens, HEADS, WIDTH)).astype(dtype)


def close(got, want, dtype='float32'):
  np.testing.assert_allclose(
    np.asarray(got, np.float32), want, atol=2e-5 if dtype == 'float32' else 2e-2
  )


def one_token(layout, dtype='float32', mesh=None):
  """The output for the last token of each context, whose keys `write_tokens` wrote, and the right
  one.
  """
  layer, k_SUKF, v_SUKF = filled(layout, dtype)
  last = np.array(LENGTHS) - 1
  k_SKF, v_SKF = (x[np.arange(ROWS), last] for x in (k_SUKF, v_SUKF))
  # take the token away, and write it again
  page_S, at_S = (jnp.asarray(x) for x in (TABLE[np.arange(ROWS), last // CHUNK], last % CHUNK))
  layer = layout.write_tokens(layer, 0 * k_SKF, 0 * v_SKF, page_S, at_S)
  layer = layout.write_tokens(layer, k_SKF, v_SKF, page_S, at_S)
  q_S1HF = queries(1, dtype)
  attend = jax.jit(layout.attend_tokens, static_argnums=4)
  got = attend(q_S1HF, layer, jnp.asarray(TABLE), jnp.asarray(last, jnp.int32), mesh)
  return got, wanted(q_S1HF, k_SUKF, v_SUKF, last)


@pytest.mark.parametrize('form', ['slots', 'pages', 'triton'])
def test_a_chunk_sees_the_pages_of_its_context_so_far(form):
  layout = layouts.layout_of(form, interpret=True)
  layer, k_SUKF, v_SUKF = filled(layout)
  chunk_R = np.array([0, 1, 2], np.int32)
  q_RTHF = queries(CHUNK)
  got = layout.attend_chunks(q_RTHF, layer, jnp.asarray(TABLE), jnp.asarray(chunk_R), None)
  want = wanted(q_RTHF, k_SUKF, v_SUKF, chunk_R * CHUNK)
  for row, length in enumerate(LENGTHS):  # what follows a context's last token is padding
    real = min(length - chunk_R[row] * CHUNK, CHUNK)
    close(got[row, :real], want[row, :real])


@pytest.mark.parametrize(
  ('form', 'dtype'), [('pages', 'float32'), ('pages', 'bfloat16'), ('triton', 'bfloat16')]
)
def test_a_token_is_written_to_its_page_and_sees_its_context(form, dtype):
  got, want = one_token(layouts.layout_of(form, interpret=True), dtype)
  assert got.dtype == dtype
  close(got, want, dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_the_kernel_of_tpus_attends_to_chunks_and_tokens(dtype):
  layout = layouts.layout_of('ragged')
  with tpu_kernels.interpreted():
    close(*one_token(layout, dtype), dtype)
    layer, k_SUKF, v_SUKF = filled(layout, dtype)
    chunk_R = np.array([0, 1, 2], np.int32)
    q_RTHF = queries(CHUNK, dtype)
    got = layout.attend_chunks(q_RTHF, layer, jnp.asarray(TABLE), jnp.asarray(chunk_R), None)
  want = wanted(q_RTHF, k_SUKF, v_SUKF, chunk_R * CHUNK)
  for row, length in enumerate(LENGTHS):
    real = min(length - chunk_R[row] * CHUNK, CHUNK)
    close(got[row, :real], want[row, :real], dtype)


def on_two_devices():
  return sharding.make_mesh(1, 1, 2, jax.devices()[:2])


def test_devices_attend_with_their_own_heads():
  close(*one_token(layouts.layout_of('triton', True), 'bfloat16', on_two_devices()), 'bfloat16')


def test_devices_attend_with_their_own_heads_in_the_kernel_of_tpus():
  with tpu_kernels.interpreted():
    close(*one_token(layouts.layout_of('ragged'), 'bfloat16', on_two_devices()), 'bfloat16')


@pytest.mark.parametrize('form', ['pages', 'ragged'])
def test_a_copied_page_is_the_page(form):
  layout = layouts.layout_of(form)
  layer, *_ = filled(layout)
  copied = layout.copy_page(layer, jnp.int32(9), jnp.int32(3))
  for before, after in zip(layer, copied):
    pages = [np.asarray(x).swapaxes(0, 1 if form == 'pages' else 0) for x in (before, after)]
    np.testing.assert_array_equal(pages[1][3], pages[0][9])
    np.testing.assert_array_equal(np.delete(pages[1], 3, 0), np.delete(pages[0], 3, 0))


def test_auto_takes_the_kernel_of_the_platform_where_it_takes_the_model():
  choose = layouts.choose
  assert choose('cpu', 'float32', 32, 128) == choose('cpu', 'bfloat16', 32, 128) == 'slots'
  assert choose('tpu', 'bfloat16', 256, 128) == choose('tpu', 'float32', 256, 128) == 'ragged'
  assert choose('tpu', 'bfloat16', 256, 64) == 'pages'
  assert choose('gpu', 'bfloat16', 256, 128) == choose('cuda', 'bfloat16', 16, 64) == 'triton'
  # no products in TensorFloat-32, no tiles that Triton does not have
  assert choose('gpu', 'float32', 256, 128) == 'pages'
  assert choose('gpu', 'bfloat16', 40, 128) == choose('gpu', 'bfloat16', 256, 96) == 'pages'
