"""What the commands `unpack`, `materialize` and `sanitize` share: the name they were called by."""

import argparse
import pathlib
import sys


def parser(command: str, description: str | None) -> argparse.ArgumentParser:
  """A parser whose help names the command that was run: `paravt-unpack` as installed, or `python -m
  paravt_jax.data.unpack`, which `description` is written with.
  """
  module, installed = f'python -m paravt_jax.data.{command}', f'paravt-{command}'
  called = installed if pathlib.PurePath(sys.argv[0]).name == installed else module
  return argparse.ArgumentParser(
    prog=called,
    description=(description or '').replace(module, called),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
