"""Archives, and what was unpacked of them."""

import io
import pathlib
import random
import subprocess
import sys
import tarfile
import zipfile

import pytest

from paravt_jax.data.unpack import main

NOISE = random.Random(6).randbytes(300000)


def zip_file(
  path: pathlib.Path, members: dict, mode: int | None = None, method: int = zipfile.ZIP_DEFLATED
) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      info = zipfile.ZipInfo(name)
      info.compress_type = method
      if mode is not None:
        info.external_attr = mode << 16
      archive.writestr(info, data)
  return path


def tar_file(path: pathlib.Path, members: dict) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz' if path.name.endswith('gz') else 'w') as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


ANY = pytest.mark.parametrize(
  ('make', 'name'), [(zip_file, 'a.zip'), (tar_file, 'a.tar'), (tar_file, 'a.tar.gz')]
)


def files_in(root: pathlib.Path) -> list[str]:
  files = (str(path.relative_to(root)) for path in root.rglob('*') if path.is_file())
  return sorted(name for name in files if not name.startswith('.paravt_unpack/'))


def child(code: str, *arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True
  )


def run_main(tmp_path: pathlib.Path, capsys, *more: str) -> tuple[int, str, str]:
  status = main(['--archives', str(tmp_path / 'in'), '--root', str(tmp_path / 'root'), *more])
  said = capsys.readouterr()
  return status, said.out, said.err


def split_file(folder: pathlib.Path, name: str, data: bytes, count: int) -> list[pathlib.Path]:
  """data in `count` files NAMEaa, NAMEab, ..."""
  folder.mkdir(parents=True, exist_ok=True)
  size = -(-len(data) // count)
  paths = [folder / f'{name}a{letter}' for letter in 'abcdefghijklm'[:count]]
  for number, path in enumerate(paths):
    path.write_bytes(data[number * size : (number + 1) * size])
  return paths
