"""Commands to single servers: pause, weights, continue, abort; questions: who are you, are you
there. Ours or SGLang's alike.

It uses separate connections, so a busy client cannot delay an update.
"""

import asyncio
import logging
import re
from typing import Any

import orjson

from paravt_jax.errors import RolloutError, SyncError
from paravt_jax.rollout.http import Http, Lost, Silent, excerpt, parse_reply
from paravt_jax.serving import protocol

log = logging.getLogger('paravt.control')

OURS = 'paravt_jax'  # what the embedded server calls itself
OLDEST_SGLANG = (0, 5, 21)  # older ones tokenise prompts with images again, or lack version spans
_POLL_S = 0.2
_PING_S = 2.0


class Control(Http):
  """Use as `async with Control(options) as control`. URLs are without a slash at the end."""

  async def _command(self, url: str, path: str, body: dict) -> None:
    """Sends a command and ignores the body of its reply, which some servers send as plain text."""
    status, reply = await self.call('POST', url + path, orjson.dumps(body))
    if status != 200:
      raise RolloutError(
        f'POST {url}{path}: got status {status}, wanted 200; the server says: {excerpt(reply)}'
      )

  async def pause(self, url: str, mode: str = 'retract') -> None:
    """Stops generation.

    'retract' keeps requests in flight for later, and recomputes their keys and values with the new
    weights.
    """
    await self._command(url, '/pause_generation', {'mode': mode})

  async def resume(self, url: str) -> None:
    """Resumes generation after `pause`. It is no error if the server is not paused."""
    await self._command(url, '/continue_generation', {})

  async def abort(self, url: str, rid: str = '') -> None:
    """Aborts one request by its rid on the wire, or all of them."""
    await self._command(
      url, '/abort_request', {'rid': rid} if rid else {'rid': '', 'abort_all': True}
    )

  async def flush(self, url: str) -> None:
    """Drops the server's cached prefixes. Refused while anything runs."""
    await self._command(url, '/flush_cache', {})

  async def update_weights(self, url: str, folder: str, version: int) -> None:
    """Loads weights from `folder` as `version`, without pausing by itself.

    Raises:
      SyncError: the server refused them.
      RolloutError: it did not answer, or is broken itself (status 5xx).
    """
    body = {'model_path': str(folder), 'weight_version': str(version), 'flush_cache': True}
    status, reply = await self.call('POST', f'{url}/update_weights_from_disk', orjson.dumps(body))
    if status >= 500:
      raise RolloutError(
        f'{url}: failed while it loaded weights {version} (status {status}): '
        f'{excerpt(reply)}; see its log'
      )
    if status != 200 or not _reports_success(reply):
      raise SyncError(
        f'{url}: refused weights {version} from {folder} (status {status}): {excerpt(reply)}; '
        'is the folder complete, and visible to the server?'
      )

  async def swap_weights(self, url: str, folder: str, version: int) -> None:
    """Pauses, updates and resumes. Requests in flight continue with the new weights.

    It also resumes after a refusal.

    Raises:
      SyncError, RolloutError: as `update_weights`.
    """
    await self.pause(url)
    try:
      await self.update_weights(url, folder, version)
    except SyncError:
      await self.resume(url)
      raise
    await self.resume(url)

  async def generate(self, url: str, request: protocol.GenerateRequest) -> protocol.GenerateReply:
    """Sends one request directly to one server, bypassing the gate. Canaries use it.

    Raises:
      RolloutError: it failed, or the reply is none of the protocol.
    """
    return protocol.GenerateReply.from_json(
      await self.json('POST', f'{url}/generate', orjson.dumps(request.to_json()))
    )

  async def info(self, url: str) -> dict[str, Any]:
    """GET /get_model_info: `model_path`, `weight_version` and more. Answers while paused.

    Raises:
      RolloutError: it failed, or lacks these.
    """
    found = await self.json('GET', f'{url}/get_model_info')
    if 'weight_version' not in found:
      raise RolloutError(
        f'GET {url}/get_model_info: got {sorted(found)}, wanted weight_version; {_WANTED}'
      )
    return found

  async def version(self, url: str) -> int:
    """Returns the server's weight version: 0 if never updated, -1 if the name is not a version of
    ours.
    """
    text = str((await self.info(url))['weight_version'])
    return (
      protocol.version_number(text) if text == protocol.FIRST_VERSION or text.isdecimal() else -1
    )

  async def software(self, url: str) -> str:
    """The release that the server names: `OURS`, or SGLang's, such as '0.5.21'. Raises
    RolloutError.
    """
    return str((await self.json('GET', f'{url}/get_server_info')).get('version'))

  async def inspect(self, url: str) -> None:
    """Checks that this is a supported server.

    Raises:
      RolloutError: it is not there, refuses our key, is another version, or serves a model without
        images.
    """
    info = await self.info(url)
    software = await self.software(url)
    if software != OURS and _release(software) < OLDEST_SGLANG:
      raise RolloutError(f'{url}: speaks version {software!r} of the protocol; {_WANTED}')
    if info.get('is_generation') is False or info.get('has_image_understanding') is False:
      raise RolloutError(
        f'{url}: serves {info.get("model_path")}, a model that takes no images or generates '
        'nothing; '
        'start it with the Qwen3-VL folder of this run'
      )

  async def wait_ready(self, url: str) -> None:
    """Returns when the server takes requests. One that answers but is not ready is told to
    continue: a run that was killed in the middle of an update left it paused.

    Raises:
      RolloutError: it did not within ready_timeout_s, or refuses our key.
    """
    problem, silent = 'nothing yet', True
    try:
      async with asyncio.timeout(self.options.ready_timeout_s):
        while True:
          try:
            status = await self._readiness(url)
            if status == 200:
              return
            problem = f'status {status}'
            if await self.ready(url, _PING_S):
              await self.resume(url)
          except (Lost, Silent) as error:
            problem = str(error)
          if silent:
            log.warning(
              '%s: not ready yet (%s); waiting up to %g s',
              url,
              problem,
              self.options.ready_timeout_s,
            )
            silent = False
          await asyncio.sleep(min(self.options.backoff_s, _POLL_S))
    except TimeoutError as error:
      raise RolloutError(
        f'{url}: not ready after {self.options.ready_timeout_s:g} s (last: {problem}); see '
        "the server's log, "
        'or raise client.ready_timeout_s'
      ) from error

  async def _readiness(self, url: str) -> int:
    """The status of GET /ready, or of /health where there is no such thing."""
    status, reply = await self.once('GET', f'{url}/ready', timeout_s=_PING_S)
    if status == 404:
      status, reply = await self.once('GET', f'{url}/health', timeout_s=_PING_S)
    if status in (401, 403):
      parse_reply(f'GET {url}', status, reply)
    return status


_WANTED = (
  f'wanted the embedded server of {OURS}, or SGLang {".".join(map(str, OLDEST_SGLANG))} or later'
)


def _release(text: str) -> tuple[int, ...]:
  """'0.5.21.post1' as (0, 5, 21); what is no release is ()."""
  match = re.match(r'v?(\d+)\.(\d+)\.(\d+)', text)
  return tuple(int(part) for part in match.groups()) if match else ()


def _reports_success(reply: bytes) -> bool:
  try:
    value = orjson.loads(reply)
  except orjson.JSONDecodeError:
    return False
  return isinstance(value, dict) and value.get('success') is True
