"""Folders that tests of this package share."""

import pytest


@pytest.fixture
def place(tmp_path):
  """A media root with one file and one empty file, a parquet folder with nothing in it, and names
  for outputs.
  """
  folder = tmp_path / 'root/longvt_source/tvg_1'
  folder.mkdir(parents=True)
  (folder / 'here.mp4').write_bytes(b'mp4')
  (folder / 'empty.mp4').touch()
  (tmp_path / 'in').mkdir()
  return tmp_path
