"""Converts a published version to what servers load."""

import pathlib
import threading
import time
import urllib.parse
from collections.abc import Sequence

import jax

from paravt_jax.errors import ConfigError
from paravt_jax.options import require
from paravt_jax.orchestrator.run_folder import fingerprint
from paravt_jax.orchestrator.server_options import PublishOptions, ServersOptions
from paravt_jax.rollout.control import OURS, Control
from paravt_jax.rollout.fleet import Member
from paravt_jax.serving import changes, flat
from paravt_jax.serving.manifest import Manifest
from paravt_jax.serving.publish import Publisher
from paravt_jax.serving.staging import Staging

LOOPBACK = ('127.0.0.1', 'localhost', '::1')


class WeightDelivery:
  """Turns a published version into the folder that servers load."""

  def __init__(self) -> None:
    self.staging: Staging | None = None  # makes Hugging Face folders for servers that need them
    self.seconds: dict[str, float] = {}  # of each stage of the last delivery
    self.bytes = 0  # of the last version, as servers are offered it
    self._current: pathlib.Path | None = None
    self._lock = threading.Lock()  # a server that comes back may ask for a version meanwhile

  def ready(self, published: pathlib.Path) -> pathlib.Path:
    """Returns the folder to load, and blocks until it is ready. Raises SyncError.

    The previous folder stays, because a server that comes back may be loading it.
    """
    with self._lock:
      start = time.monotonic()
      if self.staging is not None:
        self.staging.clear(self._current)
        self._current = self.staging.stage(published)
      else:
        self._current = published.absolute()
      self.seconds['convert'] = time.monotonic() - start
      return self._current

  def note(self, published: pathlib.Path, page: Manifest) -> None:
    """Counts the bytes of a version that goes out, of which `page` is the manifest."""
    whole = sum(size for size, _ in page.files.values())
    self.bytes = changes.size(published) if changes.is_changes(published) else whole

  def close(self) -> None:
    """Frees the converted versions."""
    if self.staging is not None:
      self.staging.close()


def check(publish: PublishOptions, server: ServersOptions) -> None:
  """Raises ConfigError for a way of the weights that the servers do not have."""
  if publish.form != 'memory':
    return
  where = (*server.urls, server.router) if server.kind == 'url' else ()
  far = [url for url in where if url and urllib.parse.urlsplit(url).hostname not in LOOPBACK]
  if far or jax.process_count() > 1:
    raise ConfigError(
      f'--config.publish.form=memory, but {far[0] if far else "another host of the learner"} is '
      'another machine, which does not see the memory of this one; set it to auto or files'
    )
  wanted = 'False with publish.form=memory, which sends all arrays; set that to files or auto'
  require(publish.delta, wanted, not publish.delta, 'publish.delta')


def publisher(publish: PublishOptions, server: ServersOptions, folder: pathlib.Path) -> Publisher:
  """Returns the publisher of a run folder's weights, for servers on this machine or on others."""
  weights, alone = folder / 'weights', jax.process_count() == 1
  own = server.kind != 'url' and not publish.delta
  if alone and (publish.form == 'memory' or (publish.form == 'auto' and own)):
    return Publisher(weights, keep=publish.keep, memory=flat.Store())
  if alone and publish.delta:
    place = pathlib.Path(server.sglang.staging or weights).absolute()
    place.mkdir(parents=True, exist_ok=True)
    return Publisher(weights, keep=publish.keep, changes=changes.Outlet(place))
  return Publisher(weights, keep=publish.keep)


async def are_sglang(members: Sequence[Member], control: Control) -> bool:
  """Returns whether the servers are SGLang. Raises ConfigError for a mixture."""
  found = {member.url: await control.software(member.url) for member in members}
  ours = [url for url, name in found.items() if name == OURS]
  if ours and len(ours) < len(found):
    raise ConfigError(
      f'--config.server.urls: {ours[0]} is an embedded server, others are SGLang ({found}); '
      'wanted all of one kind'
    )
  return not ours


def staging_folder(
  staging: str, members: Sequence[Member], run: pathlib.Path
) -> pathlib.Path | None:
  """Returns the folder of this run for converted weights.

  None stands for a folder in memory, which needs the servers on this machine.
  """
  if staging:
    return pathlib.Path(staging) / f'{run.name}-{fingerprint(str(run.absolute()))}'
  for member in members:
    host = urllib.parse.urlsplit(member.url).hostname
    if member.process is None and host not in LOOPBACK:
      raise ConfigError(
        f'--config.server.sglang.staging is empty, but {member.url} is another machine: name a '
        'folder that it and the learner both see'
      )
  return None
