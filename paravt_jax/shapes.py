"""Axis letters in array names, and a check of them while JAX traces.

An array's name ends in one capital letter per axis: `logprob_ST` has sequences and tokens. A digit
is an axis of exactly that size: `grids_BN2`. Each letter has one meaning in the whole project:

  A  axes of M-RoPE: time, height and width
  B  rows of a batch that the model runs on
  C  numbers of a patch: 3 channels of 16 x 16 pixels
  D  width of the text decoder
  E  episodes
  F  width of an attention head
  G  query heads that share a key head
  H  query heads
  I  images of all rows together
  J  tapped layers of the vision tower (DeepStack)
  K  key heads
  L  layers
  M  micro-batches of a step
  N  image slots of a row
  P  frames of a patch: 1 for an image, 2 for a native video
  Q  queries of one block, of all query heads that share a key head
  R  packed rows of a micro-batch
  S  sequences; in a server, the contexts in its slots
  T  tokens of a row or of a chunk
  U  tokens that attention looks at: its keys and values
  V  vocabulary entries
  W  width of the vision tower
  X  patches of an image
  Y  merged tokens of an image
  Z  the four corners of an interpolation

An axis that has no letter is written as a word behind an underscore: `BT_page`. A prompt and the
episodes of its group have no axis of their own: episodes stand in one row, `advantage_E`.
"""

from typing import Any

AXES = {
  'A': 'axes of M-RoPE: time, height and width',
  'B': 'rows of a batch that the model runs on',
  'C': 'numbers of a patch: 3 channels of 16 x 16 pixels',
  'D': 'width of the text decoder',
  'E': 'episodes',
  'F': 'width of an attention head',
  'G': 'query heads that share a key head',
  'H': 'query heads',
  'I': 'images of all rows together',
  'J': 'tapped layers of the vision tower (DeepStack)',
  'K': 'key heads',
  'L': 'layers',
  'M': 'micro-batches of a step',
  'N': 'image slots of a row',
  'P': 'frames of a patch: 1 for an image, 2 for a native video',
  'Q': 'queries of one block, of all query heads that share a key head',
  'R': 'packed rows of a micro-batch',
  'S': 'sequences; in a server, the contexts in its slots',
  'T': 'tokens of a row or of a chunk',
  'U': 'tokens that attention looks at: its keys and values',
  'V': 'vocabulary entries',
  'W': 'width of the vision tower',
  'X': 'patches of an image',
  'Y': 'merged tokens of an image',
  'Z': 'the four corners of an interpolation',
}


def check(**arrays: Any) -> dict[str, int]:
  """Checks that arrays whose names end in the same axis agree on its size.

  Args:
    **arrays: `name_AXES=array`. The axes are the last capital letters and digits of the name and
      the words behind them. A digit is the size of its axis.

  Returns:
    The size of every letter and word.

  Raises:
    ValueError: a letter is not in AXES, the rank differs from the name, a size differs from its
      digit, or two arrays disagree: "advantage_S has S=3 (shape (3,)), but logprob_ST has S=2".
  """
  sizes: dict[str, tuple[int, str]] = {}
  for name, array in arrays.items():
    axes, shape = axes_of(name), tuple(array.shape)
    if len(axes) != len(shape):
      raise ValueError(f'{name} names {len(axes)} axes, but has shape {shape}')
    for axis, size in zip(axes, shape):
      if axis.isdigit() and size != int(axis):
        raise ValueError(f'{name} has an axis of size {size} (shape {shape}), wanted {axis} there')
      if axis in sizes and sizes[axis][0] != size:
        raise ValueError(
          f'{name} has {axis}={size} (shape {shape}), but {sizes[axis][1]} has '
          f'{axis}={sizes[axis][0]}'
        )
      if not axis.isdigit():
        sizes.setdefault(axis, (size, name))
  return {axis: size for axis, (size, _) in sizes.items()}


def axes_of(name: str) -> tuple[str, ...]:
  """The axes that an array's name ends in: 'bias_BT_page' gives ('B', 'T', 'page').

  Raises:
    ValueError: the name has no capital letters behind an underscore, or one that is not in AXES.
  """
  parts = name.split('_')
  at = max((i for i, part in enumerate(parts) if i and part.isupper()), default=None)
  if at is None:
    raise ValueError(f'{name}: wanted a name that ends in capital axis letters, such as logprob_ST')
  unknown = [axis for axis in parts[at] if axis not in AXES and not axis.isdigit()]
  if unknown:
    raise ValueError(
      f'{name}: axis letter {unknown[0]} is not in the table, wanted one of {"".join(AXES)}; '
      'take the letter that means this axis, or add one to AXES in paravt_jax/shapes.py'
    )
  return (*parts[at], *parts[at + 1 :])
