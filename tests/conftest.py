"""Set before anything imports jax: eight virtual devices, and where compiled programs are kept.

NPROC keeps XLA's collectives from deadlocking on few cores.
"""

import hashlib
import os
import pathlib
from importlib import metadata

from tests import xla

ROOT = pathlib.Path(__file__).parent.parent


def machine() -> str:
  """Names the processor and the compiler: a program that was compiled for another may not run
  here.
  """
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  kinds = sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))})
  return hashlib.sha256(
    '\n'.join([*kinds, metadata.version('jax'), metadata.version('jaxlib')]).encode()
  ).hexdigest()[:12]


os.environ['NPROC'] = '32'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), xla.devices(8)]).strip()
# Most of the tests' time is XLA's: what it compiled is kept for the other workers, the servers that
# tests start, and the next run.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.pytest_cache' / f'xla-{machine()}'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')


def pytest_configure(config):
  """Registers the marks of tests that `make test` leaves to the other commands."""
  config.addinivalue_line('markers', 'slow: takes more than a few seconds')
  config.addinivalue_line('markers', 'sglang: needs the environment of `make sglang`')
  config.addinivalue_line(
    'markers', 'aot: compiles for devices that are not there: `make test-aot`'
  )
  config.addinivalue_line('markers', 'hosts: several processes, each a host: `make test-hosts`')
  config.addinivalue_line('markers', 'aot_more: as aot, but too long for .ci/run')
  config.addinivalue_line('markers', 'nightly: as slow or hosts, but too long for .ci/run')
