"""One embedded server on a model folder, for people and programs that speak the OpenAI protocol."""

import dataclasses
import os
import pathlib
import socket
import time
from collections.abc import Callable
from typing import Annotated, ClassVar

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.options import (
  NAME,
  POSITIVE,
  PROSE,
  TEXT,
  KnobError,
  Options,
  extended,
  require,
  whole,
)
from paravt_jax.orchestrator import compile_cache, options
from paravt_jax.orchestrator.host import Host
from paravt_jax.orchestrator.server_options import EmbeddedOptions
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.process import ServerProcess

_LOOK_S = 0.2  # between two looks at the server


@dataclasses.dataclass(frozen=True)
class ServeRecipe(Options):
  """A model behind the OpenAI protocol (`experiments.serve`)."""

  SECTION: ClassVar[str] = 'think_prefix'
  EXAMPLE: ClassVar[str] = 'configs/serve.py'

  name: Annotated[str, NAME]  # the model's name in requests
  scale: Annotated[str, NAME]  # of the recipe, as behind its name on the command line
  model: options.ModelOptions
  folder: Annotated[str, NAME]  # for the server's log
  think_prefix: Annotated[str, PROSE]  # the beginning of each turn, as in training; '' for none
  host: Annotated[str, NAME]  # where the server listens; 0.0.0.0: on all addresses
  port: Annotated[int, whole(0, 65535, note='0: a free one')]  # where it listens
  # that requests must bring; '': none; env:NAME or file:PATH keeps it off the command line
  api_key: Annotated[str, TEXT] = dataclasses.field(repr=False)
  ready_timeout_s: Annotated[float, POSITIVE]  # for the server to answer
  embedded: EmbeddedOptions


def server_options(
  recipe: ServeRecipe, folder: pathlib.Path, ends: tuple[int, ...]
) -> ServerOptions:
  """Returns the server's options.

  ends: ids that end a reply.

  Raises:
    ConfigError: knobs of the engine do not fit each other.
  """
  wanted = 'False: this command has no learner, whose process a server may share'
  require(recipe.embedded.in_process, wanted, not recipe.embedded.in_process, 'embedded.in_process')
  try:
    return extended(
      ServerOptions,
      recipe.embedded,
      model_path=str(folder.absolute()),
      host=recipe.host,
      port=recipe.port,
      port_file=None,
      api_key=recipe.api_key or None,
      served_name=recipe.name,
      think_prefix=recipe.think_prefix,
      eos_token_ids=ends,
      compile_cache=str(compile_cache.FOLDER.absolute()),
      parent_pid=None,
    )
  except KnobError as error:
    raise error.at('embedded') from None


def start(recipe: ServeRecipe, folder: pathlib.Path, host: Host) -> ServerProcess:
  """Starts the server of a model folder, and returns when it answers.

  Raises:
    ChatError: the folder has no tokenizer.
    ConfigError: knobs of the engine do not fit each other, or the address is taken.
    RolloutError: the server did not start; the message has the end of its log.
  """
  tok = ChatTokenizer.load(folder)
  _check_address(recipe.host, recipe.port)
  return launch.launch(
    server_options(recipe, folder, (tok.im_end, tok.endoftext)),
    env=host.child_environment(recipe.embedded.threads, recipe.embedded.memory_fraction),
    log=pathlib.Path(recipe.folder) / 'server.log',
    deadline_s=recipe.ready_timeout_s,
    parent_pid=os.getpid(),
  )


def _check_address(host: str, port: int) -> None:
  """Names this command's own knobs where the server could not listen."""
  with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      sock.bind((host, port))
    except OSError as error:
      raise ConfigError(
        f'--config.host={host} --config.port={port}: cannot listen there ({error.strerror}); '
        'wanted an IPv4 address of this machine, and a port that is free (0: any)'
      ) from error


def wait(server: ServerProcess, asked_to_end: Callable[[], bool]) -> None:
  """Returns when an end was asked for.

  Raises:
    RolloutError: the server ended by itself.
  """
  while not asked_to_end():
    if not server.alive:
      raise RolloutError(f'the server ended; its log {server.log} ends:\n{server.tail()}')
    time.sleep(_LOOK_S)
