"""Eight virtual devices, set before anything imports jax; NPROC keeps XLA's collectives from deadlocking on few cores."""

import os

os.environ['NPROC'] = '32'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8']).strip()


def pytest_configure(config):
  """Registers the marks of tests that `make test` leaves to `make test-slow` and `make test-sglang`."""
  config.addinivalue_line('markers', 'slow: takes more than a few seconds')
  config.addinivalue_line('markers', 'sglang: needs the environment of `make sglang`')
