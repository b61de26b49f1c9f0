"""Addressed random numbers on the host.

The same address gives the same number in every process and on every machine.
"""

import hashlib

import numpy as np


def at(*address: int | str) -> int:
  """Returns a uint63 that depends on the address alone.

  It uses BLAKE2b, because Python's own `hash` is salted per process.

  >>> at(0, 'frames', 'task-7', 1) == at(0, 'frames', 'task-7', 1)
  True
  """
  for part in address:
    if not isinstance(part, (int, str)) or isinstance(part, bool):
      raise TypeError(
        f'seeds.at: got {part!r} ({type(part).__name__}), wanted integers and strings'
      )
  text = '\x1f'.join(f'{type(part).__name__}:{part}' for part in address)
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') >> 1


def rng(*address: int | str) -> np.random.Generator:
  """Returns a numpy generator seeded by the address."""
  return np.random.default_rng(at(*address))
