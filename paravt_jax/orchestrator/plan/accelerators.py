"""Accelerators that a plan can be made for: memory, speed and links of one device.

The numbers are those of the makers' data sheets, for dense bfloat16 products. `memory_gib` is what
the driver or the compiler reports, which is a little less than the name of the product says.
"""

import dataclasses
import math
import re

from paravt_jax.errors import ConfigError

GIB = 2**30
USABLE = 0.95  # share of a device's memory that a run may take; the rest is the runtime's
HOST_DEVICES = {'cuda': 8, 'tpu': 4}  # devices of one host where there are several


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One device."""

  name: str  # as in --target=NAME:COUNT
  title: str
  platform: str  # of JAX: 'cuda', 'tpu' or 'cpu'
  memory_gib: float
  bfloat16_flops: float  # per second, dense
  float32_flops: float  # per second
  hbm_bytes: float  # per second
  link_bytes: float  # per second to other devices, in one direction
  source: str  # of these numbers

  def flops(self, dtype: str) -> float:
    """Returns products and sums per second in 'bfloat16' or 'float32'."""
    return self.bfloat16_flops if dtype == 'bfloat16' else self.float32_flops


_NVIDIA = 'NVIDIA data sheet, '
_GOOGLE = 'cloud.google.com/tpu/docs, page of the version'
ACCELERATORS = {
  one.name: one
  for one in (
    Accelerator(
      'h100',
      'H100 80GB SXM',
      'cuda',
      79.1,
      989e12,
      67e12,
      3.35e12,
      450e9,
      f'{_NVIDIA}H100 SXM5; memory as its driver reports it',
    ),
    Accelerator(
      'h200',
      'H200 141GB SXM',
      'cuda',
      139.8,
      989e12,
      67e12,
      4.8e12,
      450e9,
      f'{_NVIDIA}H200 SXM; memory as its driver reports it',
    ),
    Accelerator(
      'a100', 'A100 80GB SXM', 'cuda', 79.1, 312e12, 19.5e12, 2.039e12, 300e9, f'{_NVIDIA}A100 80GB'
    ),
    Accelerator(
      'a100_40',
      'A100 40GB SXM',
      'cuda',
      39.4,
      312e12,
      19.5e12,
      1.555e12,
      300e9,
      f'{_NVIDIA}A100 40GB',
    ),
    Accelerator(
      'l40s', 'L40S 48GB', 'cuda', 44.4, 362e12, 91.6e12, 864e9, 32e9, f'{_NVIDIA}L40S; PCIe 4 x16'
    ),
    Accelerator(
      'rtx4090',
      'RTX 4090 24GB',
      'cuda',
      23.5,
      165e12,
      82.6e12,
      1.008e12,
      32e9,
      'NVIDIA Ada GPU architecture, appendix A; PCIe 4 x16',
    ),
    Accelerator('v5p', 'TPU v5p', 'tpu', 95.0, 459e12, 76e12, 2.765e12, 600e9, _GOOGLE),
    Accelerator('v6e', 'TPU v6e', 'tpu', 31.25, 918e12, 153e12, 1.64e12, 448e9, _GOOGLE),
    Accelerator('v5e', 'TPU v5e', 'tpu', 15.75, 197e12, 33e12, 819e9, 200e9, _GOOGLE),
    Accelerator(
      'cpu',
      'CPU, two cores',
      'cpu',
      8.0,
      0.05e12,
      0.1e12,
      20e9,
      10e9,
      'two cores of a shared server: products of width 512 as `experiments.bench` times them',
    ),
  )
}
# The machine that a scale of configs/base.py is written for.
SCALES = {
  'tiny': 'cpu:1',
  'tiny_long': 'cpu:1',
  '2b': 'h100:1',
  '2b_long': 'h100:1',
  '2b_lora': 'rtx4090:1',
  '8b': 'h100:8',
  '8b_long': 'h100:8',
  '8b_split': 'h100:8',
  '8b_lora': 'h100:1',
  '8b_tpu': 'v5p:2x2x2',
}


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices of one kind."""

  accelerator: Accelerator
  count: int
  topology: str  # '8', or '2x2x2' for a slice of TPUs
  hosts: int  # that have the devices, each as many

  @property
  def name(self) -> str:
    """Returns the target as --target names it."""
    return f'{self.accelerator.name}:{self.topology}'

  @property
  def usable_gib(self) -> float:
    """Returns the memory of a device that learner and server may take together, in GiB."""
    return self.accelerator.memory_gib * USABLE


def parse_target(text: str) -> Target:
  """Returns the target that a text names: 'h100:8', 'v5p:2x2x2', 'cpu'.

  Raises:
    ConfigError: the accelerator is not in the table, or the count is no positive number.
  """
  name, _, size = text.partition(':')
  size = size or '1'
  if name not in ACCELERATORS:
    raise ConfigError(
      f'--target={text}: no accelerator {name!r}; wanted one of {", ".join(ACCELERATORS)}, as in '
      '--target=h100:8'
    )
  if not re.fullmatch(r'[1-9]\d{0,4}(x[1-9]\d{0,3}){0,2}', size):
    raise ConfigError(
      f'--target={text}: {size!r} is no number of devices; wanted one such as h100:8 or v5p:2x2x2'
    )
  one, count = ACCELERATORS[name], math.prod(map(int, size.split('x')))
  return Target(one, count, size, -(-count // HOST_DEVICES.get(one.platform, count)))


def target_of_scale(scale: str) -> Target:
  """Returns the target that a scale is for.

  Raises:
    ConfigError: the scale is not in SCALES.
  """
  if scale not in SCALES:
    raise ConfigError(f'scale {scale!r} has no target of its own; name one, as in --target=h100:8')
  return parse_target(SCALES[scale])
