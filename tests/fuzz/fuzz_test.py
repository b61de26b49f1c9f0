"""`make fuzz`: every target stands a few seeded inputs, and the driver finds, names and replays a
fault.
"""

import time

import pytest

from tests.fuzz import driver, mutate
from tests.fuzz.driver import Target
from tests.fuzz.targets import open_targets

INPUTS = 24


@pytest.fixture(scope='module')
def targets():
  with open_targets(with_server=False) as found:
    yield found


def test_no_target_has_a_fault_in_its_first_inputs(targets, tmp_path):
  results = driver.run(targets, seed=0, folder=tmp_path, inputs=INPUTS)
  assert {name: result.faults for name, result in results.items() if result.faults} == {}
  assert [result.tried for result in results.values()] == [INPUTS] * len(targets)
  assert list(tmp_path.iterdir()) == []


def test_inputs_reach_behind_the_first_check_of_every_target(targets, tmp_path):
  """A generator whose inputs are all refused at once would test nothing."""
  results = driver.run(targets, seed=0, folder=tmp_path, inputs=INPUTS)
  assert [name for name, result in results.items() if result.outcomes['refused'] == INPUTS] == []
  assert 'frames' in results['videos'].outcomes and 'unpacked' in results['unpacking'].outcomes


def test_the_same_seed_makes_the_same_inputs(targets):
  for target in targets:
    made = [target.make(driver.seeds.rng(seed, 'fuzz', target.name, 3)) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2], target.name


@pytest.mark.slow
def test_the_real_server_stands_requests(tmp_path):
  with open_targets() as found:
    results = driver.run([found[-1]], seed=0, folder=tmp_path, inputs=200)
  assert not results['server'].faults and results['server'].outcomes['200'] > 10


def _broken(data: bytes) -> str:
  if data.startswith(b'\1'):
    raise ValueError('one')
  if data.startswith(b'\2'):
    time.sleep(60)
  if data.startswith(b'\3'):
    while True:
      pass
  return 'valid'


BROKEN = Target('broken', lambda rng: bytes([rng.integers(3)]), _broken, seconds=0.05)


def test_faults_are_counted_by_kind_saved_and_replayed(tmp_path):
  told = []
  one = Target('one', lambda rng: bytes([rng.integers(2)]), _broken)
  [result] = driver.run([one], seed=0, folder=tmp_path, inputs=20, say=told.append).values()
  [(kind, count)] = result.faults.items()
  assert kind.startswith('ValueError at fuzz_test.py') and 0 < count < 20
  [saved] = tmp_path.iterdir()
  assert saved.read_bytes() == b'\1' and driver.replay_command('one', saved) in told[0]
  assert driver.attempt(one, saved.read_bytes())[1] == kind


@pytest.mark.parametrize('data', [b'\2', b'\3'])
def test_an_input_that_hangs_asleep_or_busy_is_ended(data):
  start = time.monotonic()
  _, kind, _ = driver.attempt(BROKEN, data)
  assert kind.startswith('TooSlow') and time.monotonic() - start < 30


def test_an_input_that_takes_too_much_memory_is_a_fault():
  large = Target(
    'large', mutate.json_value, lambda data: str(bytearray(300 << 20)[0]), megabytes=64
  )
  assert driver.attempt(large, b'')[1].startswith('TooLarge')


def test_bounded_by_time_every_target_has_its_share(tmp_path):
  fast = [Target(name, lambda rng: b'', lambda data: 'valid') for name in 'ab']
  results = driver.run(fast, seed=0, folder=tmp_path, seconds=0.4)
  assert all(result.tried and 0.1 < result.seconds < 30 for result in results.values())
