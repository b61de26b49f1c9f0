"""Rollout servers of the tiny scale; the published ones are ServersOptions.published()."""

from ml_collections import ConfigDict

from paravt_jax.options import to_dict
from paravt_jax.orchestrator.server_options import ServersOptions


def tiny_servers() -> ConfigDict:
  """One embedded server on the CPU, in float32; SGLang on the CPU where asked for."""
  config = ConfigDict(to_dict(ServersOptions.published()))
  config.kind = 'embedded'
  config.ready_timeout_s = 300.0
  config.watch.update({'every_s': 1.0, 'misses': 30, 'drain_s': 60.0, 'tolerance': 1e-3})
  config.embedded.update(
    {
      'dtype': 'float32',
      # blocks of 16 slots: on a CPU two blocks decode at once, and empty ones cost nothing
      'lanes': ((128, 16),) * 4 + ((256, 16),) * 4 + ((512, 16),) * 2,
      'chunk_tokens': 32,
      'prefill_rows': 8,
      'pages': 2048,
      'image_cache_mb': 64,
      'max_image_patches': 4,
      'memory_fraction': 0.2,
      'max_body_mb': 64,
      'tensor_parallel': 1,
    }
  )
  config.sglang.update(
    {
      'device': 'cpu',
      'dtype': 'float32',
      'max_total_tokens': 32768,
      'mem_fraction': 0.2,
      'vision_cache_mb': 0,
      'threads': 2,
    }
  )
  return config
