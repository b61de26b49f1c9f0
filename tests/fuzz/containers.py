"""Targets over files of bytes: archives, read and unpacked, and videos in a decoding worker."""

import bz2
import functools
import gzip
import io
import lzma
import pathlib
import shutil
import tarfile
import time
import zipfile
import zlib

import numpy as np

from paravt_jax.data import archives, tars
from paravt_jax.data.archive_members import OURS
from paravt_jax.data.unpack import unpack
from paravt_jax.errors import DataError, MediaError
from paravt_jax.testing import films
from paravt_jax.video.decode import DecodePool
from tests.fuzz import mutate
from tests.fuzz.driver import Target
from tests.fuzz.mutate import Rng

_NAMES = (
  *('a.mp4', 'world/a.mp4', 'world/b.mp4', 'b', '../out.mp4', '/etc/out.mp4', 'a/../../out', './c'),
  *('C:\\out', 'a\\..\\..\\out', '__MACOSX/x', '.paravt_unpack/journal', 'a/', '', 'x' * 300, '\n'),
  *('é.mp4', 'A.MP4', 'a.mp4/b', 'con', '-rf', '.part'),
)
_PACK = {
  'tar.gz': functools.partial(gzip.compress, mtime=0),
  'tar.bz2': bz2.compress,
  'tar.xz': lzma.compress,
}
_KINDS = ('zip', 'zip', 'tar', 'tar', *_PACK)
_DEADLINE_S = 5.0
_START_S = 60.0  # a new worker after a crash
_CODECS = {
  'libx264': ('mp4', 'matroska', 'mpegts'),
  'libx265': ('mp4',),
  'libvpx': ('webm',),
  'libvpx-vp9': ('webm',),
  'libsvtav1': ('mp4',),
  'mpeg4': ('avi', 'mp4'),
  'mpeg2video': ('mpegts',),
}
REASONS = ('missing', 'not_video', 'no_frames', 'decode', 'timeout', 'crashed')


def _zip(members: list[tuple[str, bytes]], rng: Rng) -> bytes:
  out = io.BytesIO()
  with zipfile.ZipFile(out, 'w') as archive:
    for name, data in members:
      info = zipfile.ZipInfo(name or 'x')
      info.compress_type = mutate.pick(rng, (0, 8, 12, 14))
      if rng.random() < 0.05:
        info.external_attr = 0o120777 << 16  # a link
      archive.writestr(info, data)
  return out.getvalue()


