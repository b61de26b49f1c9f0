"""Starts the embedded server as a child process and waits until it answers."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping

from paravt_jax import children
from paravt_jax.serving import owned_folders, process
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import ServerProcess

__all__ = ['ServerProcess', 'launch']

_PREFIX = 'paravt-server-'  # of the folder in which a server that starts leaves its port
_PROGRAM = (
  "import runpy; runpy.run_module('paravt_jax.serving.embedded.server', run_name='__main__', "
  'alter_sys=True)'
)


def launch(
  options: ServerOptions,
  *,
  env: Mapping[str, str],
  log: pathlib.Path,
  deadline_s: float,
  parent_pid: int,
) -> ServerProcess:
  """Starts a server in its own session and returns once it answers.

  Args:
    options: `port_file` and `parent_pid` are replaced; port 0 selects a free one.
    env: the whole environment of the child.
    log: the file to which the server's output is appended.
    parent_pid: the server ends after this process (the caller) ends.

  Raises:
    RolloutError: the server ended, or did not answer within `deadline_s` seconds. The message
    contains the end of its log.
  """
  place = owned_folders.Place(pathlib.Path(tempfile.gettempdir()), _PREFIX)
  try:
    port_file = place.open() / 'port'  # the server writes it when it can answer
    given = dataclasses.replace(options, port_file=str(port_file), parent_pid=parent_pid)
    child = process.start(
      children.command(_PROGRAM, '--options', given.to_json(), *_key_words(given)),
      env=env,
      log=log,
      key=given.api_key,
    )
    try:
      process.wait_until(child, port_file.exists, log, deadline_s, 'embedded server')
      port = int(port_file.read_text())
    except BaseException:  # also on Ctrl-C: leave no child process
      process.end(child, 1.0)
      raise
  finally:
    place.close()
  return ServerProcess(f'http://{options.host}:{port}', child, log)


def _key_words(options: ServerOptions) -> list[str]:
  return [] if options.api_key is None else ['--key-on-stdin']
