"""What real SGLang does that the embedded server does not: each is a reason for a check, a variable
or a step of ours.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving import sglang
from paravt_jax.serving.protocol import GenerateReply
from tests import patience
from tests.serving.contract.drive import (
  KEY,
  ROOT,
  Flight,
  frame,
  request,
  sglang_options,
  started,
)

pytestmark = pytest.mark.sglang


@pytest.fixture
def served(sglang_server):
  sglang_server.told('/continue_generation', {})
  if sglang_server.call('/get_model_info')[1]['weight_version'] not in ('default', '0'):
    sglang_server.update(None, 0)
  return sglang_server


def banned(served):
  return (served.config.image_id, served.config.video_id)


def test_it_answers_garbage_with_200_where_images_and_placeholders_disagree(served):
  """So the client counts both, before and after."""
  pad, picture = served.config.image_id, frame(1)
  for ids, images in (([5, pad], ()), ([5], (picture,)), ([5, pad], (picture, picture))):
    status, body = served.call('/generate', request(ids, images).to_json())
    assert status == 200 and len(body['output_ids']) == 12
  assert served.call('/generate', request([5, pad, 6, pad], (picture,)).to_json())[0] in (
    200,
    500,
  )  # 200 where it is cached
  odd = request([5, pad], (frame(1, 40, 32),))  # and it resizes what is no multiple of 32
  assert served.call('/generate', odd.to_json())[0] == 200


def test_it_ignores_unknown_keys_and_answers_lists_of_lists_with_a_list(served):
  assert served.call('/generate', {'input_ids': [1, 2], 'temperatur': 3})[0] == 200
  assert isinstance(served.call('/generate', {'input_ids': [[1, 2]]})[1], list)
  assert (
    served.call('/generate', {'input_ids': [1, 2], 'sampling_params': {'temperatur': 3}})[0] == 500
  )


def test_ignore_eos_switches_stop_ids_off_too(served):
  others = tuple(i for i in range(served.config.text.vocab) if i != 300)
  replies = [
    served.generate(request([5], banned_ids=others, stop_token_ids=(300,), ignore_eos=ignore))
    for ignore in (0, 1)
  ]
  assert [(reply.finish, len(reply.output_ids)) for reply in replies] == [
    ('stop', 1),
    ('length', 12),
  ]


def test_while_paused_it_is_not_ready_but_healthy_and_both_answer_at_once(served):
  """Without SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=0, /health would hang for 20 s and say 503."""
  served.told('/pause_generation', {'mode': 'retract'})
  assert served.call('/ready', timeout=30.0)[0] == 503
  assert served.call('/health', timeout=30.0)[0] == 200
  served.told('/continue_generation', {})
  assert served.call('/ready', timeout=30.0)[0] == 200


def test_a_request_that_came_while_paused_cannot_be_aborted_until_it_goes_on(served):
  """It waits where aborts are not looked for: the abort is lost, and the request is served when
  generation goes on.
  """
  served.told('/pause_generation', {'mode': 'retract'})
  sent = request(served.words(5, 3))
  with Flight(served, [sent]) as flight:
    time.sleep(0.5)  # it is there by now; if it were not, the abort would be lost as well
    served.told('/abort_request', {'rid': sent.rid})
    served.told('/continue_generation', {})
    assert flight.replies()[0].finish == 'length'


def test_an_update_renames_the_model_to_the_folder_that_was_loaded(served):
  served.update(served.params, 4)
  info = served.call('/get_model_info')[1]
  assert info['model_path'].startswith(str(served.scratch / 'staging-')) and info[
    'model_path'
  ].endswith('/4')
  assert info['tokenizer_path'] == str(served.folder)
  assert info['weight_version'] == '4'


def test_a_folder_with_the_language_weights_alone_updates_them_and_leaves_the_tower(served):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(5)))
  folder = partial(served, other, 'language', lambda name: 'visual' not in name)
  assert len(load_file(folder / 'model.safetensors')) < len(
    load_file(served.folder / 'model.safetensors')
  )
  assert load(served, folder, 6)['success'] is True
  sent = request(served.with_image(6, 4, 8), (frame(8),), banned_ids=banned(served))
  assert (
    served.gap(sent, served.generate(sent), {**other, 'visual': served.params['visual']}) < 1e-4
  )


def test_missing_tensors_are_a_success_so_weights_are_checked_before_it_sees_them(served):
  other = jax.tree.map(np.asarray, model.init(served.config, jax.random.key(6)))
  folder = partial(served, other, 'half', lambda name: 'layers.0.' not in name)
  assert load(served, folder, 8)['success'] is True
  sent = request(served.words(20, 9), banned_ids=banned(served))
  reply = served.generate(sent)
  assert reply.weight_versions == [(8, 0, 12)]
  assert (
    served.gap(sent, reply, other) > 1e-2 and served.gap(sent, reply) > 1e-2
  )  # neither the new ones nor the old


def partial(served, params, name, keep):
  """A checkpoint folder that holds only the tensors whose names `keep` accepts."""
  folder = served.scratch / name
  weights.save_hf(folder, served.config, params, served.folder)
  tensors = load_file(folder / 'model.safetensors')
  kept = {key: value for key, value in tensors.items() if keep(key)}
  save_file(kept, folder / 'model.safetensors', metadata={'format': 'pt'})
  return folder


def load(served, folder, version):
  body = {'model_path': str(folder), 'weight_version': str(version), 'flush_cache': True}
  return served.call('/update_weights_from_disk', body)[1]


def test_server_info_shows_the_options_and_the_key_in_clear(served):
  info = served.call('/get_server_info')[1]
  assert (info['context_length'], info['max_running_requests'], info['status']) == (
    258,
    16,
    'ready',
  )
  assert info['max_total_num_tokens'] == 16384 and len(info['internal_states']) == 1
  assert info['api_key'] == KEY


def test_its_memory_counts_its_children(served):
  alone = psutil.Process(served.process.pid).memory_full_info().pss / 2**20
  assert served.process.memory_mb() > alone + 100


def family(pid):
  return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def command_of(member):
  try:
    return ' '.join(member.cmdline())
  except psutil.NoSuchProcess:
    return ''


def gone(members):
  return not any(runs(member) for member in members)


def runs(member):
  try:
    return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
  except psutil.NoSuchProcess:
    return False


@pytest.fixture(scope='module')
def cached(model_folder, tmp_path_factory):
  """A server that keeps image features: our check is told that the tower is frozen, and then it is
  not.
  """
  server = started(
    'sglang',
    model_folder,
    tmp_path_factory.mktemp('cached'),
    vision_cache_mb=100,
    vision_frozen=True,
  )
  yield server
  server.process.stop(5.0)


def test_kept_image_features_outlive_an_update_which_is_why_none_are_kept(cached):
  visual = jax.tree.map(lambda x: np.asarray(x) * np.float32(1.5), cached.params['visual'])
  other = {**cached.params, 'visual': visual}
  sent = request(
    cached.with_image(4, 4, 71), (frame(71),), temperature=0.0, banned_ids=banned(cached)
  )
  fresh = dataclasses.replace(sent, rid='fresh', images=(frame(72),))
  cached.generate(sent)
  cached.update(other, 1)
  assert cached.gap(fresh, cached.generate(fresh), other) < 1e-4
  assert cached.gap(sent, cached.generate(sent), other) > 1e-2


def test_an_id_out_of_the_vocabulary_ends_the_server_and_all_its_processes(cached):
  """So the client looks at every id before it sends it."""
  members = family(cached.process.pid)
  assert len(members) >= 3
  with pytest.raises((OSError, AssertionError)):
    cached.generate(request([1, 10**6]))
  patience.until(lambda: gone(members) and not cached.process.alive, quiet=120.0)
  assert 'index out of range' in cached.process.log.read_text()
  cached.process.stop(5.0)


LAUNCH = """
import json, os, pathlib, sys
from paravt_jax.serving import sglang
given = json.loads(sys.argv[1])
options = sglang.SGLangOptions(**{**given, 'devices': (), 'extra': ()})
log = pathlib.Path(sys.argv[2])
sglang.launch(options, env=os.environ, log=log, deadline_s=3600.0, parent_pid=os.getpid())
"""


@pytest.mark.parametrize('victim', ['the process that started it', 'the server itself'])
def test_none_of_its_processes_survives_a_kill_even_while_it_starts(model_folder, tmp_path, victim):
  options = json.dumps(dataclasses.asdict(sglang_options(model_folder)))
  starter = subprocess.Popen(
    [sys.executable, '-c', LAUNCH, options, str(tmp_path / 'log')],
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    family_of = lambda: psutil.Process(starter.pid).children(recursive=True)
    patience.until(
      lambda: sum('spawn_main' in command_of(member) for member in family_of()) >= 2, quiet=600.0
    )
    members = family_of()
    os.kill(starter.pid if victim.startswith('the process') else members[0].pid, signal.SIGKILL)
    patience.until(lambda: gone(members), quiet=120.0)
  finally:
    starter.kill()
    starter.wait()


def test_a_port_in_use_a_wrong_model_and_a_missing_environment_end_in_one_clear_error(
  served, model_folder, tmp_path
):
  port = int(served.process.url.rsplit(':', 1)[1])
  broken = shutil.copytree(model_folder, tmp_path / 'model')
  (broken / 'config.json').write_text('{"model_type": "none"}')
  for options, says in (
    (sglang_options(model_folder, port=port), f'cannot listen on 127.0.0.1:{port}'),
    (sglang_options(broken), 'ended with status'),
  ):
    with pytest.raises((sglang.ConfigError, sglang.RolloutError), match=says):
      sglang.launch(
        options,
        env=os.environ,
        log=tmp_path / 'log',
        deadline_s=patience.seconds(600),
        parent_pid=os.getpid(),
      )


def test_log_probs_of_the_prompt_can_be_asked_for(served):
  """Not used by the client; the learner has its own. They are here to compare a server with the
  learner without sampling.
  """
  sent = request(served.words(30, 12), temperature=0.0, max_new_tokens=1)
  body = served.call('/generate', {**sent.to_json(), 'logprob_start_len': 0})[1]
  scored = GenerateReply(
    [entry[1] for entry in body['meta_info']['input_token_logprobs'][1:]],
    [entry[0] for entry in body['meta_info']['input_token_logprobs'][1:]],
    'length',
    1,
    0,
    0,
    [],
  )
  assert scored.output_ids == sent.input_ids[1:]
  assert served.gap(dataclasses.replace(sent, input_ids=sent.input_ids[:1]), scored) < 1e-4


# Appended to a copy of published_order: writes which layers get DeepStack to add after the residual.
RECORDER = """

