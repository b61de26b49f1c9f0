"""One question on one video, with the full agent: overview, parallel crops, answer.

python -m experiments.ask --config=configs/ask.py --config.video=FILE --config.question="What appears at 41?"
    [--config.model.folder=DIR]        a Hugging Face folder; without it the newest runs/*/hf
    [--config.html=out.html]           the same as a page, with frames and crops on the timeline
python -m experiments.ask --config=configs/ask.py:8b --config.model.folder=DIR ...       a published checkpoint (or :2b)
"""

from ml_collections import ConfigDict

from configs import base

SCALES = base.SCALES


def get_config(scale: str = 'tiny') -> ConfigDict:
  """The command's knobs at `scale`, which must be the model's; the agent is the one that RL
  trains.
  """
  if scale not in SCALES:
    raise ValueError(
      f'scale {scale!r}: wanted one of {", ".join(SCALES)}, as in --config=configs/ask.py:tiny'
    )
  trained = base.rl('8b' if scale == '2b' else scale)  # no learner shares the device here
  config = ConfigDict(
    {
      'name': 'ask',
      'scale': scale,
      'seed': 0,
      'video': '',
      'question': '',
      # oe: in a few words; mcq: the letter of an option that the question holds; tvg: [start, end]
      'question_type': 'oe',
      'html': '',
      'frames': trained.frames.frames,  # of the overview
      'model': {'folder': ''},
      'folder': 'runs/ask',  # logs of the server
      # as `video` of the RL recipes: how frames are decoded and sized
      'decode': {**trained.video.to_dict(), 'workers': 2},
      'sampling': {
        **trained.sampling.to_dict(),
        'temperature': 0.0,
      },  # greedy; above 0, `seed` draws
      'agent': trained.agent.to_dict(),
      'subagent': trained.subagent.to_dict(),
      'server': trained.server.to_dict(),
      'client': trained.client.to_dict(),
    }
  )
  if scale == 'tiny':
    config.frames = 16
  else:
    # a server of our own beside nothing else, which holds one agent and its sub-agents at a time
    config.server.kind = 'embedded'
    config.server.embedded.update(
      {'lanes': ((8192, 5), (32768, 1)), 'pages': 256, 'image_slots': 512}
    )
  return config.lock()
