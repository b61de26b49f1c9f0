"""Runnable pages: the loop of RL, and how to ask, read, reward, and extend. Their shared flag."""

from absl import flags

MODEL = flags.DEFINE_string('model', '', 'A Hugging Face folder; the random tiny model without.')
