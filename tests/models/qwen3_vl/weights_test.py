"""Checkpoints go both ways bit for bit; what does not belong together is refused in one line."""

import json

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from paravt_jax.errors import DataError
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import PUBLISHED
from tests.models.qwen3_vl import oracle


@pytest.fixture(scope='module', params=['float32', 'bfloat16'])
def checkpoint(request, tmp_path_factory):
  """(folder saved by transformers in several shards, a tokenizer folder)."""
  folder = tmp_path_factory.mktemp('hf')
  theirs = oracle.torch_model(tied=request.param == 'float32', layers=2, depth=2, taps=(0,)).to(getattr(torch, request.param))
  theirs.save_pretrained(folder, max_shard_size='60KB')
  assert len(list(folder.glob('*.safetensors'))) > 1
  tokenizer = tmp_path_factory.mktemp('tokenizer')
  (tokenizer / 'tokenizer.json').write_text('{}')
  old = {'size': {'shortest_edge': 65536, 'longest_edge': 9}, 'min_pixels': 3, 'a': 1}
  (tokenizer / 'preprocessor_config.json').write_text(json.dumps(old))
  return folder, tokenizer


def _tensors(folder):
  return {name: tensor for file in folder.glob('*.safetensors') for name, tensor in load_file(file).items()}


def test_what_we_save_has_the_bits_we_read_and_transformers_loads_it(checkpoint, tmp_path):
  folder, tokenizer = checkpoint
  config, params = weights.load_hf(folder)
  weights.save_hf(tmp_path / 'out', config, params, tokenizer)
  before, after = _tensors(folder), _tensors(tmp_path / 'out')
  assert before.keys() == after.keys() == weights.name_table(config).keys()
  for name, tensor in before.items():
    assert after[name].dtype == tensor.dtype and after[name].tobytes() == tensor.tobytes(), name
  again_config, again = weights.load_hf(tmp_path / 'out')
  assert again_config == config
  jax.tree.map(np.testing.assert_array_equal, again, params)
  theirs, info = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / 'out', output_loading_info=True)
  assert not info['missing_keys'] and not info['unexpected_keys']
  want = theirs.to(torch.float32).state_dict()
  embedding = params['text']['embed']['embedding'].astype(np.float32)
  np.testing.assert_array_equal(want['model.language_model.embed_tokens.weight'].numpy(), embedding)
  assert list(tmp_path.iterdir()) == [tmp_path / 'out']


def test_the_saved_processor_takes_our_frames_as_they_are(checkpoint, tmp_path):
  folder, tokenizer = checkpoint
  weights.save_hf(tmp_path / 'out', *weights.load_hf(folder), tokenizer)
  saved = json.loads((tmp_path / 'out' / 'preprocessor_config.json').read_text())
  assert saved['size'] == {'shortest_edge': 1024, 'longest_edge': 50176} and saved['a'] == 1 and 'min_pixels' not in saved


def test_saving_over_a_checkpoint_replaces_it_but_over_another_folder_is_refused(checkpoint, tmp_path):
  folder, tokenizer = checkpoint
  config, params = weights.load_hf(folder)
  for _ in range(2):
    weights.save_hf(tmp_path / 'out', config, params, tokenizer)
  (tmp_path / 'notes').mkdir()
  (tmp_path / 'notes' / 'diary.txt').write_text('dear')
  with pytest.raises(DataError, match='exists and is no checkpoint'):
    weights.save_hf(tmp_path / 'notes', config, params, tokenizer)
  with pytest.raises(DataError, match=r'got no tokenizer\.json'):
    weights.save_hf(tmp_path / 'other', config, params, tmp_path / 'notes')
  assert sorted(p.name for p in tmp_path.iterdir()) == ['notes', 'out']


@pytest.fixture
def damaged(checkpoint, tmp_path):
  """A function that writes the checkpoint as one file after a change to its tensors."""
  folder, _ = checkpoint

  def write(change):
    tensors = _tensors(folder)
    change(tensors)
    save_file(tensors, tmp_path / 'model.safetensors')
    (tmp_path / 'config.json').write_text((folder / 'config.json').read_text())
    return tmp_path
  return write


NORM = 'model.language_model.norm.weight'


@pytest.mark.parametrize('change, message', [
    (lambda t: t.update({'model.extra.weight': np.zeros(1, np.float32)}), r"1 unknown tensors, such as 'model\.extra\.weight'"),
    (lambda t: t.pop(NORM), f"wanted also '{NORM}'"),
    (lambda t: t.update({NORM: np.zeros(3, t[NORM].dtype)}), r'norm\.weight: got \w+\[3\], wanted \w+\[48\]'),
    (lambda t: t.update({NORM: np.zeros(48, np.int32)}), r'norm\.weight is I32, wanted one of')])
def test_unknown_missing_misshapen_and_quantised_tensors_are_refused(damaged, change, message):
  with pytest.raises(DataError, match=message):
    weights.load_hf(damaged(change))


