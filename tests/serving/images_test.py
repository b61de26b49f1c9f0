"""Names by content, and the .npy files in which pixels travel."""

import contextlib
import hashlib

import numpy as np
import pytest

from paravt_jax.serving import images
from paravt_jax.serving.fields import RequestError


def test_a_name_is_a_hash_over_sides_and_pixels():
  """The stated definition, so that other clients can compute it."""
  pixels = np.arange(32 * 64 * 3, dtype=np.uint8).reshape(32, 64, 3)
  expected = hashlib.blake2b(b'32x64\n' + pixels.tobytes(), digest_size=32).hexdigest()
  assert images.content_name(pixels) == 'blake2b:' + expected
  assert images.content_name(pixels.reshape(64, 32, 3)) != images.content_name(pixels)
  assert images.content_name(np.stack([pixels] * 2)[:, ::2][1]) == images.content_name(
    pixels[::2].copy()
  )


@pytest.mark.parametrize('text', ['blake2b:' + 'a' * 63, 'BLAKE2B:' + 'a' * 64, 'a' * 72, ''])
def test_other_texts_are_no_names(text):
  assert not images.is_name(text) and images.is_name('blake2b:' + 'a' * 64)


def test_pixels_come_back_as_they_were_sent():
  sent = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
  np.testing.assert_array_equal(images.unpack(images.pack(sent), 8), sent)
  assert images.unpack(images.pack(sent[:0]), 8).shape == (0, 32, 64, 3)


def header(text: str) -> bytes:
  raw = text.encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + len(raw).to_bytes(2, 'little') + raw


def described(shape: str, dtype: str = '|u1', order: str = 'False') -> bytes:
  return header(f"{{'descr': '{dtype}', 'fortran_order': {order}, 'shape': {shape}}}")


@pytest.mark.parametrize(
  'raw, says',
  [
    (b'', 'is no .npy file'),
    (b'\x93NUMPY\x03\x00', 'is no .npy file'),
    (b'PK\x03\x04' * 9, 'is no .npy file'),
    (header('(' * 3000), 'is no .npy file'),
    (header("{'descr': "), 'is no .npy file'),
    (header('\t {'), 'is no .npy file'),
    (header('L' * 5000), 'is no .npy file'),
    (header('__import__("os")'), 'is no .npy file'),
    (described('(1, 32, 32, 3)', 'O'), "got .*'O'"),
    (described('(1, 32, 32, 3)', 'nonsense'), 'nonsense'),
    (described('(1, 32, 32, 3)', '<f4'), "got .*'<f4'"),
    (described('(1, 32, 32, 3)', order='True'), 'True'),
    (described('(32, 32, 3)'), 'wanted uint8.N, H, W, 3'),
    (described('[1, 32, 32, 3]'), 'wanted uint8.N, H, W, 3'),
    (described('(True, 32, 32, 3)'), 'wanted uint8.N, H, W, 3'),
    (header("{'descr', 'fortran_order', 'shape'}"), 'is no .npy file'),
    (described('(1, 32, 33, 3)'), '32x33, wanted sides'),
    (described('(1, 0, 32, 3)'), '0x32, wanted sides'),
    (described('(-1, 32, 32, 3)'), 'bytes of pixels'),
    (described('(1, -32, -32, 3)'), 'wanted sides'),
    (described('(1, 128, 128, 3)'), '64 patches'),
    (described('(1, 32, 32, 3)'), 'got 0 bytes of pixels'),
    (described(f'({10**30}, 32, 32, 3)'), 'got 0 bytes of pixels'),
    (described('(0, 32, 32, 3)') + b'x', 'got 1 bytes of pixels'),
  ],
)
def test_hostile_files_are_one_clear_line_and_take_no_memory(raw, says):
  with pytest.raises(RequestError, match=says) as caught:
    images.unpack(raw, 16)
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 300


def test_random_headers_never_raise_anything_else():
  draw = np.random.default_rng(1)
  whole = images.pack(np.zeros((1, 32, 32, 3), np.uint8))
  for _ in range(2000):
    raw = bytearray(whole)
    for place in draw.integers(0, 128, draw.integers(1, 6)):
      raw[place] = draw.integers(0, 256)
    with contextlib.suppress(RequestError):
      assert images.unpack(bytes(raw), 4).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
  'status, reply',
  [
    (200, b'{"error": {"type": "missing_images", "images": ["a"]}}'),
    (409, b'{"error": {"type": "other", "images": ["a"]}}'),
    (409, b'{"error": {"type": "missing_images", "images": [1]}}'),
    (409, b'{"error": "no"}'),
    (409, b'<html>'),
  ],
)
def test_other_replies_name_no_missing_images(status, reply):
  assert images.missing_names(status, reply) == []
