"""Rows of an SFT recipe as the model will see them, on one HTML page.

python -m experiments.preview --config=configs/sft.py[:scale] --row=SOURCE:NUMBER[,SOURCE:NUMBER...] --output=preview.html

SOURCE is a file's name without paravt_sft_ and .parquet, as in `sources` of the recipe, or a source
of the manifest; NUMBER is the row in it, from 0. The last line on standard output is the page.
"""

import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from experiments import launch
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, fields
from paravt_jax.data.fields import Broken
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.orchestrator import checks, parts, sft_data
from paravt_jax.orchestrator.recipes import SFTRecipe
from paravt_jax.report import preview

_ROW = flags.DEFINE_list(
  'row', [], 'Which rows: SOURCE:NUMBER, or several with commas between them.'
)
_OUTPUT = flags.DEFINE_string('output', 'preview.html', 'The page to write.')


def main(recipe: SFTRecipe) -> None:
  """Writes the page and prints its path."""
  print(page(recipe, _ROW.value, pathlib.Path(_OUTPUT.value)))


def page(recipe: SFTRecipe, rows: Sequence[str], out: pathlib.Path) -> pathlib.Path:
  """Writes the page of some rows. Raises ConfigError or DataError for a row that does not exist."""
  checks.check_sft(recipe)
  if not rows:
    raise ConfigError('--row is empty: wanted SOURCE:NUMBER, as in --row=trace:0')
  if not out.name or out.is_dir():
    raise ConfigError(f'--output={out}: wanted a file to write, as in --output=preview.html')
  # Check every row before any video is decoded.
  wanted = [parse_row(row) for row in rows]
  sources = {source.name: source for source in sft_data.sources(recipe)}
  for name, number in wanted:
    _check(sources, name, number)
  tok = ChatTokenizer.load(recipe.model.folder or parts.tiny_model(recipe.seed))
  options = sft_data.frame_options(recipe)
  train = recipe.train
  limits = preview.Limits(
    train.row_tokens, train.row_images, train.image_patches, train.row_large_images
  )
  # A row that cannot be read gets an entry with the reason.
  looks = []
  with parts.decode_pool(recipe.video) as pool:
    for name, number in wanted:
      shown = f'{name}:{number}'
      try:
        conversation = sources[name].conversations[number]
      except (Broken, DataError) as error:
        looks.append(preview.unreadable(shown, name, fields.reason_of(error), str(error)))
        continue
      looks.append(preview.view_row(shown, conversation, tok, pool, options, limits))
  return preview.write(out, f'rows of {recipe.name}:{recipe.scale}', looks, limits)


def parse_row(row: str) -> tuple[str, int]:
  """('trace', 12) for 'trace:12'. Raises ConfigError."""
  name, _, number = row.strip().rpartition(':')
  if not name or not re.fullmatch('[0-9]+', number):
    raise ConfigError(f'--row={row}: wanted SOURCE:NUMBER, as in --row=trace:0')
  return name, int(number)


def _check(sources: Mapping[str, batches.Source], name: str, number: int) -> None:
  if name not in sources:
    raise ConfigError(
      f'--row={name}:{number}: there is no source {name!r}, only {", ".join(sorted(sources))}'
    )
  if number >= len(sources[name].conversations):
    count = len(sources[name].conversations)
    raise ConfigError(
      f'--row={name}:{number}: {name} has {count} rows, wanted one from 0 to {count - 1}'
    )


if __name__ == '__main__':
  sys.exit(launch.run(main, SFTRecipe))
