"""No process of a server outlives the one that asked for it, however that one ends.

Two links can break. The process that started the server may be killed: `watch_parent` looks for
that in a thread, because the kernel's parent-death signal is bound to the *thread* that forked,
which may end long before its process. The server itself may be killed: its children, which
multiprocessing starts from its main thread, ask the kernel to die with it (`die_with_parent`).
SGLang asks for that too, but only after imports of ten seconds.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import time
from typing import IO

_PR_SET_PDEATHSIG = 1
_POLL_S = 0.5
_GRACE_S = 5.0


def die_with_parent() -> None:
  """SIGKILL for this process when its parent is gone; at once if it is gone already. Linux only;
  elsewhere it does nothing.
  """
  if sys.platform != 'linux':
    return
  parent = os.getppid()
  ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  if parent == 1 or os.getppid() != parent:
    os.kill(os.getpid(), signal.SIGKILL)


def watch_parent(pid: int) -> None:
  """Ends this process and its group when its parent is no longer `pid`. Returns at once; a thread
  does it.
  """

  def watch() -> None:
    while os.getppid() == pid:
      time.sleep(_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    if os.getpgrp() == os.getpid():
      os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=watch, daemon=True, name='watch-parent').start()


def take_parent_pid(argv: list[str]) -> int | None:
  """Takes `--parent-pid N` out of `argv`; None when it is not there."""
  if '--parent-pid' not in argv:
    return None
  place = argv.index('--parent-pid')
  value = argv[place + 1]
  del argv[place : place + 2]
  return int(value)


def take_key(argv: list[str], source: IO[str]) -> None:
  """Puts the key into this process's `argv` where `--key-on-stdin` stands in it.

  The line of JSON comes from `source`. The system keeps showing the words that the process was
  started with, so other users see no key. SGLang logs all its arguments, so log lines lose it too.
  """
  if '--key-on-stdin' not in argv:
    return
  key = json.loads(source.readline())
  argv[argv.index('--key-on-stdin')] = f'--api-key={key}'
  hide(key)


def hide(key: str) -> None:
  """Replaces the key by *** in all log records that this process makes from now on."""
  make = logging.getLogRecordFactory()
  forms = {key, repr(key)[1:-1]}

  def record(*args, **kwargs):
    made = make(*args, **kwargs)
    try:
      text = made.getMessage()
    except (TypeError, ValueError):  # a wrong format, which the handler reports
      return made
    if any(form in text for form in forms):
      for form in forms:
        text = text.replace(form, '***')
      made.msg, made.args = text, ()
    return made

  logging.setLogRecordFactory(record)