def _tar(members: list[tuple[str, bytes]], rng: Rng) -> bytes:
  out = io.BytesIO()
  form = mutate.pick(rng, (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
  with tarfile.open(fileobj=out, mode='w', format=form) as archive:
    for name, data in members:
      info = tarfile.TarInfo(name)
      info.size = len(data)
      if rng.random() < 0.1:
        info.type = mutate.pick(rng, (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE))
        info.linkname, info.size = mutate.pick(rng, _NAMES), 0
      archive.addfile(info, io.BytesIO(data[: info.size]))
  return out.getvalue()


def _archive(rng: Rng) -> bytes:
  """One or two archives of a few members, whole, changed, or changed and packed again."""
  names = _NAMES if rng.random() < 0.3 else _NAMES[:3]
  members = [
    (mutate.pick(rng, names), rng.bytes(int(rng.integers(3000))) * int(rng.integers(1, 4)))
    for _ in range(int(rng.integers(4)))
  ]
  kind = mutate.pick(rng, _KINDS)
  data = _zip(members, rng) if kind == 'zip' else _tar(members, rng)
  if rng.random() < 0.5:
    data = mutate.change_bytes(rng, data, data)
  if kind in _PACK:
    data = _PACK[kind](data)
    data = mutate.change_bytes(rng, data, data) if rng.random() < 0.4 else data
  return data


def listing_target(folder: pathlib.Path) -> Target:
  """Returns the target that lists an archive and reads every member of it."""
  path = folder / 'listed.bin'

  def check(data: bytes) -> str:
    path.write_bytes(data)
    archive = archives.read(path)
    for member in archive.members:
      assert '..' not in member.name.split('/') and not member.name.startswith('/')
    if archive.is_stream:
      for _, _, content in _until_fault(tars.entries(archive)):
        for _ in _until_fault(content or ()):
          pass
      return 'faults' if archive.faults else 'whole'
    with archive.open() as file:
      for member in archive.members:
        pieces = b''.join(_until_fault(archives.content(file, archive, member)))
        assert len(pieces) <= member.size
    return 'faults' if archive.faults else 'whole'

  return Target('archives', _archive, check)


def _until_fault(items):
  """Yields the items until they raise DataError."""
  try:
    yield from items
  except DataError:
    return


def unpack_target(folder: pathlib.Path) -> Target:
  """Returns the target that unpacks an archive: inside the root, whole files only."""
  path, root = folder / 'packed' / 'a.bin', folder / 'packed' / 'root'
  path.parent.mkdir()

  def check(data: bytes) -> str:
    name = 'a.zip' if data.startswith(b'PK') else 'a.tar'
    source = path.with_name(name)
    source.write_bytes(data)
    try:
      try:
        unpack(source, root, workers=1)
        outcome = 'unpacked'
      except DataError:
        outcome = 'refused'
      assert {one.name for one in path.parent.iterdir()} <= {name, 'root'}
      members = {member.name: member for member in archives.read(source).members}
      found = [one for one in root.rglob('*') if OURS not in one.parts] if root.exists() else []
      for file in found:
        assert not file.is_symlink()
        if file.is_file():
          member = members[str(file.relative_to(root))]
          content = file.read_bytes()
          assert len(content) == member.size, f'a partial file: {file}'
          assert member.crc is None or zlib.crc32(content) == member.crc
      left = list(root.rglob('*.part*')) if root.exists() else []
      assert not [
        one for one in left if one.is_file() and str(one.relative_to(root)) not in members
      ]
      return outcome
    finally:
      source.unlink()
      shutil.rmtree(root, ignore_errors=True)

  return Target('unpacking', _archive, check)


def _encodes(folder: pathlib.Path) -> list[bytes]:
  found = []
  for codec, formats in _CODECS.items():
    for kind in formats:
      path = films.write(folder / f'{codec}.{kind}', codec, 24, format=kind)
      found.append(path.read_bytes())
  return found


def video_target(folder: pathlib.Path, pool: DecodePool) -> Target:
  """Returns the target of damaged videos, decoded in the workers of a pool."""
  path, encodes = folder / 'damaged.video', _encodes(folder)

  def make(rng: Rng) -> bytes:
    return mutate.change_bytes(rng, mutate.pick(rng, encodes), mutate.pick(rng, encodes), most=12)

  def check(data: bytes) -> str:
    path.write_bytes(data)
    start = time.monotonic()
    try:
      info = pool.probe_sync(str(path))
      assert info.duration > 0 and np.isfinite(info.duration) and info.fps > 0
      times = np.linspace(0, info.duration, 5)
      clip = pool.frames_sync(str(path), times, 1024, 4096)
    except MediaError as error:
      assert error.reason in REASONS
      assert time.monotonic() - start < 2 * (_DEADLINE_S + _START_S)
      assert error.reason != 'crashed', str(error)
      return error.reason
    assert clip.frames.dtype == np.uint8 and len(clip.frames) == len(times)
    assert np.isfinite(clip.seconds).all() and np.isfinite(clip.own).all()
    assert (np.diff(clip.own) >= 0).all(), clip.own
    return 'frames'

  return Target('videos', make, check, seconds=15.0)


def targets(folder: pathlib.Path, pool: DecodePool) -> list[Target]:
  """Returns the targets of this module; files go to `folder`, videos to a worker of `pool`."""
  return [listing_target(folder), unpack_target(folder), video_target(folder, pool)]


def open_pool() -> DecodePool:
  """Returns the pool of `video_target`: one worker with a deadline."""
  return DecodePool(1, _DEADLINE_S, 'pyav')
