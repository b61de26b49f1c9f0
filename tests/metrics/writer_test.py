"""The metrics of a run on disk: whole records only, no step twice, clear refusals."""

import errno
import json
import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from paravt_jax.errors import ConfigError, DataError, ParavtError
from paravt_jax.metrics.writer import MetricsWriter, read, write_whole


def _writer(folder: Path, start_step: int = 0, **options) -> MetricsWriter:
  return MetricsWriter(
    folder, **{'tensorboard': False, 'wandb': None, 'start_step': start_step, **options}
  )


def _steps(folder: Path) -> list[int]:
  return [record['step'] for record in read(folder / 'metrics.jsonl')]


def test_a_step_is_one_json_object_on_disk_before_write_returns(tmp_path):
  writer = _writer(tmp_path)
  writer.write(0, {'reward/total': np.float32(1.5), 'accuracy/k=4': 1})
  record = json.loads((tmp_path / 'metrics.jsonl').read_text())
  writer.close()
  assert record.pop('wall') > 1.7e9
  assert record == {'step': 0, 'reward/total': 1.5, 'accuracy/k=4': 1.0}


def test_values_that_are_not_finite_become_null_are_counted_and_warned_about_once(tmp_path, caplog):
  with caplog.at_level(logging.WARNING), _writer(tmp_path) as writer:
    writer.write(0, {'policy/loss': float('nan'), 'policy/entropy': float('inf'), 'accuracy': 0.5})
    writer.write(1, {'policy/loss': float('-inf')})
  first, second = read(tmp_path / 'metrics.jsonl')
  assert (first['policy/loss'], first['policy/entropy'], first['accuracy']) == (None, None, 0.5)
  assert first['metrics/nonfinite'] == 2.0
  assert second['metrics/nonfinite'] == 1.0
  assert writer.nonfinite == 3
  assert [record.getMessage() for record in caplog.records] == [
    'step 0: not finite, written as null: policy/loss, policy/entropy (2 such values so far)'
  ]


def test_an_unknown_name_is_refused_and_nothing_is_written(tmp_path):
  with _writer(tmp_path) as writer, pytest.raises(ConfigError, match='did you mean'):
    writer.write(0, {'accuracy': 1.0, 'polcy/loss': 1.0})
  assert _steps(tmp_path) == []


def test_steps_must_increase(tmp_path):
  with _writer(tmp_path) as writer:
    writer.write(3, {'accuracy': 1.0})
    with pytest.raises(ValueError, match='got step 3 after step 3'):
      writer.write(3, {'accuracy': 1.0})


def test_a_resumed_run_has_no_step_twice(tmp_path):
  with _writer(tmp_path) as writer:
    for step in range(5):
      writer.write(step, {'accuracy': 0.0})
  with _writer(tmp_path, start_step=3) as writer:  # the checkpoint holds steps 0..2
    writer.write(3, {'accuracy': 1.0})
  assert _steps(tmp_path) == [0, 1, 2, 3]
  assert read(tmp_path / 'metrics.jsonl')[3]['accuracy'] == 1.0


def test_a_run_from_step_0_begins_anew(tmp_path):
  with _writer(tmp_path) as writer:
    writer.write(0, {'accuracy': 0.0})
  _writer(tmp_path, start_step=0).close()
  assert _steps(tmp_path) == []


