"""All targets, and what they need: a folder for their files, a decoding worker, a server."""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator

from tests.fuzz import bodies, containers, tables, texts
from tests.fuzz.driver import Target


@contextlib.contextmanager
def open_targets(*, with_server: bool = True) -> Iterator[list[Target]]:
  """Yields every target; `with_server` starts the embedded server for the last one."""
  with contextlib.ExitStack() as stack:
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix='fuzz-')))
    pool = stack.enter_context(containers.open_pool())
    found = [
      *texts.targets(folder),
      *tables.targets(folder),
      *containers.targets(folder, pool),
      *bodies.targets(),
    ]
    if with_server:
      found.append(bodies.app_target(stack.enter_context(bodies.served(folder / 'model'))))
    yield found
