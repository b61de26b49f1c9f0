"""The tiny model: its tokenizer is lossless, short where it matters, and loads everywhere; its
folder is a checkpoint.
"""

import random

import numpy as np
import pytest
import tokenizers

from paravt_jax.chat import prompts
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data.world import traces
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.testing import tiny
from paravt_jax.types import Window


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer')
  tiny.build_tokenizer(path)
  return path


@pytest.fixture(scope='module')
def tok(folder):
  return tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))


@pytest.fixture(scope='module')
def chat(folder):
  return ChatTokenizer.load(folder)


def count(chat, text):
  return len(chat.encode(text, trusted=True))


def test_any_text_comes_back(tok, chat):
  draw = random.Random(0)
  pools = [(32, 127), (0x80, 0x3000), (0x1F300, 0x1FA00), (9, 14)]
  words = [
    *tiny.STRUCTURAL,
    *tiny.SPECIAL,
    '<41.0 seconds>',
    prompts.SYSTEM,
    ' red',
    '110',
    'e\u0301',
  ]
  for _ in range(2000):
    pick = lambda: (
      draw.choice(words) if draw.random() < 0.2 else chr(draw.randrange(*draw.choice(pools)))
    )
    text = ''.join(pick() for _ in range(draw.randrange(20)))
    assert (
      tok.decode(tok.encode(text, add_special_tokens=False).ids, skip_special_tokens=False) == text
    )
    for trusted in (True, False):
      assert chat.decode(chat.encode(text, trusted=trusted)) == text


def test_every_special_token_of_qwen_is_there_as_one_token(tok):
  added = tok.get_added_tokens_decoder().values()
  assert {t.content for t in added if t.special} == set(tiny.SPECIAL)
  for text in (*tiny.SPECIAL, *tiny.STRUCTURAL):
    assert tok.encode(text, add_special_tokens=False).tokens == [text]


def test_integers_and_whole_second_stamps_are_one_token_each(chat):
  assert all(count(chat, str(n)) == 1 for n in range(200))
  assert all(count(chat, f'<{n}.0 seconds>') == 1 for n in range(129))
  assert len({chat.encode(str(n), trusted=True)[0] for n in range(200)}) == 200
  assert count(chat, '345') == 3 and count(chat, '<41.5 seconds>') == 6


def test_a_number_is_the_same_token_wherever_it_stands(chat):
  wanted = chat.encode('41', trusted=True)[0]
  for text in (
    'What appears at 41?',
    'Look at 41.',
    'Seen: 41 red',
    '"start_time": 41, ',
    '[40, 41]',
    '1, 41 and',
    ' 41',
  ):
    assert wanted in chat.encode(text, trusted=True)


def test_fixed_texts_cost_few_tokens(chat):
  assert count(chat, prompts.SYSTEM) <= 10
  assert count(chat, prompts.subagent(Window(39.0, 43.0), 'What appears at 41?')) <= 10
  assert count(chat, 'What appears at 41?\n' + prompts.FORMAT_HINTS['oe']) <= 5
  call, reply = traces.call_turn([41], [(39, 43)]), traces.answer_turn(['41 red'], 'red')
  prefix = count(chat, '<think>\n')
  assert (
    count(chat, call) - prefix + 1 == 14
  )  # sampled: `<|im_end|>` counts, the pinned prefix does not
  assert count(chat, traces.call_turn([41, 73], [(39, 43), (71, 75)])) - prefix + 1 == 23
  assert count(chat, reply) - prefix + 1 == 11
  assert 600 <= chat.vocab_size <= 1000


def test_transformers_reads_the_same_ids(folder, tok):
  transformers = pytest.importorskip('transformers')
  loaded = transformers.AutoTokenizer.from_pretrained(folder)
  text = '<|im_start|>user\n<41.0 seconds>What appears at 41 12?\n\u00e9<think>\n<|im_end|>'
  assert loaded.encode(text) == tok.encode(text).ids and loaded.decode(loaded.encode(text)) == text
  assert loaded.eos_token == '<|im_end|>' and loaded.pad_token == '<|endoftext|>'
  rendered = loaded.apply_chat_template(
    [{'role': 'user', 'content': 'hi'}], tokenize=False, add_generation_prompt=True
  )
  assert rendered == '<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n'


def test_the_same_code_gives_the_same_files(folder, tmp_path):
  tiny.build_tokenizer(tmp_path)
  assert all((tmp_path / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_a_model_folder_loads_and_is_a_function_of_its_seed(tmp_path):
  for name, seed in (('a', 0), ('b', 0), ('c', 1)):
    config = tiny.build_model_folder(tmp_path / name, seed)
  loaded, params = weights.load_hf(tmp_path / 'a')
  assert loaded == config and config.text.vocab % 64 == 0 and config.tied
  embedding = lambda name: np.asarray(
    weights.load_hf(tmp_path / name)[1]['text']['embed']['embedding']
  )
  np.testing.assert_array_equal(embedding('a'), embedding('b'))
  assert (embedding('a') != embedding('c')).any()
  chat = ChatTokenizer.load(tmp_path / 'a')
  assert (config.image_id, config.video_id, config.vision_start_id) == (
    chat.image_pad,
    chat.video_pad,
    chat.vision_start,
  )
  assert chat.vocab_size <= config.text.vocab
