"""The commands of the Makefile that choose something themselves."""

import os
import pathlib
import shutil
import subprocess

import pytest

from tests import patience

ROOT = pathlib.Path(__file__).parents[1]


def make(cwd, *arguments):
  """(status, stdout, stderr) of a target, its environment taken as set up and its Python replaced
  by echo.
  """
  outer = (
    'MAKEFLAGS',
    'MFLAGS',
    'MAKELEVEL',
    'MAKEOVERRIDES',
    'ARGS',
    'MODEL',
  )  # of the `make test` that this may run in
  env = {name: value for name, value in os.environ.items() if name not in outer}
  done = subprocess.run(
    ['make', '-f', str(ROOT / 'Makefile'), '-o', 'setup', 'RUN=echo', *arguments],
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=patience.seconds(120),
    env=env,
  )
  return done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.skipif(shutil.which('make') is None, reason='needs make')
def test_eval_takes_the_newest_runs_model_or_the_one_named(tmp_path):
  status, out, err = make(tmp_path, 'eval')
  assert (
    status == 2
    and out == ''
    and 'there is no runs/*/hf; train a model with make rl, or name one' in err
  )
  for age, name in enumerate(('newest', 'older')):
    file = tmp_path / 'runs' / name / 'hf' / 'config.json'
    file.parent.mkdir(parents=True)
    file.write_text('{}')
    os.utime(file, (1000 - age, 1000 - age))
  command = '-m experiments.eval --config=configs/eval.py --config.model='
  assert make(tmp_path, 'eval')[:2] == (0, f'{command}runs/newest/hf')
  assert make(tmp_path, 'eval', 'MODEL=/a b/m', 'ARGS=--config.seed=1')[:2] == (
    0,
    f'{command}/a b/m --config.seed=1',
  )


STUB = """#!/bin/sh
# Stands in for Python: notes how it was called, and makes an environment whose pip does the same.
echo "python $*" >> "$CALLS"
for folder; do :; done
case "$*" in *--clear*) rm -rf "$folder";; esac
mkdir -p "$folder/bin"
printf '#!/bin/sh\\necho "pip $*" >> "$CALLS"\\n' > "$folder/bin/pip"
chmod +x "$folder/bin/pip"
"""
BASE = 'pip install -qq --disable-pip-version-check -r requirements.txt'


class Machine:
  """A folder to set up in, with a Python that installs nothing and devices as wanted."""

  def __init__(self, folder):
    self.folder, self.calls = folder, folder / 'calls'
    for name in ('bin', 'dev', 'pci'):
      (folder / name).mkdir()
    self.script('python', STUB)
    self.script('nvidia-smi', '#!/bin/sh\nexit 9\n')
    (folder / 'requirements.txt').write_text('jax==0.10.2\n')

  def script(self, name, text):
    path = self.folder / 'bin' / name
    path.write_text(text)
    path.chmod(0o755)

  def make(self, *arguments, **variables):
    """(status, what was called, lines on stderr without make's own)."""
    self.calls.write_text('')
    outer = ('MAKEFLAGS', 'MFLAGS', 'MAKELEVEL', 'MAKEOVERRIDES', 'ACCELERATOR')
    env = {name: value for name, value in os.environ.items() if name not in outer}
    env = {key: value for key, value in env.items() if not key.startswith('TPU_')}
    env |= {
      'CALLS': str(self.calls),
      'PATH': f'{self.folder / "bin"}:{env["PATH"]}',
      **variables,
    }
    paths = [f'{name.upper()}={self.folder / path}' for name, path in PLACES.items()]
    done = subprocess.run(
      ['make', '-f', str(ROOT / 'Makefile'), *paths, *arguments],
      cwd=self.folder,
      capture_output=True,
      text=True,
      timeout=patience.seconds(120),
      env=env,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith('make: ***')]
    return done.returncode, self.calls.read_text().splitlines(), said


PLACES = {'python': 'bin/python', 'devices': 'dev', 'pci': 'pci'}


@pytest.fixture
def machine(tmp_path):
  if shutil.which('make') is None:
    pytest.skip('needs make')
  return Machine(tmp_path)


