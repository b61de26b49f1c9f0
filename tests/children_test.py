"""Child processes run this copy of the library, from any folder."""

import pathlib
import subprocess

import paravt_jax
from paravt_jax import children
from tests import patience

HOME = pathlib.Path(paravt_jax.__file__).parents[1]


def said(folder, code, *arguments):
  done = subprocess.run(
    children.command(code, *arguments),
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=patience.seconds(60),
    check=True,
  )
  return done.stdout.splitlines()


def test_a_child_runs_this_copy_of_the_library_and_gets_its_arguments(tmp_path):
  other = tmp_path / 'paravt_jax'  # another copy, in the folder where the child starts
  other.mkdir()
  (other / '__init__.py').write_text('')
  code = 'import sys, paravt_jax.errors; print(paravt_jax.errors.__file__); print(sys.argv[1:])'
  assert said(tmp_path, code, 'a b', '--c') == [
    str(HOME / 'paravt_jax' / 'errors.py'),
    "['a b', '--c']",
  ]


def test_a_users_file_does_not_take_the_place_of_pythons_own(tmp_path):
  (tmp_path / 'queue.py').write_text('raise SystemExit("the wrong queue")')
  assert said(tmp_path, 'import queue, sys; print(sys.path[0] == "")') == ['False']


def test_the_librarys_home_is_not_searched_for_other_modules(tmp_path):
  code = f'import sys; print(sys.path[0] == {str(HOME)!r})'
  assert said(tmp_path, code) == ['False']
