"""Sends rollout requests through SGLang's router, and knows afterwards which server answered.

A reply counts as one that came straight from its server: the server was UP when the request left,
was not lost since, and has proven its weights.
"""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np

from paravt_jax.rollout.gateway import ANSWERED, ROUTING_KEY, worker_of
from paravt_jax.rollout.http import Http, Lost, Silent, excerpt
from paravt_jax.rollout.images import Images
from paravt_jax.rollout.router import Router

Frames = Sequence[np.ndarray]
Payload = Callable[[str, Sequence[object]], bytes]  # (url, image_data) -> body
Event = Callable[[bytes], None] | None

_NOTICE_S = 2.0  # for a server to answer a ping
_BUSY = (408, 429)  # states of the router that pass


class Passage:
  """Sends a client's requests through the router.

  http, images: the client's own connections, and its frames. router: the states of the workers.
  """

  def __init__(self, http: Http, images: Images, router: Router, url: str):
    self._http = http
    self._images = images
    self._router = router
    self._url = url

  async def ask(
    self, affinity: int, images: Frames, payload: Payload, event: Event
  ) -> tuple[str, int, bytes] | None:
    """Returns (worker, status, body) once the gate is open.

    None if the reply does not count: its worker was lost since, or it was not UP when the request
    left. Of a group whose worker is not known yet, any lost worker counts.
    """
    lives = self._router.lives()
    home = self._router.home(affinity)
    suspects = [lives[home]] if home in lives else list(lives.values())
    work = asyncio.ensure_future(self._send(affinity, images, payload, event))
    leaves = [asyncio.ensure_future(gone.wait()) for gone in suspects]
    try:
      await asyncio.wait({work, *leaves}, return_when=asyncio.FIRST_COMPLETED)
      if not work.done():
        return None
      worker, status, body = work.result()
      if status != 200:
        return worker, status, body
      if worker not in lives:
        return None
      self._router.settle(affinity, worker)
      await self._router.passed(worker)
      return None if lives[worker].is_set() else (worker, status, body)
    except Lost as error:
      self._router.hold(str(error))
      return None
    finally:
      for task in (work, *leaves):
        task.cancel()
      await asyncio.gather(work, *leaves, return_exceptions=True)

  async def _send(
    self, affinity: int, images: Frames, payload: Payload, event: Event
  ) -> tuple[str, int, bytes]:
    """Sends until a worker replies.

    A reply without a worker's name is the router's own: it could not reach one. Then the workers
    are asked whether they are there.

    Raises:
      Lost: the router is not there, or reached no worker in `retries` + 1 attempts.
    """
    options = self._http.options
    headers: dict[str, str] = {}

    async def send(image_data: Sequence[object]) -> tuple[int, bytes]:
      headers.clear()
      return await self._http.once(
        'POST',
        f'{self._url}/generate',
        payload(self._url, image_data),
        on_event=event,
        send={ROUTING_KEY: str(affinity)},
        received=headers.update,
      )

    for attempt in range(options.retries + 1):
      # The router keeps no images by content, so they are files or in the request.
      status, body = await self._http.trying(
        lambda _: self._images.request(self._url, self, images, send)
      )
      if status == 200:
        return worker_of(self._url, headers), status, body
      worker = headers.get(ANSWERED, '').rstrip('/')
      if status < 500 and status not in _BUSY:
        return worker, status, body
      if status == 500 and worker and await self._http.ready(worker, _NOTICE_S):
        return worker, status, body
      await self._report_lost()
      if attempt < options.retries:
        await self._http.back_off(attempt)
    raise Lost(
      f'POST {self._url}/generate: got status {status} {attempt + 1} times; the router says: '
      f'{excerpt(body)}'
    )

  async def _report_lost(self) -> None:
    """Marks workers as lost that refuse connections. One that is silent may only be busy."""

    async def ask(url: str) -> None:
      try:
        await self._http.once('GET', f'{url}/get_model_info', timeout_s=_NOTICE_S)
      except Silent:
        return
      except Lost as error:
        self._router.lost(url, str(error))

    await asyncio.gather(*(ask(url) for url in self._router.up_urls()))
