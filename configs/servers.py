"""Rollout servers of a recipe: which kind, how many, how they are watched, and how each kind is
started.

kind: url (servers that run already: server.urls), embedded (ours, JAX) or sglang (real SGLang out
of .venv-sglang, see `make sglang`).
"""

from ml_collections import ConfigDict


def servers() -> ConfigDict:
  """The published placement: servers elsewhere, by URL; started ones take one GPU each."""
  return ConfigDict(
    {
      'kind': 'url',
      'urls': (),
      'count': 1,  # servers to start (embedded, sglang)
      # where started ones listen; another address is for people who know their network
      'host': '127.0.0.1',
      'ports': (),  # one per started server; () takes free ones
      'api_key': '',
      'ready_timeout_s': 900.0,
      'watch': {
        'every_s': 5.0,
        'misses': 12,  # pings in a row without an answer before a server counts as dead
        'restarts': 3,  # in a row, without having served in between
        # of a started server's processes; above it, it is drained and restarted; 0: no limit
        'memory_mb': 0,
        'drain_s': 120.0,
        'tolerance': 0.05,  # nats between canary and learner
      },
      'embedded': {
        'threads': 0,  # of the CPU; 0: as many as it likes
        'dtype': 'bfloat16',
        'lanes': ((8192, 32), (32768, 16)),
        'chunk_tokens': 256,
        'prefill_rows': 4,
        'pages': 2048,
        'decode_steps': 4,
        'image_batch': 64,
        'image_slots': 4096,
        'max_image_patches': 196,
        'bias_rows': 4,
        'max_stop_ids': 4,
        'max_body_mb': 256,
      },
      'sglang': {
        'python': '.venv-sglang/bin/python',
        'device': 'cuda',
        'dtype': 'bfloat16',
        'max_total_tokens': 262144,  # of the key-value cache: 36 GiB at 8B in bfloat16
        'max_running_requests': 64,
        'mem_fraction': 0.8,
        'threads': 8,  # of the CPU, for each of its processes
        'tensor_parallel': 1,
        # GPUs, tensor_parallel for each server in turn; () leaves the choice to
        # CUDA_VISIBLE_DEVICES
        'devices': (),
        'vision_cache_mb': 1024,  # safe because RL freezes the tower; refused when it does not
        # folder for converted weights that the servers see too; '' is memory-backed, on this
        # machine
        'staging': '',
        'extra': (),  # further arguments of sglang.launch_server
      },
    }
  )


def tiny_servers() -> ConfigDict:
  """One embedded server on the CPU, in float32; SGLang on the CPU where asked for."""
  config = servers()
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
      'max_image_patches': 4,
      'max_body_mb': 64,
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
