"""Command lines of child processes that run code of this library."""

import pathlib
import sys

_HOME = str(pathlib.Path(__file__).resolve().parents[1])


def command(code: str, *arguments: str) -> list[str]:
  """Returns the command line of a new interpreter that runs `code` with `arguments` as
  sys.argv[1:].

  The child imports the same copy of `paravt_jax` as the caller: a checkout, an installed package,
  or one on a path that the caller added. The child does not search the current folder, so a user's
  file `queue.py` cannot shadow Python's.
  """
  # Submodules are found through the package, so its folder's other contents need not stay on the
  # path.
  start = f'import sys; sys.path.insert(0, {_HOME!r}); import paravt_jax; del sys.path[0]; '
  return [sys.executable, '-P', '-c', start + code, *arguments]
