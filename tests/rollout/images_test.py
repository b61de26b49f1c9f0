"""Frames are encoded once, and sent once to a server that keeps images by content."""

import asyncio
import base64
import dataclasses
import io
import pathlib

import numpy as np
import pytest
from aiohttp import web
from PIL import Image

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.images import ImageCache
from paravt_jax.rollout.router import Router
from paravt_jax.serving import images as by_content
from paravt_jax.serving import protocol
from paravt_jax.testing.scripted import Refuse, Reply, ScriptedServer, turns
from tests.rollout.wire import PAD, REQUEST, opened

DONE = turns(Reply(ids=(2,)))


def frame(value: int, height: int = 32) -> np.ndarray:
  return np.full((height, 32, 3), value, np.uint8)


def asking(rid: str, *images: np.ndarray):
  return dataclasses.replace(REQUEST, rid=rid, input_ids=[1, *[PAD] * len(images)], images=images)


def send(server: ScriptedServer, *waves, **options) -> dict[str, int]:
  """Sends waves of requests, each wave at the same moment. Returns the client's counts."""

  async def run():
    async with opened(Router((server.url,)), **options) as client:
      for number, wave in enumerate(waves):
        if callable(wave):
          wave()
          continue
        each = [asking(f'{number}-{n}', *images) for n, images in enumerate(wave)]
        await asyncio.gather(*(client.generate(one) for one in each))
      return dict(client.counts)

  return asyncio.run(run())


def test_a_frame_is_sent_once_however_many_requests_show_it():
  frames = [frame(i) for i in range(5)]
  with ScriptedServer(DONE, images_kept=99) as server:
    counts = send(server, [frames] * 8, [frames[:3]], [frames[2:]], [[frame(1)]])
  names = [by_content.content_name(one) for one in frames]
  assert server.uploads == [tuple(names)]
  assert [request.images for request in server.requests[:2]] == [((32, 32),) * 5] * 2
  assert [request.body['image_data'] for request in server.requests[-3:]] == [
    names[:3],
    names[2:],
    names[1:2],
  ]
  assert (counts['images'], counts['images_sent']) == (47, 5)
  assert 5 * 3072 < counts['image_bytes'] < 5 * 3072 + 256


def test_frames_of_several_sizes_go_out_by_size():
  with ScriptedServer(DONE, images_kept=99) as server:
    send(server, [[frame(1), frame(2, 64), frame(3), frame(4, 64)]])
  assert [len(names) for names in server.uploads] == [2, 2]
  assert server.requests[0].images == ((32, 32), (64, 32), (32, 32), (64, 32))


def test_a_server_without_the_path_gets_every_frame_in_every_request():
  with ScriptedServer(DONE) as server:
    counts = send(server, [[frame(7)]] * 3)
  texts = [request.body['image_data'] for request in server.requests]
  assert texts == [[protocol.encode_image(frame(7))]] * 3
  assert (counts['images'], counts['images_sent']) == (3, 3)
  assert counts['image_bytes'] == 3 * (len(texts[0][0]) + 2)  # with its quotes


def test_a_server_that_lost_its_images_gets_them_again():
  with ScriptedServer(DONE, images_kept=99) as server:
    counts = send(server, [[frame(1), frame(2)]], server.forget_images, [[frame(2), frame(3)]])
  assert server.uploads == [
    tuple(by_content.content_name(frame(i)) for i in part) for part in ((1, 2), (2, 3))
  ]
  assert (len(server.requests), counts['images_sent']) == (2, 4)


def test_what_a_server_cannot_keep_goes_inside_the_request():
  frames = [frame(i) for i in range(3)]
  with ScriptedServer(DONE, images_kept=2) as server:
    counts = send(server, [frames])
  picture = base64.b64decode(server.requests[0].body['image_data'][2])
  np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picture))), frames[2])
  assert len(server.uploads) == 3 and counts['images'] == 3


class OtherPixels(ScriptedServer):
  """Computes other names, as if the pixels had changed on the way."""

  async def _receive_images(self, http):
    count = len(by_content.unpack(await http.read(), 4))
    return web.json_response({'images': ['blake2b:' + 'b' * 64] * count})


def test_a_server_that_finds_other_pixels_is_not_believed():
  with OtherPixels(DONE, images_kept=9) as server:
    send(server, [[frame(5)]])
  assert server.requests[0].body['image_data'] == [protocol.encode_image(frame(5))]


def test_a_wrong_key_is_told_as_for_any_request():
  with (
    ScriptedServer(DONE, images_kept=9, api_key='right') as server,
    pytest.raises(RolloutError, match='refuses our key'),
  ):
    send(server, [[frame(5)]], api_key='wrong')


def test_servers_that_read_files_get_paths_of_frames_that_are_written_once(tmp_path):
  seen = []

  def script(request):
    seen.append([pathlib.Path(url.removeprefix('file://')).stat().st_size for url in request.paths])
    return Reply(ids=(2,))

  with ScriptedServer(script, reads_files=True) as server:
    counts = send(server, [[frame(1), frame(2)]] * 3, [[frame(2)]], image_folder=str(tmp_path))
  assert [len(sizes) for sizes in seen] == [2, 2, 2, 1] and min(map(min, seen)) > 0
  assert (counts['images'], counts['images_sent']) == (7, 2)
  assert counts['image_bytes'] == sum(seen[0])
  assert list(tmp_path.iterdir()) == []


def test_a_server_that_fails_over_files_gets_frames_inside_requests(tmp_path):
  def script(request):
    return Refuse(500, 'Internal Server Error') if request.paths else Reply(ids=(2,))

  with ScriptedServer(script, reads_files=True) as server:
    counts = send(server, [[frame(1)]], [[frame(2)]], image_folder=str(tmp_path))
  assert [bool(request.paths) for request in server.requests] == [True, False, False]
  assert counts['images'] == 2 and 'retried' not in counts


def test_a_folder_that_is_full_costs_no_request(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full)
  with ScriptedServer(DONE, reads_files=True) as server:
    send(server, [[frame(1)]], image_folder=str(tmp_path))
  assert server.requests[0].body['image_data'] == [protocol.encode_image(frame(1))]


def test_a_frame_is_encoded_once_even_when_eight_ask_at_the_same_moment(monkeypatch):
  encoded = []
  monkeypatch.setattr(protocol, 'encode_image', lambda image: encoded.append(image) or 'x')

  async def run():
    cache = ImageCache(capacity=8)
    await asyncio.gather(*(cache.encode((frame(3), frame(3))) for _ in range(8)))
    await cache.encode((frame(3).copy(),))  # another array of the same pixels

  asyncio.run(run())
  assert len(encoded) == 1


def test_a_request_with_more_frames_than_the_cache_holds_is_still_whole():
  async def run():
    return await ImageCache(capacity=2).encode([frame(i) for i in range(5)])

  assert len(asyncio.run(run())) == 5