def test_a_torn_last_line_is_left_out_by_the_reader_and_cut_off_by_a_resume(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0, "accuracy": 1.0}\n{"step": 1, "accu')
  assert _steps(tmp_path) == [0]
  with _writer(tmp_path, start_step=1) as writer:
    writer.write(1, {'accuracy': 0.5})
  assert _steps(tmp_path) == [0, 1]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
  with pytest.raises(DataError, match=r'metrics.jsonl line 2: got .*nonsense'):
    read(path)


def test_a_missing_file_has_no_records(tmp_path):
  assert read(tmp_path / 'metrics.jsonl') == []


def test_a_full_disk_is_one_clear_error(tmp_path):
  (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
  message = r'metrics.jsonl: could not write step 7: No space left.*free space'
  with _writer(tmp_path) as writer, pytest.raises(ParavtError, match=message):
    writer.write(7, {'accuracy': 1.0})


def test_a_line_that_did_not_fit_is_taken_back_whole(tmp_path):
  # A file-size limit of 300 bytes lets the second record begin but not end, as a disk does that
  # fills up.
  code = """
import resource, signal, sys
from paravt_jax.errors import ParavtError
from paravt_jax.metrics.writer import MetricsWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = MetricsWriter(sys.argv[1], tensorboard=False, wandb=None, start_step=0)
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
names = ['reward/total', 'reward/accuracy', 'reward/format', 'reward/tool', 'reward/base', 'reward/anchor']
writer.write(0, dict.fromkeys(names, 0.123456))
try:
  writer.write(1, dict.fromkeys(names, 0.123456))
except ParavtError as error:
  print(error)
"""
  done = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path)],
    capture_output=True,
    text=True,
    check=True,
    cwd=Path(__file__).parents[2],
  )
  assert 'could not write step 1: File too large' in done.stdout
  text = (tmp_path / 'metrics.jsonl').read_text()
  assert text.endswith('}\n') and text.count('\n') == 1


def _events(folder: Path) -> list[event_pb2.Event]:
  """Undoes the TFRecord framing: length (8), crc (4), payload, crc (4)."""
  (path,) = folder.iterdir()
  data, found = path.read_bytes(), []
  while data:
    size = int.from_bytes(data[:8], 'little')
    found.append(event_pb2.Event.FromString(data[12 : 12 + size]))
    data = data[16 + size :]
  return found


def test_tensorboard_gets_every_finite_value_at_its_step(tmp_path):
  with _writer(tmp_path, start_step=4, tensorboard=True) as writer:
    writer.write(4, {'accuracy': 0.5, 'policy/loss': float('nan')})
    events = _events(tmp_path / 'tensorboard')  # flushed before close
  values = {
    value.tag: (event.step, value.simple_value) for event in events for value in event.summary.value
  }
  assert values == {'accuracy': (4, 0.5), 'metrics/nonfinite': (4, 1.0)}
  assert [event.step for event in events if event.session_log.status] == [
    4
  ]  # viewers purge what a killed run left


def test_wandb_is_imported_only_when_asked_and_told_of_clearly_when_missing(tmp_path, monkeypatch):
  monkeypatch.setitem(
    sys.modules, 'wandb', None
  )  # importing a None entry raises ModuleNotFoundError
  _writer(tmp_path).close()
  with pytest.raises(
    ConfigError, match='wandb is not installed; pip install wandb, or switch it off'
  ):
    _writer(tmp_path, wandb={})


def test_wandb_gets_its_options_and_the_finite_values(tmp_path, monkeypatch):
  seen = []
  run = types.SimpleNamespace(
    log=lambda values, step: seen.append((step, values)), finish=lambda: seen.append('finish')
  )
  monkeypatch.setitem(
    sys.modules, 'wandb', types.SimpleNamespace(init=lambda **options: seen.append(options) or run)
  )
  with _writer(tmp_path, wandb={'project': 'p', 'mode': 'offline'}) as writer:
    writer.write(0, {'accuracy': 0.5})
  assert seen == [{'project': 'p', 'mode': 'offline'}, (0, {'accuracy': 0.5}), 'finish']


def test_a_text_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
  place = tmp_path / 'deep' / 'page.html'
  assert (
    write_whole(str(place), 'one \udcff', 'write the page') == place
    and place.read_text() == 'one ?'
  )

  def full(part, path):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(
    ParavtError, match=r'page.html: could not write the page: No space left on device; free space'
  ):
    write_whole(place, 'another', 'write the page')
  assert place.read_text() == 'one ?' and [path.name for path in place.parent.iterdir()] == [
    'page.html'
  ]
