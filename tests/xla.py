"""Flags of the XLA compiler for all that the tests start. Most of the tests' time is compiling."""

# LLVM's optimizer takes about a third of a compilation and makes programs of this size no faster
QUICK = '--xla_backend_optimization_level=0'


def devices(count: int) -> str:
  """Returns the flags of a process that sees `count` virtual devices."""
  return f'{QUICK} --xla_force_host_platform_device_count={count}'
