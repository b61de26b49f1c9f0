"""Zip archives of media, extracted into one root.

Run: python -m paravt_jax.data.unpack --archives DIR --root DIR

Every name of an archive is checked before anything of it is written; every file appears by rename, so that an interrupted run
leaves whole files only and the next one goes on where it was.
"""

import argparse
import dataclasses
import os
import pathlib
import shutil
import stat
import sys
import tempfile
import zipfile
import zlib

from paravt_jax.errors import DataError, ParavtError


@dataclasses.dataclass(frozen=True)
class Unpacked:
  """What was done: files written, and files that were there whole (same size)."""
  written: int
  kept: int


def unpack(archives: str | os.PathLike, root: str | os.PathLike) -> Unpacked:
  """Extracts every *.zip below the folder `archives` (or that one file) into `root`, in the order of their names.

  Raises:
    DataError: no archive there; one that is damaged or encrypted; a member that is absolute, climbs by `..` or is a link; two
      members of one name and different sizes; a disk that cannot be written (full, say). Files written before stay.
  """
  source, root = pathlib.Path(archives), pathlib.Path(root)
  files = [source] if source.is_file() else sorted(source.rglob('*.zip'))
  if not files:
    raise DataError(f'{source}: got no zip archive, wanted a file or a folder with *.zip; check --archives')
  written = kept = 0
  sizes: dict[str, int] = {}
  for file in files:
    for fresh in _unpack_one(file, root, sizes):
      written, kept = written + fresh, kept + (not fresh)
  return Unpacked(written, kept)


def _unpack_one(file: pathlib.Path, root: pathlib.Path, sizes: dict[str, int]) -> list[bool]:
  try:
    with zipfile.ZipFile(file) as archive:
      members = [member for member in archive.infolist() if not member.is_dir()]
      for member in members:
        _check(file, member, sizes)
      return [_extract(archive, member, root) for member in members]
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
    raise DataError(f'{file}: damaged archive ({error}), wanted a whole zip; fetch it again') from error
  except OSError as error:
    raise DataError(f'{file}: {error.strerror} at {error.filename or root}; wanted to extract below {root}: make room or check '
                    'permissions, then run again (finished files are kept)') from error


def _check(file: pathlib.Path, member: zipfile.ZipInfo, sizes: dict[str, int]):
  """Raises DataError for a member that must not be written."""
  name = member.filename
  parts = name.replace('\\', '/').split('/')
  mode = member.external_attr >> 16
  if name.startswith(('/', '\\')) or '..' in parts or ':' in parts[0] or '\0' in name:
    problem = 'a path that leaves the root'
  elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
    problem = 'a link or device'
  elif member.flag_bits & 1:
    problem = 'an encrypted file'
  elif sizes.setdefault(os.path.normpath(name), member.file_size) != member.file_size:
    problem = f'{member.file_size} bytes, but an earlier archive holds it with {sizes[os.path.normpath(name)]}'
  else:
    return
  raise DataError(f'{file}: member {name!r}: got {problem}, wanted a plain file with a relative path; drop it there')


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, root: pathlib.Path) -> bool:
  """Whether the file had to be written."""
  target = root / member.filename
  if target.is_file() and target.stat().st_size == member.file_size:
    return False
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.NamedTemporaryFile(dir=target.parent, prefix='.', suffix='.part', delete=False) as out:
    try:
      with archive.open(member) as source:
        shutil.copyfileobj(source, out, 1 << 20)
      out.flush()
      os.chmod(out.name, 0o644)
      os.replace(out.name, target)
    except BaseException:    # Ctrl-C too: nothing half-written stays
      os.unlink(out.name)
      raise
  return True


def main(arguments: list[str] | None = None) -> int:
  """The command; returns its exit status."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--archives', required=True, help='a zip archive, or a folder that holds some at any depth')
  parser.add_argument('--root', required=True, help='the media root to extract into')
  options = parser.parse_args(arguments)
  try:
    done = unpack(options.archives, options.root)
  except ParavtError as error:
    print(error, file=sys.stderr)
    return 2
  print(f'{options.root}: {done.written} files written, {done.kept} already there')
  return 0


if __name__ == '__main__':
  sys.exit(main())
