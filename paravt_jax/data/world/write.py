"""Writes a world in the layout of the real corpus, so that it is read by the real loading code.

<folder>/source/selftrace/selftrace_<n>.zip  videos under their sentinel paths,
                                             longvt_source/selftrace_<n>/world00000.mp4
<folder>/paravt_sft_<kind>.parquet           column `messages`, JSON text
<folder>/paravt_rl_world.parquet             columns prompt, videos, extra_info
<folder>/paravt_rl_heldout.parquet           the same columns
<folder>/manifest.json                       fingerprint, seed, counts and options; written last
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import zipfile
from collections.abc import Callable, Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from paravt_jax import files
from paravt_jax.data.world import corpus, render
from paravt_jax.data.world.scene import Scene, SceneOptions
from paravt_jax.errors import DataError

VERSION = 4  # increase when the same options give other bytes
MANIFEST = 'manifest.json'
MESSAGE = pa.struct([('role', pa.string()), ('content', pa.string())])
RL_SCHEMA = pa.schema(
  [
    ('prompt', pa.list_(MESSAGE)),
    ('videos', pa.list_(pa.struct([('video', pa.string())]))),
    ('extra_info', pa.string()),
  ]
)
SFT_SCHEMA = pa.schema([('messages', pa.string())])
ROW_GROUP = 256


@dataclasses.dataclass(frozen=True)
class World:
  """The paths of the files of a world."""

  folder: pathlib.Path
  archives: tuple[pathlib.Path, ...]
  sft: tuple[pathlib.Path, ...]
  rl: pathlib.Path  # rows for training
  heldout: pathlib.Path  # rows for evaluation


def fingerprint(options: corpus.WorldOptions, seed: int) -> str:
  """Returns a hex digest of everything that determines a world."""
  return files.digest_json({'version': VERSION, 'seed': seed, **dataclasses.asdict(options)})


def write(
  folder: pathlib.Path | str,
  options: corpus.WorldOptions,
  seed: int,
  *,
  workers: int,
  progress: Callable[[int, int], None] | None = None,
) -> World:
  """Writes the world into `folder`, unless it is already there.

  A temporary folder next to `folder` is renamed at the end, so a killed run leaves no partial
  world.

  Args:
    workers: number of processes that render videos; 0 renders in this process.
    progress: called as progress(videos done, all videos).

  Raises:
    ConfigError: the options are invalid.
    DataError: `folder` contains something other than this world, or cannot be written (full disk).
  """
  folder, wanted = pathlib.Path(folder), fingerprint(options, seed)
  corpus.check(options)
  if folder.exists():
    return _existing(folder, wanted)
  partial = folder.with_name(f'.{folder.name}.partial')
  shutil.rmtree(partial, ignore_errors=True)
  try:
    _write_all(partial, options, seed, wanted, workers, progress)
    os.replace(partial, folder)
  except OSError as error:
    shutil.rmtree(partial, ignore_errors=True)
    raise DataError(
      f'{folder}: could not be written ({error}); nothing was left behind, free space (350 '
      'videos take about 100 MB) or name another place'
    ) from error
  return open_world(folder)


def _write_all(partial, options, seed, wanted, workers, progress) -> None:
  """Writes every file of the world into `partial`, the manifest last."""
  partial.mkdir(parents=True)
  drawn = corpus.draw_scenes(options, seed)
  _write_videos(
    partial, drawn, options, workers, progress, lambda: _write_rows(partial, options, drawn, seed)
  )
  counts = {
    'videos': len(drawn),
    'rl': options.corpus.rl_tasks,
    'heldout': options.corpus.heldout_tasks,
    **{f'sft_{kind}': rows for kind, rows in options.corpus.sft_rows.items()},
  }
  manifest = {
    'fingerprint': wanted,
    'seed': seed,
    'counts': counts,
    'options': dataclasses.asdict(options),
  }
  (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + '\n')


def open_world(folder: pathlib.Path | str) -> World:
  """Returns the files of a complete world. Raises DataError if it has no manifest."""
  folder = pathlib.Path(folder)
  if not (folder / MANIFEST).is_file():
    raise DataError(
      f'{folder}: got no {MANIFEST}, wanted a written world; run data.world.write.write, or '
      'name another folder'
    )
  return World(
    folder,
    tuple(sorted((folder / 'source').rglob('*.zip'))),
    tuple(sorted(folder.glob('paravt_sft_*.parquet'))),
    folder / 'paravt_rl_world.parquet',
    folder / 'paravt_rl_heldout.parquet',
  )


def _existing(folder: pathlib.Path, wanted: str) -> World:
  world = open_world(folder)
  found = json.loads((folder / MANIFEST).read_text()).get('fingerprint')
  if found != wanted:
    raise DataError(
      f'{folder}: got a world with fingerprint {found}, wanted {wanted} (other options or '
      'another seed); name another folder, or remove this one'
    )
  return world


def _write_videos(folder, drawn, options, workers, progress, meanwhile) -> None:
  """Renders the archives, in worker processes if any, while this process runs `meanwhile`."""
  per, home = options.corpus.videos_per_archive, folder / 'source' / 'selftrace'
  home.mkdir(parents=True)
  # one job per archive: (path, scenes, member paths, options)
  jobs = []
  for i in range(0, len(drawn), per):
    part = drawn[i : i + per]
    members = [corpus.sentinel(i + j, options.corpus) for j in range(len(part))]
    jobs.append((home / f'selftrace_{i // per + 1}.zip', part, members, options.scene))
  done = 0
  # render in this process
  if not workers:
    meanwhile()
    for job in jobs:
      done += write_archive(*job)
      _report(progress, done, len(drawn))
    return
  # render in worker processes, which ignore Ctrl-C
  context = multiprocessing.get_context('spawn')
  pool = concurrent.futures.ProcessPoolExecutor(
    workers, context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
  )
  try:
    waiting = [pool.submit(write_archive, *job) for job in jobs]
    meanwhile()
    for future in concurrent.futures.as_completed(waiting):
      done += future.result()
      _report(progress, done, len(drawn))
  finally:
    pool.shutdown(cancel_futures=True)


def _report(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
  if progress is not None:
    progress(done, total)


def write_archive(
  path: pathlib.Path, scenes: Iterable[Scene], members: Iterable[str], options: SceneOptions
) -> int:
  """Renders scenes into a zip archive under the member paths and returns their number.

  The same scenes give the same bytes.
  """
  count = 0
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED) as archive:
    for scene, member in zip(scenes, members):
      archive.writestr(zipfile.ZipInfo(member, (2000, 1, 1, 0, 0, 0)), render.mp4(scene, options))
      count += 1
  return count


def _write_rows(
  folder: pathlib.Path, options: corpus.WorldOptions, drawn: list[Scene], seed: int
) -> None:
  """Writes every parquet file."""
  maker, sizes = corpus.Writer(options, drawn, seed), options.corpus
  parts = {
    'world': (sizes.rl_tasks, 0, sizes.videos),
    'heldout': (sizes.heldout_tasks, sizes.videos, sizes.heldout_videos),
  }
  for name, (count, first, videos) in parts.items():
    rows = [corpus.rl_row(task) for task in maker.tasks(count, first, videos, name)]
    _parquet(folder / f'paravt_rl_{name}.parquet', rows, RL_SCHEMA)
  for kind in sizes.sft_rows:
    rows = [
      {'messages': json.dumps(messages, ensure_ascii=False)} for messages in maker.sft_rows(kind)
    ]
    _parquet(folder / f'paravt_sft_{kind}.parquet', rows, SFT_SCHEMA)


def _parquet(path: pathlib.Path, rows: list[dict], schema: pa.Schema) -> None:
  pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=ROW_GROUP)
