"""What a weight version changes in the version before: for servers on other machines.

In bfloat16 a step of training leaves most values as they were, bit for bit. So the values that
changed are about a hundredth of all bytes. A folder of changes holds

* `changes.bin`: for each array, in the order of the names, where values changed and the new values;
* `changes.json`: {base, arrays: {name: [bytes of places, number of values]}}. `base` is the version
  that the changes apply to;
* `manifest.json`: the manifest of the result as one flat file (see `flat`).

A server that holds the base applies them and compares every array with the manifest. So it proves
both that it had the base and that it has the result. One that cannot refuses, and gets the whole
version.

Places are gaps between changed values, one byte each. The byte 255 moves by 255 and marks none.
"""

import json
import logging
import pathlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from paravt_jax import files
from paravt_jax.errors import SyncError
from paravt_jax.serving import array_files, flat, manifest, owned_folders
from paravt_jax.serving.manifest import Manifest

FILE = 'changes.bin'
INDEX = 'changes.json'
LIMIT = 0.5  # share of all bytes above which the whole version goes out
_SKIP = 255  # the largest move of one byte
_PREFIX = 'paravt-changes-'

Arrays = Mapping[str, np.ndarray]
log = logging.getLogger('paravt.publish')


def encode(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (places, values) of what differs in bits between two arrays of one shape and dtype.

  Returns:
    places: uint8, the gaps between the changed values of the flat arrays. values: their new bits.
  """
  before, after = _bits(old), _bits(new)
  found = np.flatnonzero(before != after)
  gaps = np.diff(found, prepend=-1) - 1  # values between this one and the one before
  skips = gaps // _SKIP
  places = np.full(len(found) + int(skips.sum()), _SKIP, np.uint8)
  places[np.cumsum(skips + 1) - 1] = gaps % _SKIP
  return places, after[found]


def decode(places: np.ndarray) -> np.ndarray:
  """Returns the indices that `encode` wrote as `places`."""
  marks = places != _SKIP
  # each mark moves by its gap and past the value itself
  ends = np.cumsum(places.astype(np.int64) + marks)
  return ends[marks] - 1


def write(
  folder: pathlib.Path, page: Manifest, base: int, old: Arrays, new: Arrays
) -> pathlib.Path | None:
  """Writes the changes from `old` to `new` as `folder`. Returns it, or None if they are many.

  Args:
    page: the manifest of `new` as one flat file.
    base: the version of `old`.

  Raises:
    OSError: no space, or no permission.
  """
  names = sorted(new)
  with ThreadPoolExecutor(manifest.HASHERS) as pool:
    found = list(pool.map(lambda name: encode(old[name], new[name]), names))
  size = sum(places.nbytes + values.nbytes for places, values in found)
  if size > LIMIT * sum(array.nbytes for array in new.values()):
    return None
  arrays = {name: (len(p), len(v)) for name, (p, v) in zip(names, found, strict=True)}
  with files.replacing_folder(folder) as part:
    with (part / FILE).open('wb') as out:
      for places, values in found:
        out.write(places.data)
        out.write(values.data)
    (part / INDEX).write_text(json.dumps({'base': base, 'arrays': arrays}))
    (part / manifest.FILE).write_text(page.to_text())
  return folder


def is_changes(folder: pathlib.Path) -> bool:
  """Returns whether a folder holds changes."""
  return (folder / INDEX).exists()


def base(folder: pathlib.Path) -> int:
  """Returns the version that a folder's changes apply to. Raises SyncError."""
  return index(folder)[0]


def size(folder: pathlib.Path) -> int:
  """Returns the bytes that a server reads. Raises OSError."""
  return (folder / FILE).stat().st_size


def apply(folder: pathlib.Path, page: Manifest, old: Arrays) -> dict[str, np.ndarray]:
  """Returns the arrays of a version from those of its base, which stay as they are.

  Raises:
    SyncError: the changes cannot be read, are of other arrays, or the result differs from what was
    published.
  """
  _, arrays = index(folder)
  try:
    data = np.fromfile(folder / FILE, np.uint8)
    named, start = {}, 0
    for name in sorted(page.arrays):
      count, values = arrays[name]
      new = np.array(old[name])
      bits, end = _bits(new), start + count + values * new.itemsize
      places = decode(data[start : start + count])
      bits[places] = np.frombuffer(data[start + count : end].tobytes(), bits.dtype)
      named[name], start = new, end
    if start != len(data):
      raise ValueError(f'{len(data)} bytes, wanted {start}')
  except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
    raise SyncError(
      f'{folder}: the changes cannot be applied ({type(error).__name__}: '
      f'{array_files.reason(error)}); send the whole version'
    ) from error
  flat.compare(folder, page, named)
  return named


def index(folder: pathlib.Path) -> tuple[int, dict[str, tuple[int, int]]]:
  """Returns the base, and {name: (bytes of places, number of values)}. Raises SyncError."""
  try:
    page = json.loads((folder / INDEX).read_bytes())
    return int(page['base']), {
      name: (count, values) for name, (count, values) in page['arrays'].items()
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise SyncError(
      f'{folder / INDEX}: broken ({type(error).__name__}: {error}); send the whole version'
    ) from error


class Outlet:
  """Writes the changes of each version into a folder of this process that servers see, too.

  It keeps the arrays of the newest version in host memory.
  """

  def __init__(self, parent: pathlib.Path):
    self._place = owned_folders.Place(parent, _PREFIX)
    self._before: tuple[int, Arrays] | None = None

  def write(self, page: Manifest, named: Mapping[str, Any]) -> pathlib.Path | None:
    """Writes what a version changes. Returns the folder, or None if the whole version must go out.

    Args:
      page: the version; its arrays and files are filled in here.
      named: arrays that no other code changes, now or later.

    Raises:
      SyncError: an array is not finite.
    """
    new = {name: array_files.whole(leaf) for name, leaf in sorted(named.items())}
    before, self._before = self._before, (page.version, new)
    if before is None or _forms(before[1]) != _forms(new):
      return None
    version, old = before
    try:
      folder = self._place.open()
      for left in sorted(folder.glob('[0-9]*'), key=lambda path: int(path.name))[:-1]:
        shutil.rmtree(left, ignore_errors=True)
      target = folder / str(page.version)
      return write(target, flat.describe(page, new), version, old, new)
    except OSError as error:
      log.warning(
        'weights %d go out whole: their changes cannot be written (%s)',
        page.version,
        array_files.reason(error),
      )
      return None


def _forms(arrays: Arrays) -> dict[str, Any]:
  return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def _bits(array: np.ndarray) -> np.ndarray:
  """Returns the bits of an array's values, flat, as a view of a contiguous one."""
  return array.reshape(-1).view(f'u{array.itemsize}')
