"""Jobs of several processes on this machine, each of which stands for a host."""

import dataclasses
import pathlib
import signal
import socket
import subprocess
import time

from tests import patience, xla
from tests.experiments import small_job

# seconds of silence after which a process counts as dead, on a quiet machine
HEARTBEAT_S = 10
SFT_STEPS = 8
SFT = {
  'run__checkpoint_every': 2,
  'run__tensorboard': False,
  # programs that compile in seconds
  'optimizer__name': 'adam',
  'optimizer__learning_rate': 1e-3,
  'optimizer__warmup_steps': 0,
  'train__backend': 'xla',
  'train__row_tokens': 256,
  'train__row_images': 64,
}
# short episodes
AGENT = {
  'agent__max_new_tokens': 24,
  'agent__max_turns': 1,
  'subagent__max_new_tokens': 16,
  'subagent__summary_tokens': 16,
}


@dataclasses.dataclass
class Job:
  """The processes of one run, with what each said."""

  processes: list[subprocess.Popen]
  logs: list[pathlib.Path]  # standard error
  outs: list[pathlib.Path]  # standard output

  def wait(self, quiet=420.0):
    """Their exit statuses, once all have ended."""
    end = time.monotonic() + patience.seconds(quiet)
    try:
      return [process.wait(max(1.0, end - time.monotonic())) for process in self.processes]
    finally:
      self.kill()

  def kill(self):
    """Ends those that still run."""
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()

  def said(self, index):
    """Standard error of one process."""
    return self.logs[index].read_text()

  def last_line(self, index):
    """The last line of standard error that is no progress bar; '' without one."""
    words = self.said(index).replace('\r', '\n').splitlines()
    return next((line for line in reversed(words) if line.strip() and '%|' not in line), '')

  def interrupt(self, index):
    """Ctrl-C in one process."""
    self.processes[index].send_signal(signal.SIGINT)


def start(cwd, count, entry, folder, *, cwds=None, command=None, devices=1, **knobs):
  """A job of `count` processes with `devices` each, one of the mesh; knobs as for
  small_job.command.
  """
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{free.getsockname()[1]}'
  # processes on a busy machine reach a collective minutes apart
  flags = {'XLA_FLAGS': f'{xla.QUICK} --xla_cpu_collective_timeout_seconds=3600'}
  if devices > 1:
    flags['XLA_FLAGS'] += f' --xla_force_host_platform_device_count={devices}'
    flags['NPROC'] = '32'
  heartbeat_s = int(patience.seconds(HEARTBEAT_S))
  job = Job([], [], [])
  for index in range(count):
    hosts = {
      'hosts__coordinator': address,
      'hosts__count': count,
      'hosts__index': index,
      'hosts__heartbeat_s': heartbeat_s,
      'hosts__shared_s': 3,
    }
    if count == 1:
      hosts = {}
    mesh = {} if entry == 'eval' else {'mesh__fsdp': count}
    make = command or (lambda **knobs: small_job.command(folder, entry, **knobs))
    job.logs.append(cwd / f'{folder}.{count}.{index}.err')
    job.outs.append(cwd / f'{folder}.{count}.{index}.out')
    with job.logs[-1].open('w') as log, job.outs[-1].open('w') as out:
      job.processes.append(
        subprocess.Popen(
          make(**mesh, **hosts, **knobs),
          cwd=cwds[index] if cwds else cwd,
          env={**small_job.environment(), **flags},
          stdout=out,
          stderr=log,
        )
      )
  return job


def any_ended(started):
  """Whether a process has ended, so that there is nothing to wait for."""
  return any(process.poll() is not None for process in started.processes)


def run(cwd, count, entry, folder, **knobs):
  """The job, once it has ended well."""
  job = start(cwd, count, entry, folder, **knobs)
  codes = job.wait()
  assert codes == [0] * count, [job.said(index)[-3000:] for index in range(count)]
  return job
