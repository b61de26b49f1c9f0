"""Memory by part, where servers stand, and what the refusals of memory say."""

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.plan import memory, server
from paravt_jax.orchestrator.plan.accelerators import parse_target
from paravt_jax.orchestrator.plan.memory import PARTS, Memory
from tests.orchestrator.plan.requests import request

H100 = parse_target('h100:8')


def of_parts(alone=0.0, **parts):
  return Memory({**dict.fromkeys(PARTS, 0.0), **parts}, alone, int(alone > 0))


def test_what_fits_is_not_refused():
  assert memory.find_refusals(of_parts(weights=75.0), H100) == []


def test_what_does_not_fit_names_the_device_and_the_limit():
  (line,) = memory.find_refusals(of_parts(weights=76.0), H100)
  assert line.startswith('memory: 76.0 GiB per device, wanted at most 75.1, 95 % of H100 80GB SXM')


def test_learner_and_server_on_one_device_are_named_apart():
  (line,) = memory.find_refusals(of_parts(weights=49.0, gradients=1.0, server=40.0), H100)
  assert '(learner 50.0, server 40.0)' in line
  (line,) = memory.find_refusals(of_parts(weights=50.0, server=40.0), H100)  # of an evaluation
  assert 'learner' not in line


def test_a_server_that_does_not_fit_its_own_device_is_refused():
  (line,) = memory.find_refusals(of_parts(weights=10.0, alone=80.0), H100)
  assert line.startswith('--config.server: a server takes 80.0 GiB')


@pytest.mark.parametrize(
  ('devices', 'learner', 'expected'),
  [
    ((4, 5, 6, 7), 4, (0, 4)),
    ((), 4, (0, 4)),  # behind the learner's
    ((3, 4, 5, 6), 4, (1, 3)),
    ((), 8, (1, 0)),  # no device is left: they share the learner's
  ],
)
def test_sglang_servers_stand_on_the_named_devices_or_behind_the_learner(
  devices, learner, expected
):
  asked = request('rl:8b_split', server__sglang__devices=devices)
  section = asked.recipe.server
  share = server.share_of(section, asked.model, 10, 'cuda')
  assert memory.placement(section, share, learner, H100) == expected


def test_an_embedded_server_stands_on_the_learners_device_and_one_by_url_on_none():
  tiny = request('rl:tiny')
  share = server.share_of(tiny.recipe.server, tiny.model, 10, 'cuda')
  assert memory.placement(tiny.recipe.server, share, 1, tiny.target) == (1, 0)
  assert server.share_of(request('rl:8b').recipe.server, tiny.model, 10, 'cuda') is None


def test_servers_in_the_learners_process_stand_behind_the_mesh_on_each_host():
  asked = request('rl:8b_tpu', 'v5p:2x2x2')
  assert asked.target.hosts == 2
  section = asked.recipe.server
  share = server.share_of(section, asked.model, 8_767_123_696, 'tpu')
  assert share is not None
  assert share.weights == 8_767_123_696  # two bytes each, on two devices
  assert memory.placement(section, share, 4, asked.target) == (0, 4)
  # it has the memory of the learner's process, which is of other devices
  cuda = section.replace(count=2)
  memory.check_fraction(cuda, share, H100, learner=0.92)


def test_a_server_in_the_learners_process_fits_the_learners_share_of_its_device():
  alone = memory.Memory({'weights': 50.0, 'server': 0.0}, server_alone=70.0, server_devices=1)
  memory.refuse_share(alone, 0.75, H100)  # a process of its own
  memory.refuse_share(alone, 0.9, H100, in_process=True)
  with pytest.raises(ConfigError, match=r'memory_fraction=0.75: wanted at least 0.89, 70.0 GiB'):
    memory.refuse_share(alone, 0.75, H100, in_process=True)


