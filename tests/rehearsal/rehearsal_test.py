"""The rehearsal of the 8B scale: killed, resumed, exported and evaluated, on real SGLang."""

import json

import numpy as np
import pytest

from paravt_jax.models.qwen3_vl import stored
from paravt_jax.report import episodes
from tests.rehearsal import __main__ as command
from tests.rehearsal import job, knobs

pytestmark = [pytest.mark.slow, pytest.mark.sglang]


@pytest.fixture(scope='module')
def outcome(tmp_path_factory):
  return job.rehearse(tmp_path_factory.mktemp('rehearsal'))


@pytest.fixture(scope='module')
def lines(outcome):
  return job.lines(outcome.place)


def test_a_killed_run_goes_on_from_its_newest_record_and_has_each_step_once(outcome, lines):
  assert outcome.resumed_from < outcome.killed_after < knobs.STEPS
  assert [line['step'] for line in lines] == list(range(knobs.STEPS))
  assert [line['policy/version'] for line in lines] == [1, 2, 3, 4]
  assert {line['server/lost'] for line in lines} == {0.0}


def test_rollouts_run_ahead_of_the_learner_by_up_to_two_versions(lines):
  assert lines[0]['staleness/max'] == 0
  assert max(line['staleness/max'] for line in lines) in (1, 2)


def test_learner_and_servers_agree_within_what_rounding_costs(outcome, lines):
  limits = json.loads((outcome.place / 'run' / 'config.json').read_text())['rollout']
  for line in lines:
    limit = limits['gap_limit'] + limits['gap_ratio'] * line['policy/rounding']
    assert 0 < line['policy/gap_mean'] <= limit  # 0 would be float32


def test_the_model_calls_the_tool_and_its_sub_agents_are_trained_too(outcome):
  log = outcome.place / 'run' / 'episodes' / 'train.jsonl'
  found = [entry.scored.episode for entry in episodes.read(log)]
  assert len(found) == 2 * 4 * knobs.STEPS
  called = [any(one.subagent is not None for one in episode.results) for episode in found]
  assert sum(called) >= 2


def test_the_optimizer_moved_the_weights_and_skipped_nothing(lines):
  assert all(np.isfinite(line['policy/loss']) for line in lines)
  assert sum(line['optim/skipped'] for line in lines) == 0
  assert max(line['optim/grad_norm'] for line in lines) > 0


def test_the_export_has_the_tensors_the_dtype_and_the_files_of_the_checkpoint(outcome):
  folders = outcome.place / 'model', outcome.place / 'run' / 'hf'
  given, made = (stored.tensors(sorted(folder.glob('model-*.safetensors'))) for folder in folders)
  assert given.keys() == made.keys() and len(given) > 50
  assert all(made[name].shape == given[name].shape for name in given)
  assert {made[name].dtype for name in made} == {given[name].dtype for name in given}
  assert len(list(folders[1].glob('model-*.safetensors'))) >= 2
  assert (folders[1] / 'model.safetensors.index.json').is_file()
  for name in ('vocab.json', 'merges.txt', 'tokenizer.json'):
    assert (folders[1] / name).read_bytes() == (folders[0] / name).read_bytes()


def test_both_servers_hold_the_last_version_and_the_evaluation_took_its_answers(outcome):
  assert outcome.versions == (str(knobs.STEPS),) * 2
  summary = json.loads((outcome.results / 'summary.json').read_text())
  assert (summary['videomme']['samples'], summary['videomme']['errors']) == (3, 0)


def test_the_command_says_what_was_found(outcome):
  said = command.table(outcome)
  assert [line.split()[0] for line in said.splitlines()] == [
    *('checkpoint', 'killed', 'resumed', 'rollouts', 'log-probs', 'servers', 'export'),
    *('evaluation', 'minutes'),
  ]
