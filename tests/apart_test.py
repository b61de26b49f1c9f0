"""Work in a thread that the process does not wait for."""

import asyncio
import subprocess
import sys
import threading

import pytest

from paravt_jax import apart
from tests import patience


def test_the_future_has_the_result_of_a_named_thread():
  async def main():
    return await apart.start(lambda n: (n + 1, threading.current_thread().name), 1, name='other')

  assert asyncio.run(main()) == (2, 'other')


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_the_future_has_the_error():
  async def main():
    await apart.start(lambda: [][0])

  with pytest.raises(IndexError):
    asyncio.run(main())


def test_a_cancelled_future_is_not_set_again():
  async def main():
    loop, errors, go = asyncio.get_running_loop(), [], threading.Event()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    done = apart.start(go.wait)
    done.cancel()
    go.set()
    await asyncio.sleep(0.1)
    return errors

  assert asyncio.run(main()) == []


def test_a_process_ends_before_the_work_does():
  code = """
import asyncio, time
from paravt_jax import apart
async def main(): apart.start(time.sleep, 600)
asyncio.run(main())
"""
  done = subprocess.run([sys.executable, '-c', code], timeout=patience.seconds(60), check=False)
  assert done.returncode == 0
