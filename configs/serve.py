"""A model behind the OpenAI protocol: /v1/models and /v1/chat/completions of the embedded server.

python -m experiments.serve --config=configs/serve.py [--config.model.folder=DIR]        without it the newest runs/*/hf
    [--config.port=8000] [--config.host=0.0.0.0] [--config.api_key=env:NAME]
python -m experiments.serve --config=configs/serve.py:8b --config.model.folder=DIR       a published checkpoint (or :2b)
"""

from ml_collections import ConfigDict

from configs import base

SCALES = base.SCALES


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The command's knobs at `scale`, which must be the model's."""
  if scale not in SCALES:
    raise ValueError(
      f'scale {scale!r}: wanted one of {", ".join(SCALES)}, as in --config=configs/serve.py:tiny'
    )
  trained = base.rl('8b' if scale == '2b' else scale)  # no learner shares the device here
  config = ConfigDict(
    {
      'name': 'paravt',
      'scale': scale,
      'model': {'folder': ''},
      'folder': 'runs/serve',  # the log of the server
      'think_prefix': trained.agent.think_prefix,
      'host': '127.0.0.1',
      'port': 8000,
      'api_key': '',
      'ready_timeout_s': trained.server.ready_timeout_s,
      'embedded': trained.server.embedded.to_dict(),
    }
  )
  if scale == 'tiny':
    config.embedded.lanes = ((512, 16), (2048, 4))
  return config.lock()
