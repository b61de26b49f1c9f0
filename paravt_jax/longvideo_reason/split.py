"""Step 1: cuts a video into clips of about ten seconds. A separate process cuts it, and is killed
when it hangs.
"""

import asyncio
import dataclasses
import errno
import json
import os
import pathlib
from typing import Any, cast

from paravt_jax import children
from paravt_jax.longvideo_reason.cutting import READ_RATE, CutOptions
from paravt_jax.longvideo_reason.items import Clip, Failed, Rejected, Video

VERSION = 1
SUFFIXES = frozenset(
  (
    '.mp4',
    '.m4v',
    '.mov',
    '.mkv',
    '.webm',
    '.avi',
    '.ts',
    '.mts',
    '.m2ts',
    '.mpg',
    '.mpeg',
    '.flv',
    '.wmv',
    '.3gp',
    '.ogv',
  )
)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_START_S = 60.0  # for a process to import its libraries
_PROGRAM = (
  'import sys, json; from paravt_jax.longvideo_reason import cutting; '
  'cutting.main(sys.argv[1], sys.argv[2], cutting.CutOptions(**json.loads(sys.argv[3])), '
  'int(sys.argv[4]))'
)


@dataclasses.dataclass(frozen=True)
class Split:
  """A video that was cut."""

  identity: dict[str, Any]  # of the video, as in `data.provenance`
  duration: float  # seconds
  clips: tuple[Clip, ...]  # in order, without gaps


def find(folder: str | os.PathLike) -> tuple[list[Video], list[str]]:
  """(videos below a folder, by name; names that are not UTF-8 and cannot be written to a row).
  Hidden files are skipped.
  """
  base = pathlib.Path(os.path.abspath(folder))
  found, bad = [], []
  for place, folders, files in os.walk(base):
    folders[:] = sorted(name for name in folders if not name.startswith('.'))
    for name in sorted(files):
      path = pathlib.Path(place, name)
      if name.startswith('.') or path.suffix.lower() not in SUFFIXES or not path.is_file():
        continue
      try:
        path.as_posix().encode()
      except UnicodeEncodeError:
        bad.append(os.fsencode(name).decode(errors='replace'))
        continue
      found.append(Video(path.relative_to(base).as_posix(), str(path)))
  return sorted(found, key=lambda video: video.id), bad


async def split(
  video: Video, folder: pathlib.Path, options: CutOptions
) -> tuple[dict[str, Any] | None, Split | Rejected | Failed]:
  """Cuts a video into clips below `folder`, which is emptied first.

  Returns:
    (the video's identity, where it could be read at all; Split, or Rejected with a MediaError's
    reason when it is no video that we can read, or Failed: 'timeout', 'crashed', 'missing',
    'disk').

  Raises:
    OSError: the disk is full.
  """
  process = await asyncio.create_subprocess_exec(
    *children.command(
      _PROGRAM,
      video.path,
      str(folder),
      json.dumps(dataclasses.asdict(options)),
      str(os.getpid()),
    ),
    stdin=asyncio.subprocess.DEVNULL,
    stdout=asyncio.subprocess.PIPE,
    stderr=asyncio.subprocess.DEVNULL,
    start_new_session=True,
  )
  try:
    return await _listen(process, video, options)
  finally:
    if process.returncode is None:
      process.kill()
      await process.wait()


async def _listen(process: asyncio.subprocess.Process, video: Video, options: CutOptions):
  identity: dict[str, Any] | None = None
  clips: list[Clip] = []
  lines = cast(asyncio.StreamReader, process.stdout)  # a pipe
  size = os.path.getsize(video.path) if os.path.isfile(video.path) else 0
  limit = _START_S + size / READ_RATE
  while True:
    try:
      line = await asyncio.wait_for(lines.readline(), limit)
    except TimeoutError:
      return identity, Failed(
        'timeout',
        f'{video.id}: nothing for {limit:.0f} s after clip {len(clips)}; see split.deadline_s',
      )
    limit = options.deadline_s + (0 if clips else size / READ_RATE)
    if not line.endswith(b'\n'):
      status = await process.wait()
      return identity, Failed(
        'crashed',
        f'{video.id}: the process that cuts it ended with code {status} after clip {len(clips)}',
      )
    said = json.loads(line)
    if said.get('errno') in FULL:  # nothing to do with the video
      raise OSError(said['errno'], os.strerror(said['errno']), said['error'])
    if 'error' in said:
      return identity, (Failed if said['reason'] in ('missing', 'disk') else Rejected)(
        said['reason'], said['error']
      )
    if 'identity' in said:
      identity = said['identity']
    elif 'clip' in said:
      clips.append(Clip(**said['clip']))
    else:
      return identity, Split(identity or {}, said['duration'], tuple(clips))
