"""A process that makes SFT batches from files and videos, to be killed: `python -m
tests.data.sft_child FOLDER STEPS`.

After each batch it writes down the batch's digest and the state, in one step, and says so in
FOLDER/said; it continues from there.
"""

import hashlib
import json
import os
import pathlib
import sys

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import batches, sft
from paravt_jax.data.fields import RowOptions
from paravt_jax.data.table import Table
from paravt_jax.video.decode import DecodePool
from paravt_jax.video.store import FrameStore

FRAMES = sft.FrameOptions(
  rate=1.0,
  min_frames=1,
  max_frames=8,
  min_pixels=1024,
  max_pixels=1024,
  image_max_pixels=4096,
  think_prefix='<think>\n',
)
SIZES = batches.BatchOptions(
  micro_batches=2,
  rows=2,
  row_tokens=160,
  row_images=24,
  image_patches=4,
  row_large_images=2,
  large_image_patches=16,
  lookahead=4,
  refill=True,
  prefetch=2,
  shapes=1,
  workers=2,
  skip_bad_rows=True,
  max_bad_share=0.5,
)


def digest(batch):
  """Of everything a step sees of a batch."""
  hashed = hashlib.blake2b(
    json.dumps([batch.used, sorted(batch.samples.items()), sorted(batch.dropped.items())]).encode(),
    digest_size=8,
  )
  for name in sorted(batch.arrays):
    hashed.update(name.encode() + batch.arrays[name].tobytes())
  return hashed.hexdigest()


def open_batches(folder, frames, shard=(0, 1), options=FRAMES):
  """The batches of FOLDER's two parquet files."""
  tok = ChatTokenizer.load(folder / 'tok')
  sources = []
  for name, weight in (('a', 3.0), ('b', 1.0)):
    rows = Table(
      [folder / f'{name}.parquet'],
      folder,
      RowOptions(True, False, follow_links=True),
      folder / 'cache',
    )
    sources.append(batches.Source(name, rows, weight, 0, None, rows.identity))
  return batches.batches(
    sources,
    tok,
    frames,
    options,
    SIZES,
    0,
    shard=shard,
    cache=batches.Cache(folder / 'cache', 'tok'),
  )


def main(folder, steps):
  """Goes on until `steps` batches are written down."""
  record = folder / 'record.json'
  done = json.loads(record.read_text()) if record.exists() else {'digests': [], 'state': None}
  with DecodePool(1, 20.0, 'pyav') as pool:
    data = open_batches(folder, FrameStore(folder / 'frames', pool, 0))
    if done['state']:
      data.set_state(done['state'])
    while len(done['digests']) < steps:
      done['digests'].append(digest(next(data)))
      done['state'] = data.get_state()
      part = folder / 'record.part'
      part.write_text(json.dumps(done))
      os.replace(part, record)
      print(len(done['digests']), flush=True)
    data.close()


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