def test_sglangs_share_is_its_weights_and_the_cache_that_its_options_name():
  asked = request('rl:8b_split')
  share = server.share_of(asked.recipe.server, asked.model, 8_767_123_696, 'cuda')
  assert share.weights == 2 * 8_767_123_696
  # 262,144 tokens of 36 layers with 8 key heads of 128, keys and values, bfloat16; 1 GiB of images
  assert share.cache == 262_144 * 2 * 36 * 8 * 128 * 2 + (1 << 30) == (36 << 30) + (1 << 30)


def test_an_embedded_server_has_pages_and_on_a_cpu_the_columns_of_all_slots():
  asked = request('eval:8b', server__kind='embedded')
  share = lambda platform: server.share_of(asked.recipe.server, asked.model, 10, platform)
  token = 2 * 36 * 8 * 128 * 2
  pages = 1281 * 256 * token
  images = 4097 * 49 * 4 * 4096 * 2
  assert share('cuda').cache == share('tpu').cache == pages + images
  columns = ((8192 + 4) * 32 + (32768 + 4) * 16) * token
  assert share('cpu').cache == pages + columns + images


def test_a_fraction_that_does_not_hold_weights_and_cache_is_refused():
  asked = request('rl:8b_split', server__sglang__mem_fraction=0.3)
  section = asked.recipe.server
  share = server.share_of(section, asked.model, 8_767_123_696, 'cuda')
  with pytest.raises(ConfigError, match=r'mem_fraction=0.3: wanted at least 0.68'):
    memory.check_fraction(section, share, H100)
  memory.check_fraction(request('rl:8b_split').recipe.server, share, H100)


def test_behind_a_learner_a_servers_fraction_counts_what_is_free():
  asked = request('rl:2b', server__sglang__mem_fraction=0.5)
  share = server.share_of(asked.recipe.server, asked.model, 2_127_532_032, 'cuda')
  # .35 of 79.1 GiB, less 1 of the CUDA context, is 26.7; 4 GiB of weights, 14 of keys and values, .5 of images
  with pytest.raises(
    ConfigError, match=r'mem_fraction=0.5: wanted at least 0.70, 18.5 GiB .*, of 26.7'
  ):
    memory.check_fraction(asked.recipe.server, share, H100, 0.65)
  memory.check_fraction(request('rl:2b').recipe.server, share, H100, 0.65)
  memory.check_fraction(asked.recipe.server, share, H100)  # on a device of its own


def test_no_fraction_above_1_is_asked_for():
  asked = request('rl:2b')
  share = server.share_of(asked.recipe.server, asked.model, 2_127_532_032, 'cuda')
  with pytest.raises(ConfigError, match=r'18.5 GiB for .* device.memory_fraction=0.95 leaves'):
    memory.check_fraction(asked.recipe.server, share, H100, 0.95)


def test_learner_and_embedded_server_take_at_most_one_gpu_together():
  asked = request('rl:2b', server__kind='embedded')
  share = server.share_of(asked.recipe.server, asked.model, 10, 'cuda')
  memory.check_fraction(asked.recipe.server, share, H100, 0.65)
  with pytest.raises(ConfigError, match=r'embedded.memory_fraction=0.3: with .* is 1.10 of a GPU'):
    memory.check_fraction(asked.recipe.server, share, H100, 0.8)
  memory.check_fraction(asked.recipe.server, share, parse_target('cpu:1'), 0.8)


def test_a_learner_that_does_not_fit_its_share_is_told_the_share_it_needs():
  found = of_parts(weights=50.0, server=20.0)
  memory.refuse_share(found, 0.65, H100)
  with pytest.raises(ConfigError, match=r'memory_fraction=0.6: wanted at least 0.64, 50.0 GiB'):
    memory.refuse_share(found, 0.6, H100)
  # a device that is too small as a whole is another refusal
  memory.refuse_share(of_parts(weights=80.0), 0.6, H100)


def test_more_servers_write_the_rollouts_of_a_step_sooner():
  asked = request('rl:8b_split')
  rollouts = server.Rollouts(8, 64, 4132, 1048, asked.shape)
  one, four = (
    server.seconds_of(rollouts, asked.model, 8e9, H100.accelerator, count) for count in (1, 4)
  )
  assert four[0] < one[0] < one[1]
