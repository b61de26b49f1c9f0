"""The rows of a run, from the synthetic world or from files, and the rows left out."""

import collections
import dataclasses
import glob
import pathlib
import sys
from collections.abc import Sequence

from paravt_jax.data import fields, rows, unpack
from paravt_jax.data.world import write
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.orchestrator.options import WorldOptions
from paravt_jax.orchestrator.parts import bar
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.orchestrator.run_folder import fingerprint
from paravt_jax.types import Task


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Where the rows and media of a run are."""

  train: tuple[pathlib.Path, ...]
  heldout: tuple[pathlib.Path, ...]
  media_root: pathlib.Path


def make_world(section: WorldOptions) -> tuple[write.World, pathlib.Path]:
  """Writes and unpacks the synthetic corpus under runs/worlds, unless it exists.

  Returns (world, media root).
  """
  options = section.made
  folder = pathlib.Path('runs/worlds') / fingerprint(write.fingerprint(options, section.seed))
  folder.parent.mkdir(parents=True, exist_ok=True)
  count = options.corpus.videos + options.corpus.heldout_videos
  with bar(count, 'world: videos', show=not folder.exists()) as progress:

    def show(done: int, _: int) -> None:
      progress.update(done - progress.n)

    world = write.write(
      folder,
      options,
      section.seed,
      workers=section.workers,
      progress=show,
    )
    progress.update(progress.total - progress.n)
  root = folder.with_name(folder.name + '_media')
  unpack.unpack(folder / 'source', root)
  return world, root


def rl_corpus(recipe: RLRecipe) -> Corpus:
  """Returns the Parquet files and the media root of an RL recipe."""
  if recipe.data.kind == 'world' and recipe.world is not None:
    world, root = make_world(recipe.world)
    heldout = (world.heldout,) if recipe.world.corpus.heldout_tasks else ()
    return Corpus((world.rl,), heldout, root)
  data = recipe.data
  # Without held-out files there is no evaluation.
  heldout = existing(data.eval, 'data.eval') if data.eval else ()
  return Corpus(existing(data.train, 'data.train'), heldout, pathlib.Path(data.media_root))


def existing(files: tuple[str, ...], knob: str) -> tuple[pathlib.Path, ...]:
  """Returns the files of a knob.

  Each entry is a path or a pattern such as 'rows/paravt_sft_*.parquet'. A pattern is replaced by
  its matches in their order.

  Raises:
    ConfigError: the knob is empty; the message names it.
    DataError: a path does not exist, or a pattern has no match; the message names the knob.
  """
  if not files:
    raise ConfigError(
      f'--config.{knob} is empty: wanted parquet files, as in '
      f'--config.{knob}="(\'rows/paravt_*.parquet\',)"'
    )
  found: list[pathlib.Path] = []
  for file in files:
    matches = [file] if pathlib.Path(file).is_file() else sorted(glob.glob(file))
    if not matches:
      raise DataError(f'--config.{knob}: {file} does not exist; check the path')
    found += map(pathlib.Path, matches)
  return tuple(dict.fromkeys(found))


@dataclasses.dataclass(frozen=True)
class Questions:
  """The RL rows of a run, and the number of broken rows left out, by reason."""

  train: list[Task]
  heldout: list[Task]
  skipped: collections.Counter[str]

  def metrics(self) -> dict[str, float]:
    """Returns the counts of broken rows as metrics."""
    return {
      f'{fields.SKIPPED}/reason={reason}': float(count) for reason, count in self.skipped.items()
    }


def rl_questions(recipe: RLRecipe, corpus: Corpus, folder: pathlib.Path) -> Questions:
  """Returns the rows of a corpus, with media paths resolved.

  The filters apply to the training rows only. All held-out rows are read, because they measure. The
  first eval.questions of them are used. The run folder's skipped_rows.txt lists the broken rows
  that were left out. Raises DataError as `rows.rl_tasks` does.
  """
  data, counts, listed = recipe.data, collections.Counter(), []
  options = fields.RowOptions(
    data.skip_bad_rows, require_media=True, follow_links=data.follow_links
  )
  wanted = rows.RowFilter(data.question_types, data.sources, data.max_rows, data.max_bad_share)
  every = dataclasses.replace(rows.EVERY, max_bad_share=data.max_bad_share)

  def read(files: Sequence[pathlib.Path], which: rows.RowFilter) -> list[Task]:
    if not files:
      return []
    root = corpus.media_root
    return rows.rl_tasks(files, root, options, counts, listed, which, recipe.seed)

  try:
    heldout = recipe.eval.questions
    return Questions(read(corpus.train, wanted), read(corpus.heldout, every)[:heldout], counts)
  finally:  # also after an error: above the allowed share the list shows what to fix
    list_skipped(folder / 'skipped_rows.txt', counts, listed)


def list_skipped(
  path: pathlib.Path, counts: collections.Counter[str], listed: Sequence[str]
) -> None:
  """Writes one line per broken row to a file, and prints how many there are.

  Without broken rows it removes the file.
  """
  path.unlink(missing_ok=True)
  if listed:
    path.write_text(''.join(f'{line}\n' for line in listed), 'utf-8', 'backslashreplace')
    print(
      f'data: left out {sum(counts.values())} broken rows ({fields.format_counts(counts)}), listed '
      f'in {path}',
      file=sys.stderr,
    )
