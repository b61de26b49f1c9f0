"""JAX's report of a dead process becomes one line; everything else passes."""

import subprocess
import sys

from paravt_jax.orchestrator import native_errors
from tests import patience

# as jaxlib 0.10.2 writes it to standard error
WARNING = (
  b'E1129 17:10:27.584540    6832 coordination_service.cc:1549] [9397523992122879828] Use error '
  b'polling to propagate the following error to all tasks: UNAVAILABLE: The following tasks are '
  b'unhealthy (stopped sending heartbeats):\n3\nThe tasks have crashed. Check the task logs for an '
  b'earlier error, or scheduler events (e.g. preemption, eviction) to debug further.\n'
)
FATAL = (
  b'F1129 17:10:27.687180    6335 client.h:80] Terminating process because the JAX distributed '
  b'service detected fatal errors. This most likely indicates that another task died\n'
  b'*** Check failure stack trace: ***\n    @     0x7f9789040634  absl::LogMessage::SendToLog()\n'
)
SOCKET = (
  b'E1129 17:10:16.046827    6816 coordination_service_agent.cc:289] Polled an error from '
  b'coordination service (this can be an error from this or another task).\n'
)


def passed(*parts):
  """What comes out for these parts, which come in a second apart."""
  out = []
  made = native_errors.Filter(out.append)
  for second, part in enumerate(parts):
    made.add(part, float(second))
    made.tick(float(second))
  made.end()
  return b''.join(out)


def test_the_report_becomes_one_line_that_names_who_is_gone():
  said = passed(b'step 7\n', WARNING, FATAL)
  assert said == (
    b'step 7\nerror: host 3 has ended or cannot be reached, so this one ends too; its own output says '
    b'why. The same command continues from the last record\n'
  )


def test_without_a_name_it_is_process_0_whose_service_is_gone():
  assert passed(SOCKET + FATAL).startswith(b'error: host 0 has ended')


def test_what_a_process_says_passes_at_once_also_half_a_line():
  out = []
  made = native_errors.Filter(out.append)
  made.add(b'rl:  3%|#   |\r', 0.0)
  made.add(b'rl:  4%', 0.1)
  assert out == [b'rl:  3%|#   |\r', b'rl:  4%'] and not made.holds


def test_a_warning_that_the_process_outlives_passes_late_and_whole():
  out = []
  made = native_errors.Filter(out.append)
  made.add(WARNING, 0.0)
  made.tick(1.0)
  assert out == [] and made.holds
  made.tick(20.0)
  assert b''.join(out) == WARNING
  assert passed(WARNING) == WARNING  # and so does one at the end


def test_a_process_that_aborts_still_has_its_line(tmp_path):
  code = (
    'import os, sys\n'
    'from paravt_jax.orchestrator import native_errors\n'
    'native_errors.watch()\n'
    'print("before", file=sys.stderr, flush=True)\n'
    f'os.write(2, {SOCKET + FATAL!r})\n'
    'os.abort()\n'
  )
  with (tmp_path / 'err').open('w') as err:
    done = subprocess.run([sys.executable, '-c', code], stderr=err, timeout=patience.seconds(120))
  assert done.returncode < 0
  wanted = ['before', native_errors.line(b'').decode().strip()]
  patience.until(lambda: len((tmp_path / 'err').read_text().splitlines()) >= 2, 'the line')
  assert (tmp_path / 'err').read_text().splitlines() == wanted
