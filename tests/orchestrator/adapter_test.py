"""A run that trains an adapter: what it publishes, records and exports."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import para_grpo
from paravt_jax.errors import ConfigError
from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.orchestrator import evaluated_model, parts, run_folder
from paravt_jax.orchestrator.learner import Learner
from paravt_jax.serving.base_model import BaseModel
from paravt_jax.serving.canary import Canary
from paravt_jax.testing import tiny
from tests.orchestrator import learner_test
from tests.recipes import typed

ADAPTED = {'train__adapter__rank': 4, 'train__adapter__alpha': 8.0}


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  return learner_test.model_folder(tmp_path_factory.mktemp('models') / 'w64', 64)


def learner_with(base, folder, **changes):
  """A learner whose adapter says something."""
  learner = Learner(typed(para_grpo.get_config(), **ADAPTED, **changes), base, folder)
  rng = np.random.default_rng(0)
  moved = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32),
    learner.state.params[lora.PART],
  )
  learner.state = dataclasses.replace(
    learner.state, params={**learner.state.params, lora.PART: moved}
  )
  return learner


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_published_version_is_the_adapter_and_its_canary_is_of_what_servers_then_hold(
  base, tmp_path, dtype
):
  learner = learner_with(base, tmp_path, publish__dtype=dtype)
  assert learner._reference == {}
  learner.version = 3
  folder = learner.publish().result()
  page, changed = BaseModel(base).load(folder)
  assert page.version == 3 and page.adapter == learner.model_config.adapter
  canary = Canary.from_json(page.canary)
  config, params = weights.load_hf(base)
  served = {**params, 'text': {**params['text'], 'layers': dict(params['text']['layers'])}}
  for product, kernel in changed['text']['layers'].items():
    served['text']['layers'][product] = {**served['text']['layers'][product], **kernel}
  if dtype == 'bfloat16':  # as a server of that dtype rounds what it loads
    served = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16).astype(np.float32), served)
  logits = np.asarray(model.logits(config, served, canary.input_ids, (canary.image,)))[-1]
  allowed = np.delete(logits, learner.tok.vision_ids).astype(np.float64)
  best = allowed.max() - np.log(np.exp(allowed).sum())
  assert canary.continuations[0].logprobs[0] == pytest.approx(best, abs=1e-4)


def test_a_record_is_small_and_brings_the_adapter_back(base, tmp_path):
  with learner_with(base, tmp_path) as learner:
    learner.version = 2
    learner.save({'here': 1})
  again = Learner(typed(para_grpo.get_config(), **ADAPTED), base, tmp_path)
  assert again.restore() == {'here': 1} and again.version == 2
  jax.tree.map(np.testing.assert_array_equal, again.state, learner.state)
  size = sum(f.stat().st_size for f in (tmp_path / 'checkpoints').rglob('*') if f.is_file())
  assert size < sum(f.stat().st_size for f in base.glob('*.safetensors')) / 2


def test_an_export_is_the_merged_model_with_the_adapter_beside_it(base, tmp_path):
  learner = learner_with(base, tmp_path)
  learner.export(tmp_path / 'hf')
  learner.export(tmp_path / 'hf')  # again, as a run that goes on
  config, params = weights.load_hf(tmp_path / 'hf')
  assert config == learner.model_config.base
  ids = np.arange(20, 40, dtype=np.int32)
  want = model.logits(learner.model_config, learner.state.params, ids, ())
  np.testing.assert_allclose(model.logits(config, params, ids, ()), want, atol=2e-3, rtol=1e-3)
  assert {one.name for one in (tmp_path / 'hf' / 'peft').iterdir()} == {
    'adapter_config.json',
    'adapter_model.safetensors',
  }


def test_the_record_of_such_a_run_is_evaluated_as_its_export(base, tmp_path):
  recipe = typed(para_grpo.get_config(), **ADAPTED, model__folder=str(base))
  with learner_with(base, tmp_path / 'run') as learner:
    learner.version = 1
    learner.save({})
  run_folder.write_json(tmp_path / 'run' / 'config.json', run_folder.to_json(recipe))
  found = evaluated_model.Model('run', {}, None, tmp_path / 'run', 1)
  learner.export(tmp_path / 'hf')
  made = evaluated_model.hf_folder(found, tmp_path)
  _, one = weights.load_hf(made)
  _, other = weights.load_hf(tmp_path / 'hf')
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)


def test_an_adapter_needs_a_frozen_tower():
  with pytest.raises(ConfigError, match=r'train.freeze_vision=False: wanted True with'):
    typed(para_grpo.get_config(), **ADAPTED, train__freeze_vision=False)


def test_a_rank_of_0_is_no_adapter():
  recipe = typed(para_grpo.get_config())
  config = tiny.tiny_config(tiny.make_tokenizer())
  assert parts.with_adapter(config, recipe.train.adapter) == config


def test_a_rank_above_the_models_width_is_refused():
  config = tiny.tiny_config(tiny.make_tokenizer())
  adapter = typed(para_grpo.get_config()).train.adapter
  width = config.text.width
  assert parts.with_adapter(config, adapter.replace(rank=width)).adapter.rank == width
  with pytest.raises(ConfigError, match=rf'train.adapter.rank={width + 1}: wanted at most {width}'):
    parts.with_adapter(config, adapter.replace(rank=width + 1))
