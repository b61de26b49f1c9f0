"""A model behind the OpenAI protocol, as a command: what it prints, how it answers, how it ends."""

import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from configs import serve as recipe
from experiments import serve
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.testing import tiny
from tests import patience, recipes, xla

ROOT = pathlib.Path(__file__).resolve().parents[2]


def recipe_of(scale='tiny', **knobs):
  return recipes.typed(recipe.get_config(scale), **knobs)


def test_other_addresses_than_this_machines_need_a_key():
  serve.check(recipe_of())
  serve.check(recipe_of(host='0.0.0.0', api_key='secret'))
  with pytest.raises(ConfigError, match=r"--config.api_key='': wanted a key, because host=0.0.0.0"):
    serve.check(recipe_of(host='0.0.0.0'))


def test_knobs_of_the_engine_that_do_not_fit_are_named_before_anything_starts():
  with pytest.raises(ConfigError, match=r'--config.embedded.pages=3: wanted at least 65'):
    serve.check(recipe_of(embedded__pages=3))


def test_the_greeting_never_shows_the_key():
  lines = serve.greeting(recipe_of(api_key='secret'), 'http://127.0.0.1:1')
  assert 'Bearer KEY' in lines[1] and 'secret' not in ''.join(lines)


def test_a_folder_without_a_model_is_one_line(tmp_path):
  done = subprocess.run(
    command(tmp_path),
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK},
    capture_output=True,
    text=True,
    check=False,
    timeout=patience.seconds(120),
  )
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  assert 'config.json cannot be read' in done.stderr


def test_the_folder_of_a_run_or_of_an_adapter_is_told_from_a_model(tmp_path):
  run = tmp_path / 'run'
  (run / 'hf' / 'peft').mkdir(parents=True)
  for file in ('config.json', 'hf/config.json', 'hf/peft/adapter_config.json'):
    (run / file).write_text('{}')
  for folder, said in (
    (run, rf'is the folder of a run; its model is --config.model.folder={run}/hf$'),
    (run / 'hf' / 'peft', 'is an adapter alone; name the folder of the merged model'),
  ):
    with pytest.raises(DataError, match=said):
      serve.main(recipe_of(model__folder=str(folder)))


def test_an_address_that_is_taken_is_named_by_this_commands_knobs(tmp_path):
  tiny.build_model_folder(tmp_path / 'model', 0)
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(ConfigError, match=rf'--config.port={port}: cannot listen there'):
      serve.main(
        recipe_of(model__folder=str(tmp_path / 'model'), folder=str(tmp_path / 'logs'), port=port)
      )


def command(folder: pathlib.Path) -> list[str]:
  knobs = {'model.folder': folder, 'folder': folder.parent / 'logs', 'port': 0}
  given = [f'--config.{name}={value}' for name, value in knobs.items()]
  return [sys.executable, '-m', 'experiments.serve', '--config=configs/serve.py', *given]


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_the_printed_request_is_answered_and_a_signal_ends_it_cleanly(tmp_path, number):
  tiny.build_model_folder(tmp_path / 'model', 0)
  process = subprocess.Popen(
    command(tmp_path / 'model'),
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK},
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    url = re.search(r"serving 'paravt' at (http://[\d.:]+/v1)", lines[1])
    assert url is not None, lines
    done = subprocess.run(
      shlex.split(lines[2]), capture_output=True, check=True, timeout=patience.seconds(120)
    )
    reply = json.loads(done.stdout)
    assert reply['choices'][0]['message']['content'].startswith('<think>\n')
    process.send_signal(number)
    assert process.wait(patience.seconds(60)) == 0
    assert process.stdout.read() == 'ended\n'
  finally:
    process.kill()
