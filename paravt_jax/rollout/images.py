"""Frames on their way to rollout servers: each is encoded once, and sent once to a server that
keeps images by content.

Rollouts, turns and sub-agents repeat the same frames in request after request. A request to such a
server names its frames (`serving.images`). The server answers which of them it lacks, and only
these are sent. Other servers, SGLang for one, get every frame as base64 PNG in each request.
"""

import asyncio
import collections
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from paravt_jax.rollout.http import BYTES, Http
from paravt_jax.rollout.image_folder import ImageFolder
from paravt_jax.serving import images as by_content
from paravt_jax.serving import protocol

log = logging.getLogger(__name__)

Send = Callable[[Sequence[object]], Awaitable[tuple[int, bytes]]]
_ROUNDS = 3  # of asking a server that evicts the images of a request
_UPLOAD_BYTES = 8 << 20  # of pixels in one upload; a server's max_body_mb is its limit


class ImageCache:
  """Knows frames by content, and keeps the newest `capacity` of them as base64 PNG.

  A frame that was seen before is found by the memory of its array, without hashing it again. An
  entry keeps its array alive, so no other frame can reuse its address. Frames are never modified.
  """

  def __init__(self, capacity: int):
    self._capacity = capacity
    # memory -> (array, the batch that is hashed, the place in it)
    self._named: collections.OrderedDict[tuple, tuple[np.ndarray, asyncio.Task, int]] = (
      collections.OrderedDict()
    )
    # name -> (the batch that is encoded, the place in it)
    self._encoded: collections.OrderedDict[str, tuple[asyncio.Task, int]] = (
      collections.OrderedDict()
    )

  async def names(self, images: Sequence[np.ndarray]) -> list[str]:
    """Returns one name per image, by content."""
    keys = [_memory(image) for image in images]
    missing = {key: image for key, image in zip(keys, images) if key not in self._named}
    if missing:
      task = asyncio.create_task(asyncio.to_thread(_names, list(missing.values())))
      for place, (key, image) in enumerate(missing.items()):
        self._named[key] = (image, task, place)
    entries = [self._named[key] for key in keys]
    _forget_oldest(self._named, keys, self._capacity)
    return await _results((task, place) for _, task, place in entries)

  async def encode(self, images: Sequence[np.ndarray]) -> list[bytes]:
    """Returns one JSON string per image. Encoding runs in a thread, and once even if eight rollouts
    ask at the same moment.
    """
    names = await self.names(images)
    missing = {name: image for name, image in zip(names, images) if name not in self._encoded}
    if missing:
      task = asyncio.create_task(asyncio.to_thread(_json_strings, list(missing.values())))
      self._encoded |= {name: (task, place) for place, name in enumerate(missing)}
    entries = [self._encoded[name] for name in names]
    _forget_oldest(self._encoded, names, self._capacity)
    return await _results(entries)


def _memory(image: np.ndarray) -> tuple:
  return image.__array_interface__['data'][0], image.shape, image.strides


def _names(images: Sequence[np.ndarray]) -> list[str]:
  return [by_content.content_name(image) for image in images]


def _json_strings(images: Sequence[np.ndarray]) -> list[bytes]:
  return [b'"%s"' % protocol.encode_image(image).encode() for image in images]


def _forget_oldest(
  entries: collections.OrderedDict[Any, Any], used: Iterable[Any], capacity: int
) -> None:
  for key in used:
    entries.move_to_end(key)
  while len(entries) > capacity:
    entries.popitem(last=False)


async def _results(entries: Iterable[tuple[asyncio.Task, int]]) -> list[Any]:
  """Returns a place of the result of each task. Others may wait for the same tasks."""
  entries = list(entries)
  for task in {task for task, _ in entries if not task.done()}:
    await asyncio.shield(task)
  return [task.result()[place] for task, place in entries]


class _Server:
  """What is known of one life of a server."""

  def __init__(self, life: object):
    self.life = life
    self.takes_names: asyncio.Task[bool | None] | None = None  # None: not asked yet
    self.reads_files = True  # until it fails over one
    self.uploads: dict[str, asyncio.Task[bool]] = {}  # name -> its upload, while it runs


