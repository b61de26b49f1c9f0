"""Reasoning data for one's own long videos: split, caption, merge, ask, parse, rewrite (one
resumable pipeline).

python -m experiments.longvideo_reason --config=configs/longvideo_reason.py --config.videos=DIR --config.output=DIR \\
  --config.vision.url=http://HOST:PORT/v1 --config.vision.model=NAME --config.reasoner.url=... --config.reasoner.model=...
    [--config.steps=split,caption]     some of the six; the same command continues where it stopped

Train on what comes out:
python -m experiments.sft --config=configs/sft.py:8b --config.data.train="('DIR/paravt_sft_longvideoreason.parquet',)" \\
  --config.data.media_root=DIR_OF_VIDEOS
"""

from ml_collections import ConfigDict

CAPTION = (
  'These frames, each after its time, show one clip of a longer video. Describe in a few '
  'sentences what can be seen: people and '
  'things, what they do and in which order, the place, and any text on the screen. Say only '
  'what is visible.'
)
ASK = """Below are notes on a video of {duration} seconds: what is seen from one second to another, in order.

{captions}

Write one hard multiple-choice question about this video. It must take several steps of reasoning over different times of the \
video; a single moment, or general knowledge, must not be enough. Whoever answers sees the video and not these notes, so do not \
mention notes or captions, nor times in the question. Exactly one of four options is right; the others are plausible.
Reply with these four sections and nothing else:

QUESTION: the question, on one line
OPTIONS:
A. first option
B. second option
C. third option
D. fourth option
ANSWER: the letter alone
REASONS:
[start to end] what is seen there, in seconds as above, and what follows from it
[start to end] the next step, and so on until the answer is reached"""
REWRITE = """A question about a video, its right answer, and the reasons for it, step by step with the seconds that show it:

{question}
{options}
Answer: {answer}

{reasons}

Tell these reasons again as one fluent thought of somebody who watches the video and thinks aloud, in the order in which things \
become clear. Keep every fact and add none; keep a time where it matters, as [start to end] of above. Reply with that text alone."""


def get_config() -> ConfigDict:
  """The pipeline's knobs, locked."""
  return ConfigDict(
    {
      'seed': 0,
      'videos': '',  # folder of videos, at any depth
      'output': 'runs/longvideo_reason',
      'media_root': '',  # rows name videos by their path below it; '' is the folder of videos
      'steps': 'split,caption,merge,ask,parse,rewrite',
      'split': {
        'workers': 4,  # videos cut at once
        'clip_seconds': 10.0,
        'snap_seconds': 1.0,  # a cut moves to a key frame that near, and is then free of encoding
        'min_seconds': 2.0,  # a shorter rest joins the clip before it
        'max_fps': 30.0,  # of clips that are encoded again
        'crf': 23,
        'deadline_s': 300.0,  # for each clip
      },
      'caption': {
        'prompt': CAPTION,
        'send': 'frames',  # or 'video': a file:// address, for a server that reads this disk
        'frames': 10,
        'min_pixels': 1024,
        'max_pixels': 200704,  # 448 x 448
        'quality': 90,
        'max_tokens': 512,
        'temperature': 0.0,
        'min_chars': 20,
      },
      'ask': {
        'prompt': ASK,
        'max_tokens': 16384,  # reasoning models think before they write
        'temperature': 0.6,
        'max_missing': 0.1,  # share of clips without a caption
      },
      'rewrite': {'prompt': REWRITE, 'max_tokens': 8192, 'temperature': 0.6, 'min_chars': 40},
      # the agent's limits, for the SFT rows that crop what the reasons cite
      'trace': {'calls': True, 'max_parallel': 5, 'max_rounds': 3},
      'vision': _server(),  # captions
      'reasoner': _server(),  # asks and rewrites
      'video': {'workers': 4, 'deadline_s': 60.0, 'backend': 'pyav'},
    }
  ).lock()


def _server() -> dict:
  """An OpenAI-compatible server."""
  return {
    'url': '',  # up to and without /chat/completions
    'model': '',  # its name there
    'api_key': '',
    'timeout_s': 600.0,
    'retries': 5,
    'backoff_s': 1.0,
    'max_backoff_s': 60.0,
    'concurrency': 32,
    'max_reply_bytes': 4_000_000,
    'max_failures': 20,  # requests in a row that failed after all retries: the run ends
  }
