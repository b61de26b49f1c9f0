"""Rows as the packer lays them out, and random queries, keys and values."""

import numpy as np


def rows(*documents_of_row, length):
  """Returns (segments, branches) int32[rows, length].

  A row is a list of documents, a document the lengths of its prefix and of each branch.
  """
  segments = np.zeros((len(documents_of_row), length), np.int32)
  branches = np.zeros_like(segments)
  for row, documents in enumerate(documents_of_row):
    at = 0
    for segment, lengths in enumerate(documents, start=1):
      for branch, count in enumerate(lengths):
        segments[row, at : at + count] = segment
        branches[row, at : at + count] = branch
        at += count
    assert at <= length
  return segments, branches


# ragged documents, one-token branches and prefixes, a document without prefix, an empty row, a row
# filled to its end, and padding
MIXED = rows(
  [(70, 1, 90, 1), (1,), (33, 5)],
  [(1, 1, 1), (150, 20, 30), (0, 12, 9)],
  [],
  [(200, 50, 50)],
  length=300,
)


def random(segments, heads=4, kv_heads=2, width=16, seed=0):
  rng = np.random.default_rng(seed)
  return tuple(
    rng.normal(size=(*segments.shape, h, width)).astype(np.float32)
    for h in (heads, kv_heads, kv_heads)
  )


# the packed step of a published size: a prompt of 4,200 tokens and 8 rollouts of 900
PACKED_STEP = rows([(4200, *[900] * 8)], length=32768)
