"""The benches: a small run of the real thing as a machine reads it, and the table that people
read.
"""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from configs import bench as recipe
from experiments.bench import __main__ as bench
from experiments.bench import data as bench_data
from experiments.bench import generate as bench_generate
from experiments.bench.recipe import UnpackBench
from paravt_jax.errors import DataError
from tests import patience

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SMALL = {
  'generate.batch': 2, 'generate.group': 2, 'generate.repeats': 1, 'generate.frames': 4, 'generate.new_tokens': 4,
  'generate.lanes': '((64, 2),)',
  'serve.concurrencies': '(2,)', 'serve.turns': 1, 'serve.group': 2, 'serve.frames': 2, 'serve.words': 4, 'serve.new_tokens': 4,
  'prefix.new_tokens': 2, 'publish.bytes': 20_000_000, 'server.embedded.lanes': '((64, 2), (384, 2))', 'server.embedded.pages': 64,
  'server.embedded.image_slots': 128, 'server.sglang.python': 'nowhere/python', 'threads': 1,
}  # fmt: skip


SMALL_DATA = {
  'data.mix.frames': '(1, 4)', 'data.mix.text': '(10, 60)', 'data.mix.images': 3, 'data.mix.image_tokens': '(4, 16)',
  'data.packing.rows': 60, 'data.packing.batches': 3, 'data.clip.seconds': 12, 'data.clip.height': 64, 'data.clip.width': 96,
  'data.clip.fps': 10, 'data.decode.overviews': 1, 'data.decode.overview_frames': 4, 'data.decode.windows': 2,
  'data.decode.window_frames': 3, 'data.decode.window_seconds': 3.0, 'data.decode.repeats': 1, 'data.unpack.bytes': 400_000,
  'data.unpack.repeats': 1, 'data.materialize.rows': 50, 'data.materialize.text': '(10, 20)', 'data.input.rows': 30,
  'data.input.steps': 2, 'data.input.stage_rows': 4, 'data.step.peak_flops': 1e18, 'data.sft.train.row_tokens': 512,
  'data.sft.train.row_images': 16, 'data.sft.train.micro_batches': 2, 'data.sft.video.workers': 1, 'threads': 1,
}  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run(
    [sys.executable, '-m', 'experiments.bench', '--config=configs/bench.py', *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    check=False,
    timeout=patience.seconds(300),
  )


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench')
  return run(
    '--config.suite=rollout',
    '--json',
    f'--config.run.folder={folder}',
    *(f'--config.{knob}={value}' for knob, value in SMALL.items()),
  )


@pytest.fixture(scope='module')
def report(done):
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


@pytest.mark.slow
def test_json_is_one_object_on_stdout_and_all_else_goes_to_stderr(done, report):
  assert (
    done.stdout.count('\n') == 1
    and 'bench: embedded engine and transformers take turns' in done.stderr
  )
  assert list(report) == [
    'embedded_vs_transformers',
    'embedded_vs_sglang',
    'prefix_reuse',
    'publish',
  ]


@pytest.mark.slow
def test_the_engine_and_transformers_say_the_same_and_the_ratio_is_that_of_their_speeds(report):
  found = report['embedded_vs_transformers']
  assert found['greedy_agreement'] == 1.0 and (
    found['threads'],
    found['batch'],
    found['new_tokens'],
  ) == (1, 2, 4)
  assert found['tokens_per_second_ratio'] == pytest.approx(
    found['embedded_tokens_per_second']
    / max(
      found['transformers_tokens_per_second'], found['transformers_one_thread_tokens_per_second']
    )
  )


@pytest.mark.slow
def test_eight_rollouts_of_a_prompt_cost_one_prefill_whether_one_by_one_or_at_once(report):
  found = report['prefix_reuse']
  assert (found['one_by_one_prefills'], found['at_once_prefills'], found['prefills']) == (
    1.0,
    1.0,
    1.0,
  )
  assert found['rollouts'] == 8 and found['prompt_tokens'] == 64 * 4 + 64


@pytest.mark.slow
def test_without_sglang_its_figures_are_null_and_stderr_says_how_to_get_them(done, report):
  found = report['embedded_vs_sglang']
  assert (
    found['tokens_per_second_ratio'] is None
    and found['concurrency_2']['sglang_tokens_per_second'] is None
  )
  assert found['concurrency_2']['embedded_tokens_per_second'] > 0
  assert 'nowhere/python' in done.stderr and '`make sglang`' in done.stderr


@pytest.mark.slow
def test_publishing_is_measured_by_stage_beside_a_plain_copy(report):
  assert all(
    report['publish'][f'{stage}_gb_per_s'] > 0 for stage in ('save', 'convert', 'load', 'copy')
  )


# The data suite


@pytest.fixture(scope='module')
def data_done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench')
  return run(
    '--config.suite=data',
    '--json',
    f'--config.run.folder={folder}',
    *(f'--config.{knob}={value}' for knob, value in SMALL_DATA.items()),
  )


@pytest.fixture(scope='module')
def data_report(data_done):
  assert data_done.returncode == 0, data_done.stderr[-3000:]
  return json.loads(data_done.stdout)


def test_the_data_suite_prints_one_object_with_its_figures_and_all_else_goes_to_stderr(
  data_done, data_report
):
  assert (
    data_done.stdout.count('\n') == 1
    and 'bench: decoding: our reader and decord take turns' in data_done.stderr
  )
  assert list(data_report) == [
    'packing_efficiency',
    'decode',
    'unpack',
    'materialize',
    'input_wait_share',
    'first_epoch_wait_share',
    'input',
    'stages',
  ]
  assert 0.5 < data_report['packing_efficiency'] <= 1


def test_decord_is_asked_plainly_and_in_our_pool_and_the_faster_one_counts(data_report):
  found = data_report['decode']
  for part in (found, found['overview'], found['window']):
    best = max(part['decord_frames_per_second'], part['decord_pool_frames_per_second'])
    assert part['frames_per_second_ratio_to_decord'] == pytest.approx(
      part['ours_frames_per_second'] / best
    )


def test_unpacking_is_timed_on_one_archive_of_either_kind_and_on_several(data_report):
  if shutil.which('unzip') is None:
    pytest.skip('this machine has no unzip')
  found = data_report['unpack']
  ratio = lambda kind: found[kind]['ours_seconds'] / found[kind]['unzip_seconds']
  assert found['time_ratio_to_unzip'] == max(ratio('jpgs'), ratio('mp4s'))
  assert (
    found['several_time_ratio_to_unzip']
    == found['several']['ours_seconds'] / found['several']['unzip_seconds']
  )


def test_without_unzip_the_ratios_are_null_and_stderr_says_how_to_get_it(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setenv('PATH', str(tmp_path / 'nothing'))
  found = bench_data.unpack(UnpackBench(bytes=200_000, archives=2, repeats=1), tmp_path)
  assert (
    found['time_ratio_to_unzip'],
    found['several_time_ratio_to_unzip'],
    found['jpgs']['unzip_seconds'],
  ) == (None, None, None)
  assert found['jpgs']['ours_seconds'] > 0 and '`apt-get install unzip`' in capsys.readouterr().err


def test_rows_are_materialized_by_the_command_and_counted_in_what_it_wrote(data_report):
  found = data_report['materialize']
  assert found['rows'] == 50 and found['rows_per_second'] == pytest.approx(50 / found['seconds'])


def test_a_share_is_the_time_waited_of_the_time_of_all_steps(data_report):
  found = data_report['input']
  for epoch, name in (('first', 'first_epoch_wait_share'), ('second', 'input_wait_share')):
    waited = found[f'{epoch}_waited_seconds']
    assert data_report[name] == pytest.approx(waited / (waited + 2 * found['step_seconds']))
  assert found['step_seconds'] == pytest.approx(6 * 8.2e9 * (2 * 512) / (1e18 * 0.4))


def test_both_epochs_are_the_same_batches_and_lose_nothing(data_report):
  found = data_report['input']
  assert (
    found['first_samples'] == found['second_samples'] > 0
    and found['first_dropped'] == found['second_dropped'] == 0
  )
  assert found['first_pack_fill'] == found['second_pack_fill']


def test_a_command_that_fails_is_one_error_with_what_it_said(tmp_path):
  command = [
    sys.executable,
    '-m',
    'paravt_jax.data.unpack',
    '--archives',
    str(tmp_path / 'nowhere'),
    '--root',
    'x',
    '--bad',
  ]
  with pytest.raises(DataError, match=r'(?s)nowhere.*ended with 2: .*--bad'):
    bench_data._run(command)


def test_every_figure_of_the_data_suite_that_is_no_count_has_a_unit(data_report):
  bare = {name for name, _ in bench.leaves(data_report) if not bench._unit(name)}
  assert bare == {
    'decode.workers',
    'materialize.rows',
    'input.steps',
    'input.first_samples',
    'input.first_dropped',
    'input.second_samples',
    'input.second_dropped',
  }


def test_every_knob_of_the_data_suite_is_read():
  files = [
    ROOT / 'experiments' / 'bench' / f'{name}.py' for name in ('data', 'decode', 'input', 'media')
  ]
  used = {
    node.attr
    for file in files
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Attribute)
  }
  sections = {
    name: section for name, section in recipe.get_config().data.items() if name != 'sft'
  }  # that one is experiments.sft's
  assert [
    f'{name}.{knob}' for name, section in sections.items() for knob in section if knob not in used
  ] == []


# Both


def test_an_unknown_suite_is_refused_with_the_known_ones():
  done = run('--config.suite=rolout')
  assert (done.returncode, done.stdout) == (2, '')
  assert f'wanted one of {", ".join(bench.SUITES)}' in done.stderr


def test_the_table_has_a_line_per_figure_with_its_unit_and_a_dash_for_what_was_not_measured():
  report = {
    'prefix_reuse': {'prefills': 1.0},
    'a': {'tokens_per_second_ratio': None, 'embedded_tokens_per_second': 12345.6},
  }
  assert bench.table(report).splitlines() == [
    'prefix_reuse.prefills              1  prompts',
    'a.tokens_per_second_ratio          -  times',
    'a.embedded_tokens_per_second  12,346  tokens/s',
  ]


@pytest.mark.slow
def test_every_figure_that_is_no_count_has_a_unit(report):
  bare = {name for name, _ in bench.leaves(report) if not bench._unit(name)}
  assert bare == {
    'embedded_vs_transformers.batch',
    'prefix_reuse.rollouts',
  }


def test_confined_gives_that_many_cores_and_gives_the_others_back():
  if not hasattr(os, 'sched_setaffinity'):
    pytest.skip('this system has no affinity')
  before = os.sched_getaffinity(0)
  with bench_generate.limit_cores(1) as cores:
    assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
  assert os.sched_getaffinity(0) == before


def test_the_recipe_is_locked():
  with pytest.raises(AttributeError, match='repeat'):
    recipe.get_config().generate.repeat = 3
