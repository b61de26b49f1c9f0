"""Keys that the command line names: taken from a variable or a file, and shown nowhere."""

import os
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import para_grpo, serve
from experiments import keys
from paravt_jax.errors import ConfigError
from tests.serving.process_test import ROOT


def test_keys_come_from_variables_and_files_and_other_values_stay(tmp_path):
  (tmp_path / 'key').write_text('open barley\n')
  config = para_grpo.get_config()
  config.server.api_key = 'env:MY_KEY'
  config.judge.api_key = f'file:{tmp_path}/key'
  environment = {'MY_KEY': 'open sesame', 'HOME': '/root'}
  keys.resolve(config, environment)
  assert (config.server.api_key, config.judge.api_key) == ('open sesame', 'open barley')
  assert environment == {'HOME': '/root'}  # children of the run get no key
  keys.resolve(config, environment)
  assert config.server.api_key == 'open sesame'


def test_one_variable_serves_several_knobs():
  config = para_grpo.get_config()
  config.server.api_key = config.judge.api_key = 'env:MY_KEY'
  keys.resolve(config, {'MY_KEY': 'k'})
  assert (config.server.api_key, config.judge.api_key) == ('k', 'k')


@pytest.mark.parametrize(
  'value, says',
  [
    ('env:NOT_SET', 'the variable NOT_SET holds no key'),
    ('env:BLANK', 'the variable BLANK holds no key'),
    ('file:/not/there', r'cannot read /not/there \(No such file or directory\)'),
    ('file:{folder}', 'Is a directory'),
    ('file:{folder}/two', 'holds several lines; wanted one line'),
    ('file:{folder}/bytes', 'it is no text'),
  ],
)
def test_a_key_that_is_not_there_is_one_line_that_does_not_show_it(tmp_path, value, says):
  (tmp_path / 'two').write_text('first secret\nsecond secret\n')
  (tmp_path / 'bytes').write_bytes(b'\xff\xfe\x00')
  config = ConfigDict({'api_key': value.format(folder=tmp_path)})
  with pytest.raises(ConfigError, match=says) as error:
    keys.resolve(config, {'BLANK': '  '})
  assert str(error.value).startswith('--config.api_key=') and 'secret' not in str(error.value)


def test_only_a_key_on_the_command_line_is_warned_of_and_the_warning_does_not_show_it():
  found = keys.warnings(
    ['--config=configs/serve.py', '--config.api_key=open sesame', '--config.port=1']
  )
  assert len(found) == 1 and found[0].startswith('--config.api_key: every user')
  assert 'sesame' not in found[0]
  for quiet in ('env:MY_KEY', 'file:key', ''):
    assert keys.warnings([f'--config.server.api_key={quiet}']) == []


def test_an_entry_point_takes_the_key_from_where_it_is_told():
  assert serve.get_config().api_key == ''
  words = ['--config=configs/serve.py', '--config.api_key=env:PARAVT_NOT_SET']
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.serve', *words],
    cwd=ROOT,
    env=dict(os.environ),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert 'the variable PARAVT_NOT_SET holds no key' in done.stderr
