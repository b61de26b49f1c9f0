"""The argument parser of the commands `unpack`, `materialize` and `sanitize`."""

import argparse
import pathlib
import sys


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
  """Returns a parser whose help shows the command as the user called it.

  That is `paravt-unpack` if installed, or `python -m paravt_jax.data.unpack`. `description` is
  written with the latter.
  """
  module, installed = f'python -m paravt_jax.data.{command}', f'paravt-{command}'
  called = installed if pathlib.PurePath(sys.argv[0]).name == installed else module
  return argparse.ArgumentParser(
    prog=called,
    description=(description or '').replace(module, called),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
