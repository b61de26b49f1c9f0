"""From a recipe to running parts, and the one clear error when a part is not there."""

import pytest

from configs import para_grpo
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.orchestrator import parts
from paravt_jax.testing import tiny
from tests.recipes import typed


def test_a_model_folder_that_is_missing_or_not_whole_is_one_clear_error(tmp_path):
  with pytest.raises(
    DataError,
    match=r'--config.model.folder: .*none does not exist; wanted a Hugging Face checkpoint folder',
  ):
    parts.load_model(tmp_path / 'none')
  with pytest.raises(DataError, match=r'config\.json'):
    parts.load_model(tmp_path)


def test_the_tiny_model_is_made_once_per_seed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = parts.tiny_model(0)
  stamp = (folder / 'model.safetensors').stat().st_mtime_ns
  assert (
    parts.tiny_model(0) == folder and (folder / 'model.safetensors').stat().st_mtime_ns == stamp
  )


def test_a_mesh_takes_the_devices_it_needs_and_says_when_there_are_too_few():
  mesh = typed(para_grpo.get_config()).mesh
  assert parts.make_mesh(mesh).devices.size == 1
  mesh = mesh.replace(data=2, fsdp=2, tensor=2)
  assert parts.make_mesh(mesh).devices.size == 8
  assert parts.make_mesh(mesh.replace(fsdp=1, context=2)).shape['context'] == 2
  with pytest.raises(
    ConfigError,
    match=r'data 2 x fsdp 8 x context 1 x tensor 2 = 32 devices, but this process has 8 \(cpu\); '
    r'lower config.mesh',
  ):
    parts.make_mesh(mesh.replace(fsdp=8))


def test_freeze_vision_keeps_the_tower_out_of_the_optimizer():
  options = typed(para_grpo.get_config()).optimizer
  model_config = tiny.tiny_config(tiny.make_tokenizer())
  made = lambda freeze: parts.make_optimizer(
    options, model_config, freeze_vision=freeze, dtype='float32'
  )
  assert made(True).frozen == ('visual',)
  assert made(False).frozen == ()


def test_wandb_is_asked_for_by_naming_a_project(tmp_path):
  assert parts.wandb_options(typed(para_grpo.get_config()), tmp_path) is None
  recipe = typed(para_grpo.get_config(), run__wandb_project='videos', run__wandb_mode='offline')
  found = parts.wandb_options(recipe, tmp_path)
  assert (found['project'], found['entity'], found['mode'], found['dir']) == (
    'videos',
    None,
    'offline',
    str(tmp_path),
  )
  assert found['config']['agent']['max_turns'] == 3
