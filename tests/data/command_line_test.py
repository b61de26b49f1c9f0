"""The data commands name themselves as they were called."""

import importlib
import sys

import pytest

COMMANDS = ('unpack', 'materialize', 'sanitize')


@pytest.mark.parametrize('command', COMMANDS)
@pytest.mark.parametrize('installed', [True, False])
def test_the_help_names_the_command_that_was_run(command, installed, monkeypatch, capsys):
  module = f'python -m paravt_jax.data.{command}'
  name = f'paravt-{command}' if installed else module
  path = f'/usr/bin/paravt-{command}' if installed else f'/home/x/paravt_jax/data/{command}.py'
  monkeypatch.setattr(sys, 'argv', [path])
  with pytest.raises(SystemExit) as end:
    importlib.import_module(f'paravt_jax.data.{command}').main(['--help'])
  out = capsys.readouterr().out
  assert end.value.code == 0
  assert out.startswith(f'usage: {name} ') and f'Run: {name} --' in out
  assert (module in out) is not installed
