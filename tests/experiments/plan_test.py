"""`python -m experiments.plan`: what it prints, and each kind of bad recipe that it refuses."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
import time

import pytest
from absl import flags

from configs import base
from experiments import plan
from tests import patience

ROOT = pathlib.Path(__file__).parents[2]
RL, SFT, EVAL = 'configs/para_grpo.py', 'configs/sft.py', 'configs/eval.py'
SPLIT = f'{RL}:8b_split'


def run(capsys, *arguments):
  """(exit status, standard output, standard error) of the command, in this process."""
  values = flags.FlagValues()
  plan.define(values)
  status = plan.main(['plan', *arguments], values)
  out, err = capsys.readouterr()
  return status, out, err


def planned(capsys, *arguments):
  """The JSON object of a recipe."""
  status, out, _ = run(capsys, *arguments, '--json')
  return status, json.loads(out)


@pytest.mark.parametrize(
  ('config', 'devices'),
  [
    (f'{RL}:tiny', 1),
    (f'{RL}:2b', 1),
    (f'{RL}:8b', 8),
    (SPLIT, 8),
    (f'{RL}:8b_tpu', 8),
    (f'{SFT}:8b_tpu', 8),
    ('configs/grpo.py:8b', 8),
    (f'{SFT}:tiny', 1),
    (f'{SFT}:2b', 1),
    (f'{SFT}:8b', 8),
    (f'{EVAL}:tiny', 1),
    (f'{EVAL}:2b', 1),
    (f'{EVAL}:8b', 1),
  ],
)
def test_every_recipe_has_a_plan_whose_parts_add_up(capsys, config, devices):
  status, found = planned(capsys, f'--config={config}')
  assert status == (0 if found['fits'] else 1)
  assert found['devices'] == devices
  memory = dict(found['memory_gib_per_device'])
  total = memory.pop('total')
  assert total == pytest.approx(sum(memory.values()), abs=1e-3) and total > 0
  low, high = found['seconds_per_step']
  assert 0 < low <= high
  assert found['flops_per_step'] > 0
  assert found['fits'] is (not found['refusals'])


def test_the_table_names_every_part_and_the_hours(capsys):
  status, out, err = run(capsys, f'--config={SFT}:8b')
  assert (status, err) == (0, '')
  for word in ('weights', 'optimizer', 'gradients', 'activations', 'fill', 'TB over HBM', 'GiB a'):
    assert word in out
  assert 'hours' in out and out.endswith('fits    yes\n')


def test_a_recipe_that_does_not_fit_says_what_would_and_ends_with_status_1(capsys):
  status, found = planned(capsys, f'--config={RL}:8b', '--target=rtx4090:8')
  assert status == 1 and not found['fits']
  assert 'GiB per device, wanted at most 22.3' in found['refusals'][0]
  one = found['ways_out'][0]
  knobs = [word.rstrip(':') for word in shlex.split(one) if word.startswith('--')]
  # the way out is a command line that fits
  again, _ = planned(capsys, f'--config={RL}:8b', '--target=rtx4090:8', *knobs)
  assert again == 0


@pytest.mark.parametrize(
  ('arguments', 'line'),
  [
    ((':8b', 'extra'), "'extra' was not understood"),
    ((':8b', '--shape=calls=99'), 'wanted at most 15: agent.max_turns=3 rounds of 5'),
    ((':8b', '--shape=think=9999'), 'wanted at most 8192: agent.max_new_tokens=2048 a turn'),
    ((':8b', '--config.device.xla_flags=tpu'), 'wanted gpu or none on h100:8'),
    ((':8b_tpu', '--target=h100:8'), "xla_flags='tpu': wanted gpu or none"),
    ((':8b', '--config.train.rows=80000'), 'train.rows=80000: wanted at most 4096'),
    ((':8b', '--config.train.row_tokens=100000000'), 'wanted at most 1048576'),
    ((':8b', '--config.rollout.prompts=1000000'), 'prompts=1000000: wanted at most 512'),
    ((':8b', '--config.server.kind=sglang'), 'device.memory_fraction=0.92 leaves'),
  ],
)
def test_what_cannot_be_is_one_line_and_no_plan(capsys, arguments, line):
  status, out, said = run(capsys, f'--config={RL}{arguments[0]}', *arguments[1:])
  assert status in (1, 2) and line in said
  assert all(one.startswith('error: ') for one in said.splitlines()), said


def test_v6e_holds_the_learner_with_the_overrides_that_stand_with_the_scale(capsys):
  words = [f'--config.{name}={value}' for name, value in base.V6E.items()]
  status, found = planned(capsys, f'--config={RL}:8b_tpu', '--target=v6e:4x4', *words)
  assert (status, found['devices']) == (0, 16), found['refusals']
  assert found['memory_gib_per_device']['server'] == found['memory_gib_per_server_device'] == 0


def test_a_slice_whose_hosts_lack_chips_for_servers_is_refused(capsys):
  knobs = ('--config.mesh.fsdp=8', '--config.train.rows=8')
  status, _, said = run(capsys, f'--config={RL}:8b_tpu', *knobs)
  assert status == 2 and 'host 0 of --target=v5p:2x2x2 has 4 devices, wanted 6' in said
  # without servers in its process the learner takes all
  assert run(capsys, f'--config={RL}:8b_tpu', *knobs, '--config.server.kind=url')[0] == 0


def test_the_shape_of_episodes_can_be_stated(capsys):
  few, many = (
    planned(capsys, f'--config={SFT}:8b', '--config.train.freeze_vision=True', f'--shape={shape}')[
      1
    ]
    for shape in ('calls=0', 'calls=5,call_frames=16')
  )
  assert few['data']['documents'] != many['data']['documents']


def test_targets_can_be_listed_with_the_sources_of_their_numbers(capsys):
  status, out, _ = run(capsys, '--target=list')
  assert status == 0
  assert {line.split()[0] for line in out.splitlines()} >= {'h100', 'h200', 'v5p', 'v6e', 'cpu'}
  assert all(line.endswith(')') for line in out.splitlines())


# Kinds of bad recipe: (recipe, arguments, what the line says, what it offers).
BAD = {
  'unknown knob': (RL, ['--config.agent.max_turn=2'], 'max_turn', 'max_turns'),
  'unknown scale': (f'{RL}:9b', [], "scale '9b'", 'wanted one of tiny'),
  'no such file': ('configs/nothing.py', [], 'there is no such recipe', 'usage'),
  'recipe of another command': ('configs/bench.py', [], 'wanted a recipe', 'para_grpo'),
  'unknown dtype': (f'{RL}:8b', ['train.dtype=float16'], 'train.dtype', 'one of bfloat16'),
  'unknown backend': (f'{RL}:8b', ['train.backend=magic'], 'train.backend', 'one of'),
  'text for a number': (f'{RL}:8b', ['rollout.steps=many'], 'rollout.steps', 'wanted'),
  'rows do not divide': (f'{RL}:8b', ['train.rows=6'], 'train.rows=6', 'a multiple of 8'),
  'mesh larger than the target': (
    f'{RL}:8b',
    ['mesh.data=2', 'train.rows=16'],
    '16 devices',
    'larger target',
  ),
  'tensor does not divide heads': (
    f'{RL}:8b',
    ['mesh.tensor=16', 'mesh.fsdp=1', '--target=h100:16'],
    'mesh.tensor=16',
    'a divisor of 8',
  ),
  'fsdp does not divide widths': (
    f'{RL}:8b',
    ['mesh.fsdp=5', 'train.rows=5'],
    'embed=4096',
    'choose a mesh that divides',
  ),
  'tensor does not divide the vocabulary': (
    f'{RL}:tiny',
    ['mesh.tensor=3', '--target=cpu:4'],
    'mesh.tensor=3',
    'a divisor of 2',
  ),
  'row too short for an episode': (
    f'{RL}:8b',
    ['train.row_tokens=4096'],
    'train.row_tokens=4096',
    'at least 5057',
  ),
  'too few image slots': (f'{RL}:8b', ['train.row_images=32'], 'train.row_images', 'at least 64'),
  'slot smaller than a frame': (
    f'{RL}:8b',
    ['train.image_patches=100'],
    'video.max_pixels',
    'train.image_patches',
  ),
  'budget above the context': (
    f'{RL}:8b',
    ['sampling.context=4096'],
    'frames.budgets',
    'raise the context',
  ),
  'context above the model': (
    f'{RL}:8b',
    ['sampling.context=300000'],
    'sampling.context=300000',
    'at most 262144',
  ),
  'sub-agent above the context': (
    f'{RL}:8b',
    ['subagent.max_frames=600', 'train.row_images=600'],
    'subagent.max_frames',
    'fewer frames',
  ),
  'sampling that the learner cannot score': (
    f'{RL}:8b',
    ['sampling.top_p=0.9'],
    'top_p',
    'top_p=1',
  ),
  'queue smaller than a step': (
    f'{RL}:8b',
    ['rollout.max_concurrent=4'],
    'rollout.max_concurrent=4',
    'at least 8',
  ),
  'negative staleness': (f'{RL}:8b', ['rollout.staleness=-1'], 'rollout.staleness', 'at least 0'),
  'group of one': (f'{RL}:8b', ['rollout.group_size=1'], 'rollout.group_size', 'at least 2'),
  'warm-up longer than the run': (
    f'{SFT}:8b',
    ['steps=50'],
    'optimizer.warmup_steps=75',
    'below steps=50',
  ),
  'steps after the end of a cosine': (
    f'{SFT}:8b',
    ['steps=2000'],
    'steps=2000',
    'at most optimizer.total_steps=1500',
  ),
  'too large for the devices': (f'{RL}:8b', ['--target=rtx4090:8'], 'memory', 'would fit'),
  'servers on the learner devices': (
    SPLIT,
    [
      'server.sglang.devices=(3,4,5,6)',
      'train.row_tokens=8192',
      'train.row_images=128',
      'batches.row_lengths=6144',
    ],
    'server 5',
    'would fit',
  ),
  'server devices that are not there': (
    SPLIT,
    ['server.sglang.devices=(4,5,6,9)'],
    'server.sglang.devices',
    'below 8',
  ),
  'too few server devices': (
    SPLIT,
    ['server.sglang.devices=(4,5)'],
    'server.sglang.devices',
    '4 GPUs',
  ),
  'more servers than devices': (
    SPLIT,
    ['server.count=12', 'server.sglang.devices=()'],
    'server.count',
    'has 8',
  ),
  'cache above its part of the device': (
    SPLIT,
    ['server.sglang.mem_fraction=0.3'],
    'mem_fraction=0.3',
    'at least 0.',
  ),
  'cache smaller than the context': (
    SPLIT,
    ['server.sglang.max_total_tokens=8192'],
    'max_total_tokens',
    'at least context_length',
  ),
  'no lane for the context': (
    f'{RL}:tiny',
    ['server.embedded.lanes=((128, 16),)'],
    'server.embedded.lanes',
    'a lane of at least',
  ),
  'embedded caches above the device': (
    f'{EVAL}:8b',
    ['server.kind=embedded', 'server.embedded.pages=4096'],
    'memory',
    'would fit',
  ),
  'conversations longer than a row': (
    f'{SFT}:8b',
    ['train.row_tokens=4096'],
    'train.row_tokens=4096',
    'frames.max_frames',
  ),
  'images larger than their slots': (
    f'{SFT}:8b',
    ['train.large_image_patches=1024'],
    'frames.image_max_pixels',
    'raise train.image_patches',
  ),
  'world without a world': (f'{RL}:8b', ['data.kind=world'], 'data.kind', "'files'"),
  'a share of memory that is too small': (
    f'{RL}:8b',
    ['device.memory_fraction=0.4'],
    'device.memory_fraction=0.4',
    'wanted at least 0.',
  ),
  'an unknown set of flags': (f'{RL}:8b', ['device.xla_flags=fast'], 'xla_flags', 'one of none'),
  'an unknown remat policy': (f'{RL}:8b', ['train.remat=True'], 'train.remat', 'one of none'),
  'a server above what the learner leaves': (
    f'{RL}:2b',
    ['server.sglang.mem_fraction=0.4'],
    'mem_fraction=0.4',
    'wanted at least 0.',
  ),
  'unknown target': (f'{RL}:8b', ['--target=h900:8'], 'h900', 'wanted one of h100'),
  'target without a number': (f'{RL}:8b', ['--target=h100:some'], 'some', 'h100:8'),
  'unknown model': (f'{RL}:8b', ['--model=7b'], '--model=7b', 'one of 2b'),
  'unknown shape': (f'{RL}:8b', ['--shape=cals=2'], 'cals=2', 'a name of prompt'),
}


@pytest.mark.parametrize('kind', BAD)
def test_a_bad_recipe_is_refused_in_one_line_with_the_way_out(capsys, kind):
  config, changes, fault, way_out = BAD[kind]
  words = [one if one.startswith('--') else f'--config.{one}' for one in changes]
  begin = time.process_time()
  status, out, err = run(capsys, f'--config={config}', *words)
  assert time.process_time() - begin < 10
  assert status in (1, 2)
  lines = [line for line in err.splitlines() if line.startswith('error: ')]
  assert any(fault in line and way_out in line + out for line in lines), (err, out)
  assert 'Traceback' not in err


@pytest.mark.parametrize('kind', ['unknown knob', 'unknown dtype', 'rows do not divide'])
def test_a_refusal_is_json_too_with_every_field(capsys, kind):
  config, changes, fault, _ = BAD[kind]
  words = [one if one.startswith('--') else f'--config.{one}' for one in changes]
  status, found = planned(capsys, f'--config={config}', *words)
  assert status == 2 and found['fits'] is False
  assert any(fault in line for line in found['refusals'])
  assert {'devices', 'memory_gib_per_device', 'flops_per_step', 'seconds_per_step'} <= found.keys()


def test_a_plan_asks_for_no_device_and_no_weights():
  # a platform that this machine lacks: JAX would fail at the first look for a device
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.plan', f'--config={RL}:8b', '--target=h200:8', '--json'],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'tpu', 'XLA_FLAGS': ''},
    capture_output=True,
    text=True,
    timeout=patience.seconds(120),
    check=False,
  )
  assert done.returncode in (0, 1), done.stderr
  assert json.loads(done.stdout)['target']['name'] == 'h200:8'
