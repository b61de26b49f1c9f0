"""Axis letters in array names, checked while tracing.

Letters: P prompts, G episodes of a group, E episodes, R packed rows, S sequences, T tokens, V
vocabulary, D width, H query heads, K key heads, F head width, N images, X patches of an image, Y
merged tokens of an image, C channels of a patch, L layers, M micro-batches.
"""


def check(**arrays) -> dict[str, int]:
  """Checks that arrays whose names end in the same axis letter agree on its size.

  Args:
    **arrays: `name_AXES=array`; the axes are the capital letters after the last underscore.

  Returns:
    The size of every letter.

  Raises:
    ValueError: ranks differ from the name, or two arrays disagree: "advantage_S has S=3 (shape
    (3,)), but logprob_ST has S=2".
  """
  sizes: dict[str, tuple[int, str]] = {}
  for name, array in arrays.items():
    axes = name.rsplit('_', 1)[-1]
    shape = tuple(array.shape)
    if not axes.isupper():
      raise ValueError(
        f'{name}: wanted a name that ends in capital axis letters, such as logprob_ST'
      )
    if len(axes) != len(shape):
      raise ValueError(f'{name} names {len(axes)} axes, but has shape {shape}')
    for letter, size in zip(axes, shape):
      if letter in sizes and sizes[letter][0] != size:
        raise ValueError(
          f'{name} has {letter}={size} (shape {shape}), but {sizes[letter][1]} has '
          f'{letter}={sizes[letter][0]}'
        )
      sizes.setdefault(letter, (size, name))
  return {letter: size for letter, (size, _) in sizes.items()}
