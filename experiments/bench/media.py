"""What the data suite measures on, generated once into its folder: a clip, archives, SFT rows in
the published schema.
"""

import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

from experiments.bench.recipe import ClipBench, Mix
from paravt_jax import seeds
from paravt_jax.options import to_dict
from paravt_jax.orchestrator.run_folder import fingerprint
from paravt_jax.testing import clips

BUCKET = 'longvt_source/selftrace_0'
_VERSION = 1  # of what is generated; a new number generates it again
_TEXTURE = (3, 90, 160)  # times as large as a frame, and its coarseness


def clip(folder: pathlib.Path, knobs: ClipBench) -> pathlib.Path:
  """An H.264 mp4 of a camera that wanders over a textured ground, with grain, so that its bit rate
  is a real video's.
  """

  def write(path: pathlib.Path) -> None:
    rng, size = np.random.default_rng(0), (knobs.height, knobs.width)
    ground = Image.fromarray(rng.integers(0, 256, (*_TEXTURE[1:], 3), np.uint8))
    wide = (
      np.asarray(
        ground.resize((size[1] * _TEXTURE[0], size[0] * _TEXTURE[0]), Image.Resampling.BICUBIC)
      )
      // 2
      + 50
    )
    grain = rng.integers(0, knobs.grain, (8, *size, 3), np.uint8)

    def frame(i: int) -> np.ndarray:
      y, x = (int(side * (1 + np.sin(i / period))) for side, period in zip(size, (190, 230)))
      return wide[y : y + size[0], x : x + size[1]] + grain[i % len(grain)]

    clips.make_clip(path, knobs.seconds, knobs.fps, size, frame, knobs.gop)

  return _once(folder / f'clip-{_mark(to_dict(knobs))}.mp4', write)


def archives(folder: pathlib.Path, kind: str, total: int, count: int) -> list[pathlib.Path]:
  """`count` zip archives that hold about `total` bytes together, every second member deflated, the
  others stored.

  Args:
    folder: where they are kept. kind: jpgs (5 to 50 KB each) or mp4s (8 MB each). total: bytes of
    the members. count: of archives, of about the same size.
  """
  sizes = (5_000, 50_000) if kind == 'jpgs' else (8_000_000, 8_000_001)

  def write(path: pathlib.Path, part: int) -> None:
    rng, left, number = seeds.rng(0, 'archive', kind, count, part), total // count, 0
    with zipfile.ZipFile(path, 'w', compresslevel=1) as archive:
      while left > 0:
        # fifteen sixteenths of the byte values: as little as a jpg shrinks, the decompressor has
        # its work to do
        data = rng.integers(0, 240, int(rng.integers(*sizes)), np.uint8).tobytes()
        method = zipfile.ZIP_DEFLATED if number % 2 else zipfile.ZIP_STORED
        archive.writestr(
          f'{BUCKET}/{kind}{part}/{number // 1000:03d}/{number:06d}.{kind[:-1]}', data, method
        )
        left, number = left - len(data), number + 1

  mark = _mark(kind, total, count)
  return [
    _once(folder / f'{mark}-{kind}-{part}.zip', lambda path, part=part: write(path, part))
    for part in range(count)
  ]


def make_images(folder: pathlib.Path, count: int, tokens: tuple[int, int]) -> list[pathlib.Path]:
  """JPEGs of between `tokens` merged tokens each, evenly spread, of several shapes."""
  folder.mkdir(parents=True, exist_ok=True)

  def write(path: pathlib.Path, n: int, area: float) -> None:
    wide = max(1, round(np.sqrt(area) * (0.75, 1.0, 4 / 3)[n % 3]))
    data = np.random.default_rng(n).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(data).resize((32 * wide, 32 * max(1, round(area / wide)))).save(path, 'JPEG')

  files = [folder / f'{n:03d}-{_mark(tokens, count)}.jpg' for n in range(count)]
  areas = np.linspace(*tokens, count).tolist()
  return [_once(file, lambda path, n=n: write(path, n, areas[n])) for n, file in enumerate(files)]


def conversation(
  video: str | None, image: str | None, frames: int, window: tuple[float, float] | None, tokens: int
) -> list[dict]:
  """The messages of a row: one video (its number of frames, or a window) or one image, and about
  `tokens` tokens of text.
  """
  said = max(1, tokens // 3)
  media = {'type': 'image_url', 'image_url': {'url': image}}
  if video is not None:
    where = (
      {'nframes': frames} if window is None else {'video_start': window[0], 'video_end': window[1]}
    )
    media = {'type': 'video_url', 'video_url': {'url': video, **where}}
  return [
    {'role': 'user', 'content': [media, {'type': 'text', 'text': words(tokens - said)}]},
    {'role': 'assistant', 'content': [{'type': 'text', 'text': words(said)}]},
  ]


def words(tokens: int) -> str:
  """Text that the tiny tokenizer turns into `tokens` tokens: numbers and the blanks between
  them.
  """
  return ' '.join(str(100 + i % 100) for i in range((tokens + 1) // 2)) + (
    ' ' if tokens and tokens % 2 == 0 else ''
  )


def mixed_rows(
  count: int,
  knobs: Mix,
  videos: Callable[[int], str],
  images: Sequence[str],
  seconds: float,
  seed: int,
) -> list[list[dict]]:
  """Rows of the stated mix. Half of the videos are seen whole, the others in a window at one frame
  a second.

  Args:
    count: of rows. knobs: frames, text, image_share. videos: row number -> media value. images:
    media values to choose from. seconds: length of the videos. seed: of all draws.
  """
  rows = []
  for n in range(count):
    rng = seeds.rng(seed, 'bench row', n)
    frames, tokens = (int(rng.integers(low, high + 1)) for low, high in (knobs.frames, knobs.text))
    if rng.random() < knobs.image_share:
      rows.append(conversation(None, images[int(rng.integers(len(images)))], 0, None, tokens))
      continue
    start = (
      float(rng.uniform(0, seconds - frames)) if rng.random() < 0.5 and frames < seconds else None
    )
    rows.append(
      conversation(
        videos(n), None, frames, None if start is None else (start, start + frames - 0.5), tokens
      )
    )
  return rows


def parquet(file: pathlib.Path, rows: Sequence[list[dict]], row_group: int = 1000) -> pathlib.Path:
  """Writes rows as the column `messages`, JSON text; `file` is replaced in one go."""
  file.parent.mkdir(parents=True, exist_ok=True)
  table = pyarrow.table({'messages': [json.dumps(row) for row in rows]})
  part = file.with_name(file.name + '.part')
  pyarrow.parquet.write_table(table, part, row_group_size=row_group)
  os.replace(part, file)
  return file


def _once(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> pathlib.Path:
  """The file, written beside its place and renamed unless it is there."""
  if not path.is_file():
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'.part-{path.name}')
    write(part)
    os.replace(part, path)
  return path


def _mark(*parts: object) -> str:
  return fingerprint(_VERSION, *parts)