import pathlib

_Published = EntryClass


class Recorder(_Published):
  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self.deepstack = {}
    for number, layer in enumerate(self.model.layers):
      layer.forward = self.recorded(number, layer.forward)

  def recorded(self, number, forward):
    def run(*args, post_residual_addition=None, **kwargs):
      if post_residual_addition is not None and post_residual_addition.abs().sum() > 0:
        with pathlib.Path(__file__).with_name('layers').open('a') as out:
          out.write(f'{number} ')
      return forward(*args, post_residual_addition=post_residual_addition, **kwargs)

    return run


Recorder.__name__ = _Published.__name__
EntryClass = Recorder
"""


def test_a_server_adds_deepstack_after_the_residual_of_each_tapped_layer(model_folder, tmp_path):
  folder = tmp_path / 'sglang'
  shutil.copytree(ROOT / 'third_party' / 'sglang', folder)
  with (folder / 'published_order' / 'qwen3_vl.py').open('a') as out:
    out.write(RECORDER)
  server = started('sglang', model_folder, tmp_path, launcher=str(folder / 'launch_cpu.py'))
  layers = folder / 'published_order' / 'layers'
  try:
    layers.unlink(missing_ok=True)  # of the warm-up
    text = request(server.words(12, 3), banned_ids=banned(server))
    assert server.gap(text, server.generate(text)) < 1e-4
    assert not layers.exists()
    sent = request(server.with_image(4, 6, 5), (frame(5),), banned_ids=banned(server))
    # which the learner, whose order is the published one, says too
    assert server.gap(sent, server.generate(sent)) < 1e-4
  finally:
    server.process.stop(5.0)
  # the sum of layer i is made as layer i + 1 begins; SGLang's own order would write nothing
  taps = len(server.config.vision.taps)
  assert layers.read_text().split() == [str(number + 1) for number in range(taps)]


ORDERS = """
import sys; sys.path.insert(0, sys.argv[1]); import launch_cpu
import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.models.registry import ModelRegistry
output, residual, deepstack = (
  torch.full((1, 4), value, dtype=torch.bfloat16) for value in (1.0, -1.0, 2.0**-9)
)
norm = RMSNorm(4, 1e-6).to(torch.bfloat16)
print(ModelRegistry.resolve_model_cls(['Qwen3VLForConditionalGeneration'])[0].__module__)
print(norm(output, residual, deepstack)[1][0, 0].item())
print(norm(output + deepstack, residual)[1][0, 0].item())
"""


def test_the_published_order_keeps_what_sglangs_own_rounds_away(tmp_path):
  """In bfloat16 1 + 2**-9 is 1. So a layer whose output cancels the residual shows the order."""
  options = sglang_options(tmp_path)
  said = subprocess.run(
    [options.python, '-c', ORDERS, str(ROOT / 'third_party' / 'sglang')],
    env=sglang.environment(options, os.environ),
    capture_output=True,
    text=True,
    check=True,
  )
  module, published, own = said.stdout.split()[-3:]
  assert module == 'published_order.qwen3_vl'
  # the published model: (output + residual) + DeepStack
  output, residual, deepstack = (jnp.bfloat16(value) for value in (1.0, -1.0, 2.0**-9))
  assert float(published) == float((output + residual) + deepstack) == 2.0**-9
  assert float(own) == 0.0
