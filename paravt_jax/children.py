"""How child processes start that run code of this library."""

import pathlib
import sys

_HOME = str(pathlib.Path(__file__).resolve().parents[1])


def command(code: str, *arguments: str) -> list[str]:
  """The command line of a fresh interpreter that runs `code`, with `arguments` as sys.argv[1:].

  `import paravt_jax` there gives this very copy, be it a checkout, installed, or found through a
  path that the caller added. The child does not search the current folder, so that a file
  `queue.py` of the user's own cannot take the place of Python's.
  """
  # Submodules are found through the package, so its folder's other contents need not stay on the path.
  start = f'import sys; sys.path.insert(0, {_HOME!r}); import paravt_jax; del sys.path[0]; '
  return [sys.executable, '-P', '-c', start + code, *arguments]
