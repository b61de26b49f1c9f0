"""Frames as files: written once, there while a request reads them, gone with their process."""

import asyncio
import base64
import io
import os
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from paravt_jax.errors import ConfigError
from paravt_jax.rollout.image_folder import ImageFolder
from paravt_jax.serving.protocol import encode_image
from tests import patience

ROOT = pathlib.Path(__file__).resolve().parents[2]


def frame(value: int) -> np.ndarray:
  return np.full((32, 32, 3), value, np.uint8)


def encoded(value: int) -> bytes:
  return b'"%s"' % encode_image(frame(value)).encode()


def file_of(url: str) -> pathlib.Path:
  return pathlib.Path(urllib.parse.urlparse(url).path)


def test_a_frame_is_one_file_with_its_pixels_however_many_requests_name_it(tmp_path):
  folder = ImageFolder(str(tmp_path), 9)

  async def read(names):
    async with folder.urls(names, [encoded(int(name)) for name in names]) as (urls, sizes):
      pixels = [np.asarray(Image.open(io.BytesIO(file_of(url).read_bytes()))) for url in urls]
      return pixels, len(sizes)

  async def run():
    return await asyncio.gather(*(read(names) for names in (['1', '2'], ['2', '1', '1'])))

  (first, new), (second, more) = asyncio.run(run())
  for pixels, value in zip([*first, *second], [1, 2, 2, 1, 1], strict=True):
    np.testing.assert_array_equal(pixels, frame(value))
  assert new + more == 2
  folder.close()
  assert list(tmp_path.iterdir()) == []


def test_only_files_that_no_request_reads_make_place(tmp_path):
  folder = ImageFolder(str(tmp_path), 1)

  def there() -> int:
    return len(list(tmp_path.glob('frames-*/*.png')))

  async def run():
    async with folder.urls(['1', '2'], [encoded(1), encoded(2)]) as (outer, _):
      async with folder.urls(['3'], [encoded(3)]):
        assert there() == 3
      assert there() == 2 and all(file_of(url).is_file() for url in outer)
    assert there() == 1

  asyncio.run(run())
  folder.close()


def test_a_folder_that_is_full_is_an_error_of_this_request_and_may_recover(tmp_path, monkeypatch):
  folder = ImageFolder(str(tmp_path), 9)

  def full(*_):
    raise OSError(28, 'No space left on device')

  async def run():
    with monkeypatch.context() as patch:
      patch.setattr(pathlib.Path, 'write_bytes', full)
      with pytest.raises(OSError, match='No space'):
        async with folder.urls(['1'], [encoded(1)]):
          pass
    async with folder.urls(['1'], [encoded(1)]) as (urls, _):
      return file_of(urls[0]).read_bytes()

  assert asyncio.run(run()) == base64.b64decode(encode_image(frame(1)))
  folder.close()


def test_a_file_that_fails_for_two_requests_is_the_same_error_for_both(tmp_path, monkeypatch):
  folder, forgotten = ImageFolder(str(tmp_path), 9), threading.Event()
  write = pathlib.Path.write_bytes

  def full_for_1(path, content):
    if path.name.startswith('1'):
      raise OSError(28, 'No space left on device')
    assert forgotten.wait(patience.seconds(30))
    return write(path, content)

  async def read(names):
    async with folder.urls(names, [encoded(int(name)) for name in names]):
      pass

  async def run():
    first = asyncio.create_task(read(['1']))
    await asyncio.sleep(0)  # its file is under way
    second = asyncio.create_task(read(['2', '1']))
    errors = await asyncio.gather(first, return_exceptions=True)
    forgotten.set()
    return errors + await asyncio.gather(second, return_exceptions=True)

  monkeypatch.setattr(pathlib.Path, 'write_bytes', full_for_1)
  errors = asyncio.run(run())
  assert [type(error) for error in errors] == [OSError, OSError]
  folder.close()


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path):
  living = ImageFolder(str(tmp_path), 9)
  code = (
    'import os, signal, sys; from paravt_jax.rollout.image_folder import ImageFolder; '
    'it = ImageFolder(sys.argv[1], 9); os.kill(os.getpid(), signal.SIGKILL)'
  )
  killed = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=ROOT, check=False)
  assert killed.returncode == -9 and len(list(tmp_path.iterdir())) == 2
  another = ImageFolder(str(tmp_path), 9)
  assert set(tmp_path.iterdir()) == {living._folder, another._folder}
  living.close()
  another.close()


def test_a_folder_that_cannot_be_written_is_named_at_the_start(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match=r'--config.client.image_folder=.*cannot be written'):
    ImageFolder(str(tmp_path / 'file' / 'x'), 9)
  assert os.listdir(tmp_path) == ['file']