def test_setup_is_for_the_cpu_and_done_once(machine):
  status, calls, said = machine.make('setup')
  assert (status, calls) == (0, ['python -m venv .venv', BASE])
  assert len(said) == 1 and said[0].startswith('setting up .venv for cpu (about 2.5 GB, ')
  assert machine.make('setup') == (0, [], [])


def test_an_accelerator_brings_jaxs_own_extra_and_stays_where_none_is_named(machine):
  status, calls, said = machine.make('setup', 'ACCELERATOR=cuda13')
  assert (status, calls) == (0, ['python -m venv .venv', f'{BASE} jax[cuda13]'])
  assert said[0].startswith('setting up .venv for cuda13 (')
  assert machine.make('lint', '-n')[:2] == (0, [])
  assert machine.make('setup') == (0, [], [])  # neither back to the CPU nor a word
  assert machine.make('setup', ACCELERATOR='cuda13') == (0, [], [])


def test_another_accelerator_makes_the_environment_anew(machine):
  machine.make('setup')
  status, calls, _ = machine.make('setup', 'ACCELERATOR=tpu')
  assert (status, calls) == (0, ['python -m venv --clear .venv', f'{BASE} jax[tpu]'])
  assert [path.name for path in (machine.folder / '.venv').glob('.installed*')] == [
    '.installed-tpu'
  ]


def test_another_lock_is_installed_into_the_environment_that_is_there(machine):
  machine.make('setup')
  now = (machine.folder / '.venv' / '.installed-cpu').stat().st_mtime
  os.utime(machine.folder / 'requirements.txt', (now + 5, now + 5))
  assert machine.make('setup')[:2] == (0, ['python -m venv .venv', BASE])


def test_an_unknown_accelerator_is_refused_in_a_line(machine):
  assert machine.make('setup', 'ACCELERATOR=cuda12') == (
    2,
    [],
    [
      'make setup: got ACCELERATOR=cuda12, wanted cpu, cuda13 or tpu; '
      'make setup ACCELERATOR=cpu runs anywhere'
    ],
  )
  assert not (machine.folder / '.venv').exists()


GPU = 'this machine has an NVIDIA GPU: make setup ACCELERATOR=cuda13 installs JAX for it'
TPU = 'this machine has a TPU: make setup ACCELERATOR=tpu installs JAX for it'


@pytest.mark.parametrize(
  ('device', 'hint'),
  [('nvidia0', GPU), ('nvidiactl', None), ('accel0', TPU), ('accel/accel0', None)],
)
def test_a_device_that_is_not_used_is_named_and_the_cpu_kept(machine, device, hint):
  path = machine.folder / 'dev' / device
  path.parent.mkdir(exist_ok=True)
  path.touch()
  status, calls, said = machine.make('setup')
  assert (status, calls) == (0, ['python -m venv .venv', BASE])
  assert said[:-1] == ([hint] if hint else [])
  assert machine.make('setup')[2] == said[:-1]
  assert machine.make('setup', 'ACCELERATOR=cpu')[2] == []  # it was named


def test_only_setup_and_a_new_environment_name_the_device(machine):
  (machine.folder / 'dev' / 'nvidia0').touch()
  assert machine.make('rl', 'RUN=echo')[2][0] == GPU
  assert machine.make('rl', 'RUN=echo')[2] == []


def test_a_gpu_that_only_the_driver_lists_is_found(machine):
  machine.script('nvidia-smi', '#!/bin/sh\necho "GPU 0: NVIDIA H100"\n')
  assert machine.make('setup')[2][0] == GPU


@pytest.mark.parametrize(('vendor', 'found'), [('0x1ae0', True), ('0x8086', False)])
def test_a_tpu_behind_vfio_is_told_by_its_vendor(machine, vendor, found):
  (machine.folder / 'dev' / 'vfio').mkdir()
  (machine.folder / 'pci' / '0000:00:04.0').mkdir()
  (machine.folder / 'pci' / '0000:00:04.0' / 'vendor').write_text(f'{vendor}\n')
  assert (machine.make('setup')[2][0] == TPU) is found


def test_a_tpu_machines_environment_is_enough(machine):
  assert machine.make('setup', TPU_ACCELERATOR_TYPE='v5p-8')[2][0] == TPU
