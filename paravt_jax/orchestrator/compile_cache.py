"""The folder of compiled programs, which the learner, SFT, evaluation and servers share."""

import pathlib

import jax

FOLDER = pathlib.Path('runs/compile_cache')  # below the working directory


def use(folder: pathlib.Path = FOLDER) -> pathlib.Path:
  """Makes JAX keep compiled programs, so that a second start does not compile them again.

  A folder that the user chose (JAX_COMPILATION_CACHE_DIR) stays.

  Returns:
    The folder in use, absolute.
  """
  chosen = jax.config.values['jax_compilation_cache_dir']
  if chosen is None:
    chosen = str(folder.absolute())
    jax.config.update('jax_compilation_cache_dir', chosen)
  return pathlib.Path(chosen)
