"""What the library gets of the process around it, and hands on to servers."""

import pathlib

from experiments import launch
from paravt_jax.orchestrator.host import Host

HOST = Host({'HOME': '/h', 'XLA_FLAGS': '--xla_a=1'}, pathlib.Path('launchers'))


def test_a_servers_threads_are_bounded_only_when_the_recipe_says_so():
  bounded = HOST.child_environment(2)
  assert bounded == {
    'HOME': '/h',
    'XLA_FLAGS': '--xla_a=1 --xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads=2',
    'OMP_NUM_THREADS': '2',
  }
  assert HOST.child_environment(0) == HOST.environment


def test_a_server_on_the_learners_gpu_takes_its_own_share_of_memory():
  learner = Host({'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.65'}, HOST.launchers)
  assert learner.child_environment(0, 0.3) == {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.3'}
  assert learner.child_environment(0) == learner.environment
  # JAX refuses two fractions, so that of the user counts for both
  user = Host({'XLA_CLIENT_MEM_FRACTION': '0.4'}, HOST.launchers)
  assert user.child_environment(0, 0.3) == user.environment


def test_a_servers_environment_is_a_copy():
  HOST.child_environment(0)['HOME'] = '/else'
  assert HOST.environment['HOME'] == '/h'


def test_the_host_of_an_entry_point_is_this_process_and_this_checkout(monkeypatch):
  monkeypatch.setenv('SOME_NAME', 'its value')
  host = launch.host()
  assert host.environment['SOME_NAME'] == 'its value'
  assert host.launchers.is_dir() and host.launchers.parts[-2:] == ('third_party', 'sglang')
