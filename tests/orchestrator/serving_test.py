"""What a served model is started with, and what is said when its server ends."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import pytest

from configs import serve as recipe
from paravt_jax.errors import ChatError, ConfigError, RolloutError
from paravt_jax.orchestrator import serving
from paravt_jax.orchestrator.host import Host
from paravt_jax.serving.process import ServerProcess
from tests import recipes


def test_the_knobs_reach_the_server():
  given = recipes.typed(recipe.get_config(), name='m', port=81, api_key='k', think_prefix='x')
  made = serving.server_options(given, pathlib.Path('f'), (1, 2))
  assert (made.served_name, made.port, made.api_key, made.think_prefix) == ('m', 81, 'k', 'x')
  assert made.eos_token_ids == (1, 2) and made.context == given.embedded.lanes[-1][0]
  assert made.model_path == str(pathlib.Path('f').absolute())
  assert serving.server_options(given.replace(api_key=''), pathlib.Path(), ()).api_key is None


def test_a_server_of_this_command_has_a_process_of_its_own():
  given = recipes.typed(recipe.get_config(), embedded__in_process=True)
  with pytest.raises(ConfigError, match='in_process=True: wanted False: this command has no lear'):
    serving.server_options(given, pathlib.Path(), ())


def test_a_folder_without_a_tokenizer_starts_nothing(tmp_path):
  given = recipes.typed(recipe.get_config(), folder=str(tmp_path / 'logs'))
  with pytest.raises(ChatError, match=r'tokenizer\.json'):
    serving.start(given, tmp_path, Host(dict(os.environ), tmp_path))
  assert not (tmp_path / 'logs').exists()


def test_a_server_that_ends_by_itself_is_told_with_the_end_of_its_log(tmp_path):
  log = tmp_path / 'log'
  log.write_text('out of memory\n')
  child = subprocess.Popen([sys.executable, '-c', ''])
  server = ServerProcess('http://x', child, log)
  with pytest.raises(RolloutError, match='out of memory'):
    serving.wait(server, lambda: False)
  child.wait()
  serving.wait(dataclasses.replace(server), lambda: True)
