"""Requests that name their images: the same bits as with pixels inside, and what a server answers
that does not have them.
"""

import asyncio
import os
import re

import numpy as np
import pytest

from paravt_jax.rollout.client import Client
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.serving import images
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.protocol import GenerateReply
from tests import patience, xla
from tests.serving.contract.drive import KEY, embedded_options, frame, request

MB = 1 << 20  # what the server of these tests keeps


@pytest.fixture
def served(embedded_server):
  return embedded_server


def kept(served) -> dict:
  return served.call('/get_server_info')[1]['images']


def named(sent):
  return sent.to_json([images.content_name(image) for image in sent.images])


def test_named_images_give_the_bits_of_images_inside_the_request(served):
  sent = request(served.with_image(9, 4, 1), (frame(501),))
  body = named(sent)
  status, reply = served.call('/generate', body)
  assert status == images.MISSING_STATUS
  assert reply['error']['images'] == body['image_data']
  assert re.search('1 of the named images are not here', reply['error']['message'])
  status, reply = served.call(images.PATH, images.pack(frame(501)[None]))
  assert (status, reply) == (200, {'images': body['image_data']})
  status, reply = served.call('/generate', body)
  assert status == 200
  by_name = GenerateReply.from_json(reply)
  served.call('/flush_cache', {})
  inside = served.generate(request(sent.input_ids, sent.images))
  assert (by_name.output_ids, by_name.logprobs) == (inside.output_ids, inside.logprobs)
  assert by_name.image_tokens == 1


def test_an_image_that_came_inside_a_request_may_be_named_later(served):
  sent = request(served.with_image(9, 4, 2), (frame(502, 64, 64),))
  first = served.generate(sent)
  status, reply = served.call('/generate', named(request(sent.input_ids, sent.images)))
  assert status == 200 and GenerateReply.from_json(reply).logprobs == first.logprobs


@pytest.mark.parametrize(
  'body, status, says',
  [
    (b'not an array', 400, 'is no .npy file'),
    (b'', 400, 'is no .npy file'),
    (images.pack(np.zeros((1, 96, 96, 3), np.uint8)), 400, 'max_image_patches'),
    (images.pack(np.zeros((1, 40, 32, 3), np.uint8)), 400, '40x32'),
    (images.pack(np.zeros((1, 32, 32, 3), np.float32)), 400, 'wanted uint8'),
    (images.pack(np.zeros((2, 32, 32, 3), np.uint8))[:-1], 400, 'cut off'),
    (bytes(17 * MB), 413, 'exceeded'),
  ],
)
def test_wrong_and_large_bodies_are_one_clear_line(served, body, status, says):
  got, reply = served.call(images.PATH, body)
  assert got == status and says in reply['error']['message']
  assert '\n' not in reply['error']['message']


def test_images_need_the_key_as_requests_do(served):
  status, reply = served.call(images.PATH, images.pack(frame(1)[None]), key='another')
  assert status == 401 and 'api key' in reply['error']['message']


def test_a_name_is_never_believed_only_pixels_are(served):
  """There is no way to say which name an image has: the server computes it."""
  pixels = frame(503)
  reply = served.call(images.PATH, images.pack(pixels[None]))[1]
  assert reply == {'images': [images.content_name(pixels)]}
  changed = pixels.copy()
  changed[0, 0, 0] ^= 1
  body = named(request(served.with_image(3, 3, 3), (changed,)))
  assert served.call('/generate', body)[0] == images.MISSING_STATUS


def client_of(served, url):
  options = ClientOptions(
    api_key=KEY,
    connections=16,
    timeout_s=patience.seconds(60.0),
    ready_timeout_s=patience.seconds(30.0),
    retries=20,
    backoff_s=0.05,
    image_cache=16,
    image_folder='',
  )
  router = Router((url,))
  return Client(options, served.config.text.vocab, router, image_id=served.config.image_id)


def test_frames_that_were_evicted_are_sent_again_and_no_request_notices(served):
  """Two rounds over 1.5 MB of frames, where the server keeps 1 MB."""
  frames = [frame(1000 + i, 64, 64) for i in range(128)]

  async def run():
    async with client_of(served, served.process.url) as client:
      found = []
      for _ in range(2):
        sent = [request(served.with_image(3, 3, 9), (one,), max_new_tokens=1) for one in frames]
        found.append([await client.generate(one) for one in sent])
      return found, dict(client.counts)

  before = kept(served)
  (first, second), counts = asyncio.run(run())
  assert [one.logprobs.tolist() for one in first] == [one.logprobs.tolist() for one in second]
  assert counts['images'] == 256 and counts['images_sent'] == 256
  after = kept(served)
  assert after['bytes'] <= MB and after['evicted'] - before['evicted'] >= 128
  assert after['decoded'] == before['decoded']  # nothing went as PNG


@pytest.mark.slow  # two starts of a server
def test_a_restarted_server_has_no_images_and_the_client_goes_on(served, tmp_path):
  def start(port: int):
    return launch.launch(
      embedded_options(served.folder, port=port),
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK},
      log=tmp_path / 'log',
      deadline_s=patience.seconds(300),
      parent_pid=os.getpid(),
    )

  async def run(process):
    async with client_of(served, process.url) as client:
      sent = request(served.with_image(9, 4, 7), (frame(7),))
      first = await client.generate(sent)
      process.stop(20.0)
      process = await asyncio.to_thread(start, int(process.url.rsplit(':', 1)[1]))
      try:
        second = await client.generate(request(sent.input_ids, sent.images))
      finally:
        process.stop(20.0)
      return first, second, dict(client.counts)

  first, second, counts = asyncio.run(run(start(0)))
  assert first.logprobs.tolist() == second.logprobs.tolist()
  assert (counts['images'], counts['images_sent']) == (2, 2)
