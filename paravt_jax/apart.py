"""Runs work in a thread that the process does not wait for when it ends."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar('T')


def start(work: Callable[..., T], *arguments: Any, name: str | None = None) -> 'asyncio.Future[T]':
  """Starts work(*arguments) in a daemon thread beside the running event loop.

  Args:
    name: of the thread.

  Returns:
    a future of its result or error. Cancelling it does not end the thread.
  """
  loop = asyncio.get_running_loop()
  done: asyncio.Future[T] = loop.create_future()

  def settle(how: Callable[[Any], None], value: Any) -> None:
    if not done.cancelled():
      how(value)

  def run() -> None:
    try:
      found = work(*arguments)
    except BaseException as error:  # it is raised where the future is awaited
      loop.call_soon_threadsafe(settle, done.set_exception, error)
      raise
    loop.call_soon_threadsafe(settle, done.set_result, found)

  threading.Thread(target=run, daemon=True, name=name).start()
  return done