class Images:
  """Brings the frames of requests to servers.

  `http.counts` gets 'images_sent' (whose pixels were sent) and 'image_bytes' (what was sent of
  them).
  """

  def __init__(self, http: Http, capacity: int, folder: str = ''):
    self._http = http
    self._cache = ImageCache(capacity)
    self._folder = ImageFolder(folder, capacity) if folder else None
    self._servers: dict[str, _Server] = {}
    self._tasks: set[asyncio.Task] = set()

  async def close(self) -> None:
    """Waits for uploads that no request waits for any more."""
    await asyncio.gather(*self._tasks, return_exceptions=True)
    if self._folder is not None:
      self._folder.close()

  async def request(
    self, url: str, life: object, images: Sequence[np.ndarray], send: Send
  ) -> tuple[int, bytes]:
    """Sends a request with its images in the cheapest form that the server takes.

    Names come first, with what the server lacks of them, then files, then PNGs inside the request.
    Each form that fails is followed by the next one.

    Args:
      life: tells one server at an address from the next.
      send: sends the request with this image_data. Returns (status, reply body).

    Raises:
      Lost, Silent, RolloutError: as `Http.once`.
    """
    if not images:
      return await send([])
    names = await self.names(url, life, images)
    came = (
      await self._by_file(url, life, images, send)
      if names is None
      else await self._by_name(url, life, dict(zip(names, images)), names, send)
    )
    return await send(await self.inline(images)) if came is None else came

  async def _by_name(
    self,
    url: str,
    life: object,
    own: Mapping[str, np.ndarray],
    names: Sequence[str],
    send: Send,
  ) -> tuple[int, bytes] | None:
    """Returns None if the server lacks images after a few rounds, or does not take them."""
    for _ in range(_ROUNDS):
      status, reply = await send(names)
      missing = by_content.missing_names(status, reply)
      if not missing:
        return status, reply
      wanted = {name: own[name] for name in missing if name in own}
      if not wanted or not await self.send(url, life, wanted):
        return None
    return None

  async def _by_file(
    self, url: str, life: object, images: Sequence[np.ndarray], send: Send
  ) -> tuple[int, bytes] | None:
    """Sends a request that names files.

    Returns (status, reply body). None if there is no folder, it cannot be written, or the server
    failed over a file. It gets no more of them then.
    """
    server = self._server(url, life)
    if self._folder is None or not server.reads_files:
      return None
    names, encoded = await self._cache.names(images), await self._cache.encode(images)
    try:
      async with self._folder.urls(names, encoded) as (urls, sizes):
        self._http.counts.update(images_sent=len(sizes), image_bytes=sum(sizes))
        status, reply = await send(urls)
    except OSError as error:
      log.warning('client.image_folder: %s; frames go inside requests', error)
      server.reads_files = False
      return None
    if status >= 400 and status not in (401, 403):
      log.warning('%s answers %d over files of client.image_folder: it gets no more', url, status)
      server.reads_files = False
      return None
    return status, reply

  async def inline(self, images: Sequence[np.ndarray]) -> list[orjson.Fragment]:
    """Returns image_data for any server: every frame as base64 PNG."""
    encoded = await self._cache.encode(images)
    self._http.counts.update(images_sent=len(images), image_bytes=sum(map(len, encoded)))
    return [orjson.Fragment(text) for text in encoded]

  async def names(self, url: str, life: object, images: Sequence[np.ndarray]) -> list[str] | None:
    """Returns the frames' names, or None if the server does not keep images by content.

    A new server is asked once. `life` tells one server at an address from the next.

    Raises:
      Lost, Silent, RolloutError: as `Http.once`.
    """
    server = self._server(url, life)
    if server.takes_names is None:
      server.takes_names = self._start(self._takes_names(url))
    asked = server.takes_names
    try:
      takes = await asyncio.shield(asked)
    finally:
      if asked.done() and (asked.cancelled() or asked.exception() or asked.result() is None):
        server.takes_names = None  # the next request asks again
    return await self._cache.names(images) if takes else None

  async def send(self, url: str, life: object, images: Mapping[str, np.ndarray]) -> bool:
    """Sends frames, by name. Those that are on their way for another request are waited for.

    Returns whether the server took them.

    Raises:
      Lost, Silent, RolloutError: as `Http.once`.
    """
    server = self._server(url, life)
    new = {name: image for name, image in images.items() if name not in server.uploads}
    for batch in _batches(new):
      task = self._start(self._upload(url, server, batch))
      server.uploads |= dict.fromkeys(batch, task)
    tasks = {server.uploads[name] for name in images}
    took = [await asyncio.shield(task) for task in tasks]
    return all(took)

  def _server(self, url: str, life: object) -> _Server:
    server = self._servers.get(url)
    if server is None or server.life is not life:
      server = self._servers[url] = _Server(life)
    return server

  def _start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Starts work that outlives the request that asked for it."""
    task = asyncio.create_task(work)
    self._tasks.add(task)
    task.add_done_callback(self._done)
    return task

  def _done(self, task: asyncio.Task[Any]) -> None:
    self._tasks.discard(task)
    if not task.cancelled():
      task.exception()  # the requests that wait for it raise it

  async def _takes_names(self, url: str) -> bool | None:
    """Sends no images, to see whether the server has the path. None: it has trouble of its own."""
    status, reply = await self._post(url, by_content.pack(np.zeros((0, 32, 32, 3), np.uint8)))
    return None if status >= 500 and status != 501 else _names_in(status, reply) == []

  async def _upload(self, url: str, server: _Server, batch: Mapping[str, np.ndarray]) -> bool:
    try:
      body = await asyncio.to_thread(_packed, list(batch.values()))
      self._http.counts.update(images_sent=len(batch), image_bytes=len(body))
      return _names_in(*await self._post(url, body)) == list(batch)
    finally:
      for name in batch:
        server.uploads.pop(name, None)

  async def _post(self, url: str, body: bytes) -> tuple[int, bytes]:
    return await self._http.once('POST', url + by_content.PATH, body, kind=BYTES)


def _packed(images: Sequence[np.ndarray]) -> bytes:
  return by_content.pack(np.stack(images))


def _batches(images: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
  """Yields uploads: images of one size, up to _UPLOAD_BYTES together."""
  by_size: dict[tuple[int, ...], dict[str, np.ndarray]] = {}
  for name, image in images.items():
    batch = by_size.setdefault(image.shape, {})
    if batch and (len(batch) + 1) * image.nbytes > _UPLOAD_BYTES:
      yield by_size.pop(image.shape)
      batch = by_size.setdefault(image.shape, {})
    batch[name] = image
  yield from by_size.values()


def _names_in(status: int, reply: bytes) -> list[str] | None:
  """Returns the names that a server computed from what it got, or None if it took nothing."""
  if status != 200:
    return None
  try:
    names = orjson.loads(reply)['images']
  except (orjson.JSONDecodeError, KeyError, TypeError):
    return None
  return names if isinstance(names, list) else None