def test_a_missing_or_broken_file_is_one_clear_line(damaged, tmp_path):
  with pytest.raises(DataError, match=r'config\.json: cannot be read \(No such file'):
    weights.load_hf(tmp_path / 'nowhere')
  folder = damaged(lambda t: None)
  whole = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(whole[:len(whole) // 2])
  with pytest.raises(DataError, match='not readable as safetensors'):
    weights.load_hf(folder)
  (folder / 'model.safetensors').unlink()
  with pytest.raises(DataError, match='no such file'):
    weights.load_hf(folder)


def test_params_of_another_size_are_not_saved(checkpoint, tmp_path):
  folder, tokenizer = checkpoint
  config, params = weights.load_hf(folder)
  params['text']['norm']['scale'] = params['text']['norm']['scale'][:7]
  with pytest.raises(DataError, match=r'text\.norm\.scale is \(7,\), wanted \(48,\)'):
    weights.save_hf(tmp_path / 'out', config, params, tokenizer)
  assert not list(tmp_path.iterdir())


def test_the_table_of_names_covers_every_parameter_once():
  config = PUBLISHED['2b']()
  slots = list(weights.name_table(config).values())
  assert len({(s.path, s.layer) for s in slots}) == len(slots)
  assert len({s.path for s in slots}) == len(jax.tree.leaves(model.abstract_params(config)))


EMBEDDING, HEAD = 'model.language_model.embed_tokens.weight', 'lm_head.weight'


@pytest.mark.parametrize('checkpoint', ['float32'], indirect=True)
def test_a_tied_model_may_store_its_head_if_it_is_the_embedding(damaged):
  config, params = weights.load_hf(damaged(lambda t: t.update({HEAD: t[EMBEDDING].copy()})))
  assert config.tied and 'head' not in params
  with pytest.raises(DataError, match=r'lm_head\.weight is not model\.language_model\.embed_tokens\.weight, wanted it equal'):
    weights.load_hf(damaged(lambda t: t.update({HEAD: t[EMBEDDING] + 1})))
  with pytest.raises(DataError, match='wanted it equal'):
    weights.load_hf(damaged(lambda t: t.update({HEAD: t[EMBEDDING][:-1]})), only=[('text', 'norm', 'scale')])


@pytest.mark.parametrize('checkpoint', ['bfloat16'], indirect=True)
def test_an_untied_model_without_its_head_is_refused_with_the_setting_that_says_so(damaged):
  with pytest.raises(DataError, match=r"wanted also 'lm_head\.weight'; .*tie_word_embeddings"):
    weights.load_hf(damaged(lambda t: t.pop(HEAD)))


def test_rotary_buffers_that_are_stored_are_left_out(damaged):
  wanted = weights.load_hf(damaged(lambda t: None))
  names = ('model.language_model.rotary_emb.inv_freq', 'model.visual.rotary_pos_emb.inv_freq',
           'model.language_model.layers.0.self_attn.rotary_emb.inv_freq', 'model.language_model.rotary_emb.original_inv_freq')
  got = weights.load_hf(damaged(lambda t: t.update({name: np.ones(4, np.float32) for name in names})))
  assert got[0] == wanted[0]
  jax.tree.map(np.testing.assert_array_equal, got[1], wanted[1])


@pytest.mark.parametrize('checkpoint', ['bfloat16'], indirect=True)
def test_single_tensors_of_another_dtype_are_cast_to_that_of_most_and_told_in_a_line(damaged, caplog):
  wanted = weights.load_hf(damaged(lambda t: None))[1]
  assert not caplog.records
  got = weights.load_hf(damaged(lambda t: t.update({NORM: t[NORM].astype(np.float32)})))[1]
  jax.tree.map(np.testing.assert_array_equal, got, wanted)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(got)} == {'bfloat16'}
  assert [record.getMessage().partition(': ')[2] for record in caplog.records] == [
      f'1 tensors are not bfloat16 like most and were cast to it, such as {NORM} (F32)']
  with pytest.raises(DataError, match='numbers that bfloat16 cannot hold'):
    weights.load_hf(damaged(lambda t: t.update({NORM: np.full(48, 3.4e38, np.float32)})))


@pytest.mark.parametrize('older', [lambda name: name.removeprefix('model.') if '.visual.' in name else
                                   name.replace('model.language_model.', 'model.'),
                                   lambda name: name.removeprefix('model.')])
def test_names_of_older_writers_are_read(damaged, older):
  wanted = weights.load_hf(damaged(lambda t: None))[1]

  def rename(tensors):
    for name in list(tensors):
      tensors[older(name)] = tensors.pop(name)
  jax.tree.map(np.testing.assert_array_equal, weights.load_hf(damaged(rename))[1], wanted)


def test_weights_that_are_not_there_are_named_with_what_is_in_their_place(damaged):
  folder = damaged(lambda t: None)
  (folder / 'model.safetensors').rename(folder / 'aside')
  (folder / 'pytorch_model.bin').touch()
  with pytest.raises(DataError, match=r'pytorch_model\.bin is a pickle, which is not read'):
    weights.load_hf(folder)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': {NORM: 'model-00002-of-00002.safetensors'}}))
  with pytest.raises(DataError, match=r'model-00002-of-00002\.safetensors: no such file'):
    weights.load_hf(folder)
  index.write_text('{}')
  with pytest.raises(DataError, match='got no weight_map'):
    weights.load_hf(folder)


def test_parts_without_their_index_are_named_with_the_index(damaged):
  folder = damaged(lambda t: None)
  (folder / 'model.safetensors').rename(folder / 'model-00002-of-00002.safetensors')
  with pytest.raises(DataError, match=r'00002\.safetensors is a part of it: download model\.safetensors\.index\.json'):
    weights.load_hf(folder)
  (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {NORM: 'model-00001-of-00002.safetensors'}}))
  with pytest.raises(DataError, match=r'model-00001-of-00002\.safetensors: no such file.*; download or export the checkpoint again'):
    weights.load_hf(folder)
