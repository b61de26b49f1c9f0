"""The benches: a small run of the real thing as a machine reads it, and the table that people read."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import bench as recipe
from experiments import bench, bench_generate

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SMALL = {
  'generate.batch': 2, 'generate.group': 2, 'generate.repeats': 1, 'generate.frames': 4, 'generate.new_tokens': 4,
  'generate.lanes': '((64, 2),)',
  'serve.concurrencies': '(2,)', 'serve.turns': 1, 'serve.group': 2, 'serve.frames': 2, 'serve.words': 4, 'serve.new_tokens': 4,
  'prefix.new_tokens': 2, 'publish.bytes': 20_000_000, 'server.embedded.lanes': '((64, 2), (384, 2))', 'server.embedded.pages': 64,
  'server.embedded.image_slots': 128, 'server.sglang.python': 'nowhere/python', 'threads': 1,
}  # fmt: skip


def run(*arguments: str) -> subprocess.CompletedProcess:
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  return subprocess.run([sys.executable, '-m', 'experiments.bench', '--config=configs/bench.py', *arguments], cwd=ROOT,
                        env=environment, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bench')
  return run('--config.suite=rollout', '--json', f'--config.run.folder={folder}',
             *(f'--config.{knob}={value}' for knob, value in SMALL.items()))


@pytest.fixture(scope='module')
def report(done):
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def test_json_is_one_object_on_stdout_and_all_else_goes_to_stderr(done, report):
  assert done.stdout.count('\n') == 1 and 'bench: embedded engine and transformers take turns' in done.stderr
  assert list(report) == ['embedded_vs_transformers', 'embedded_vs_sglang', 'prefix_reuse', 'publish']


def test_the_engine_and_transformers_say_the_same_and_the_ratio_is_that_of_their_speeds(report):
  found = report['embedded_vs_transformers']
  assert found['greedy_agreement'] == 1.0 and (found['threads'], found['batch'], found['new_tokens']) == (1, 2, 4)
  assert found['tokens_per_second_ratio'] == pytest.approx(
    found['embedded_tokens_per_second'] / max(found['transformers_tokens_per_second'], found['transformers_one_thread_tokens_per_second']))


def test_eight_rollouts_of_a_prompt_cost_one_prefill_whether_one_by_one_or_at_once(report):
  found = report['prefix_reuse']
  assert (found['one_by_one_prefills'], found['at_once_prefills'], found['prefills']) == (1.0, 1.0, 1.0)
  assert found['rollouts'] == 8 and found['prompt_tokens'] == 64 * 4 + 64


def test_without_sglang_its_figures_are_null_and_stderr_says_how_to_get_them(done, report):
  found = report['embedded_vs_sglang']
  assert found['tokens_per_second_ratio'] is None and found['concurrency_2']['sglang_tokens_per_second'] is None
  assert found['concurrency_2']['embedded_tokens_per_second'] > 0
  assert 'nowhere/python' in done.stderr and '`make sglang`' in done.stderr


def test_publishing_is_measured_by_stage_beside_a_plain_copy(report):
  assert all(report['publish'][f'{stage}_gb_per_s'] > 0 for stage in ('save', 'convert', 'load', 'copy'))


def test_an_unknown_suite_is_refused_with_the_known_ones():
  done = run('--config.suite=rolout')
  assert (done.returncode, done.stdout) == (2, '') and "wanted one of rollout" in done.stderr


def test_the_table_has_a_line_per_figure_with_its_unit_and_a_dash_for_what_was_not_measured():
  report = {'prefix_reuse': {'prefills': 1.0}, 'a': {'tokens_per_second_ratio': None, 'embedded_tokens_per_second': 12345.6}}
  assert bench.table(report).splitlines() == [
    'prefix_reuse.prefills              1  prompts',
    'a.tokens_per_second_ratio          -  times',
    'a.embedded_tokens_per_second  12,346  tokens/s',
  ]


def test_every_figure_that_is_no_count_has_a_unit(report):
  bare = {name for name, _ in bench.leaves(report) if not bench._unit(name)}
  assert bare == {'embedded_vs_transformers.batch', 'embedded_vs_transformers.new_tokens', 'prefix_reuse.prompt_tokens',
                  'prefix_reuse.rollouts'}


def test_confined_gives_that_many_cores_and_gives_the_others_back():
  if not hasattr(os, 'sched_setaffinity'):
    pytest.skip('this system has no affinity')
  before = os.sched_getaffinity(0)
  with bench_generate.confined(1) as cores:
    assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
  assert os.sched_getaffinity(0) == before


def test_the_recipe_is_locked():
  with pytest.raises(AttributeError, match='repeat'):
    recipe.get_config().generate.repeat = 3
