"""What the benches measure and how large. Sizes are the tiny scale's, so that a run takes minutes on two cores.

python -m experiments.bench --config=configs/bench.py --config.suite=rollout          # a table
python -m experiments.bench --config=configs/bench.py --config.suite=rollout --json   # one JSON object on stdout
"""

from ml_collections import ConfigDict

from configs.servers import tiny_servers


def get_config() -> ConfigDict:
  """The bench's knobs, locked."""
  servers = tiny_servers()
  for name, knob in (('embedded', 'threads'), ('sglang', 'threads'), ('sglang', 'staging')):
    del servers[name][knob]  # `threads` below is for all; nothing is staged
  servers.sglang.mem_fraction = 0.1
  return ConfigDict(
    {
      'suite': 'rollout',
      'seed': 0,
      'threads': 2,  # cores that every measured program gets, ours and the others
      'model': {'folder': ''},  # a Hugging Face folder; '' is the random tiny model
      'run': {'folder': 'runs/bench'},  # logs of the servers; scratch space of the publish stages
      # embedded engine against transformers' generate: one batch, in this process; the better of `repeats` turns each. The batch
      # is what a step of RL asks for: groups of rollouts of one prompt with the largest frame budget, and turns of a call's length
      'generate': {
        'batch': 32,
        'group': 8,  # rollouts of a prompt
        'frames': 64,
        'words': 24,
        'new_tokens': 40,
        'temperature': 0.7,
        'repeats': 5,
        'lanes': ((320, 8),) * 4,
        'decode_steps': 8,
      },
      # embedded against SGLang over HTTP: `turns` x concurrency requests at each concurrency, groups that share a prompt
      'serve': {'concurrencies': (16, 64), 'turns': 3, 'group': 8, 'frames': 16, 'words': 32, 'new_tokens': 96, 'temperature': 0.7},
      # rollouts of one prompt
      'prefix': {'rollouts': 8, 'frames': 64, 'words': 64, 'new_tokens': 16},
      'publish': {'bytes': 1_000_000_000},
      'server': {'ready_timeout_s': 300.0, 'embedded': servers.embedded, 'sglang': servers.sglang},
    }
  ).lock()
