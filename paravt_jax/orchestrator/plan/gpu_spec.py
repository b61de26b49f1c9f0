"""What XLA must know of a GPU to compile for one that is not there.

Sizes of the chips from NVIDIA's architecture papers (Ampere GA100, Ada, Hopper) and the CUDA
programming guide's table of compute capabilities.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Spec:
  """One kind of GPU."""

  title: str
  capability: tuple[int, int]
  cores: int  # streaming multiprocessors
  lanes: int  # float32 units of each
  shared_kb: int  # of each, for all blocks
  block_kb: int  # of each, for one block that asks for it
  cache_mb: int
  ghz: float
  memory_bytes: int
  bandwidth: int  # bytes per second
  threads: int = 2048  # of a multiprocessor


SPECS = {
  'h100': Spec(
    'NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 228, 227, 50, 1.98, 84_978_434_048, 3_352 * 10**9
  ),
  'h200': Spec('NVIDIA H200', (9, 0), 132, 128, 228, 227, 50, 1.98, 150_109_000_000, 4_800 * 10**9),
  'a100': Spec(
    'NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 164, 163, 40, 1.41, 84_974_000_000, 2_039 * 10**9
  ),
  'a100_40': Spec(
    'NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 164, 163, 40, 1.41, 42_298_000_000, 1_555 * 10**9
  ),
  'l40s': Spec(
    'NVIDIA L40S', (8, 9), 142, 128, 100, 99, 96, 2.52, 47_670_000_000, 864 * 10**9, 1536
  ),
  'rtx4090': Spec(
    'NVIDIA GeForce RTX 4090',
    (8, 9),
    128,
    128,
    100,
    99,
    72,
    2.52,
    25_250_000_000,
    1_008 * 10**9,
    1536,
  ),
}


def text(name: str) -> str:
  """Returns XLA's description of a GPU of SPECS, as a text protobuf."""
  spec = SPECS[name]
  device = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 48 << 10,
    'shared_memory_per_core': spec.shared_kb << 10,
    'threads_per_core_limit': spec.threads,
    'core_count': spec.cores,
    'fpus_per_core': spec.lanes,
    'block_dim_limit_x': 2**31 - 1,
    'block_dim_limit_y': 2**16 - 1,
    'block_dim_limit_z': 2**16 - 1,
    'memory_bandwidth': spec.bandwidth,
    'l2_cache_size': spec.cache_mb << 20,
    'clock_rate_ghz': spec.ghz,
    'device_memory_size': spec.memory_bytes,
    'shared_memory_per_block_optin': spec.block_kb << 10,
    'registers_per_core_limit': 1 << 16,
    'registers_per_block_limit': 1 << 16,
  }
  major, minor = spec.capability
  feature = ' feature_extension: ACCELERATED_FEATURES' if major >= 9 else ''
  fields = ' '.join(f'{key}: {value}' for key, value in device.items())
  capability = f'cuda_compute_capability {{ major: {major} minor: {minor}{feature} }}'
  return (
    f'gpu_device_info {{ {fields} {capability} }} platform_name: "CUDA" '
    'dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 } '
    f'device_description_str: "{spec.title}"'
  )
