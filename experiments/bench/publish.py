"""How fast weights travel: saved, verified and loaded, converted for a Hugging Face server, each
against a plain copy.
"""

import dataclasses
import pathlib
import shutil
import tempfile
from typing import Any

import jax
import ml_dtypes
import numpy as np

from experiments.bench.measuring import timed
from paravt_jax import files
from paravt_jax.models.qwen3_vl import config as sizes
from paravt_jax.models.qwen3_vl import model
from paravt_jax.serving import flat, manifest, publish, reading, staging

GB = 1e9
REPEATS = 4  # the best one counts: the first also pays for the imports and for the page cache


def measure(bytes_: int, folder: pathlib.Path) -> dict[str, float]:
  """Times every stage of one version on random bfloat16 weights shaped like a 2B text decoder, cut
  to about `bytes_`.

  Args:
    bytes_: of the weights. folder: where versions and the copy are written; made when missing, left
    empty. Staging goes to memory, as in a run.

  Returns:
    GB/s: save (hash, write, rename), load (read, hash, compare), convert (loaded arrays ->
    safetensors in memory), stage (load and convert), copy (shutil.copytree of the published
    folder), memory_copy (the same into memory, as convert writes it), write (the form in memory:
    copy, hash), map (hash and compare where it lies), flat_copy (shutil.copyfile of that file, in
    memory), and `bytes`. ratio_to_copy is the seconds of write and map over those of flat_copy,
    files_ratio_to_copy those of save and load over those of copy.
  """
  config, params = made(bytes_)
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
  folder.mkdir(parents=True, exist_ok=True)
  with (
    tempfile.TemporaryDirectory(dir=folder) as scratch,
    tempfile.TemporaryDirectory(dir=staging.memory_folder(2 * size)) as memory,
  ):
    work, fast = pathlib.Path(scratch), pathlib.Path(memory)
    published, mapped = work / 'weights' / '1', fast / '1'

    def write() -> None:
      with files.replacing_folder(mapped) as part:
        flat.write(part, manifest.Manifest(1, {}, {}, None, {}), manifest.leaves(params))

    steps = {
      'save': lambda: publish.save(work / 'weights', 1, params, keep=1),
      'copy': lambda: shutil.copytree(published, work / 'copy'),
      'load': lambda: reading.load(published, abstract),
      'convert': lambda: staging.write_tensors(fast / 'staged', config, params),
      'memory_copy': lambda: shutil.copytree(published, fast / 'copy'),
      'stage': lambda: staging.write_tensors(
        fast / 'staged', config, reading.load(published, abstract)[1]
      ),
      'write': write,
      'flat_copy': lambda: shutil.copyfile(mapped / flat.FILE, fast / 'copied'),
      'map': lambda: reading.load(mapped, abstract),
    }
    seconds = dict.fromkeys(steps, float('inf'))
    for _ in range(REPEATS):
      for name, step in steps.items():
        for left in (work / 'copy', fast / 'copy', fast / 'staged'):
          shutil.rmtree(left, ignore_errors=True)
        (fast / 'copied').unlink(missing_ok=True)
        (fast / 'staged').mkdir()
        seconds[name] = min(seconds[name], timed(step))
  return {
    **{f'{name}_gb_per_s': size / GB / taken for name, taken in seconds.items()},
    'ratio_to_copy': (seconds['write'] + seconds['map']) / seconds['flat_copy'],
    'files_ratio_to_copy': (seconds['save'] + seconds['load']) / seconds['copy'],
    'bytes': float(size),
  }


def made(bytes_: int) -> tuple[sizes.Config, dict[str, Any]]:
  """A 2B decoder with fewer layers and a smaller vocabulary, about `bytes_` in bfloat16, without
  its vision tower.
  """
  full = sizes.PUBLISHED['2b']()
  per_layer = model_bytes(
    dataclasses.replace(full, text=dataclasses.replace(full.text, layers=4))
  ) - model_bytes(dataclasses.replace(full, text=dataclasses.replace(full.text, layers=3)))
  layers = max(3, round(bytes_ * 0.8 / per_layer))
  vocab = max(64, int(bytes_ - layers * per_layer) // (2 * full.text.width) // 64 * 64)
  config = dataclasses.replace(
    full, text=dataclasses.replace(full.text, layers=layers, vocab=vocab)
  )
  rng = np.random.default_rng(0)
  fill = lambda leaf: (rng.integers(0, 0x4000, leaf.shape, np.uint16)).view(ml_dtypes.bfloat16)
  return config, {'text': jax.tree.map(fill, model.abstract_params(config)['text'])}


def model_bytes(config: sizes.Config) -> int:
  """Bytes of the text decoder in bfloat16."""
  return sum(2 * leaf.size for leaf in jax.tree.leaves(model.abstract_params(config)['text']))


if __name__ == '__main__':
  with tempfile.TemporaryDirectory() as place:
    for key, value in measure(10**9, pathlib.Path(place)).items():
      print(f'{key:24s} {value:.3g}')
