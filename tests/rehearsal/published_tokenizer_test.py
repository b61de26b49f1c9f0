"""The tokenizer files that are made of the published ranks encode as the published tokenizer."""

import base64
import json

import pytest
import tiktoken

from paravt_jax.chat import slow
from paravt_jax.chat.tokenizer import ChatTokenizer
from tests.rehearsal import published_tokenizer

TEXTS = (
  'Hello world',
  "It's 12:45, don't wait — naïve café…\n\n  two  blanks\t\r\nend ",
  '<41.0 seconds>{"name": "crop_video", "arguments": {"start_time": 24, "end_time": 28}}',
  '视频里发生了什么？ 🎬 Что здесь? これは何ですか',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  place = tmp_path_factory.mktemp('tokenizer')
  published_tokenizer.write(place)
  return place


def test_text_becomes_the_ids_that_tiktoken_gives_for_the_published_ranks(folder):
  oracle = tiktoken.Encoding(
    'qwen',
    pat_str=slow._WORDS,
    mergeable_ranks=published_tokenizer.ranks(),
    special_tokens={},
  )
  tok = ChatTokenizer.load(folder)
  for text in TEXTS:
    assert tok.encode(text, trusted=True).tolist() == oracle.encode_ordinary(text)
  assert tok.encode('Hello world', trusted=True).tolist() == [9707, 1879]  # as published


def test_control_tokens_have_their_published_ids(folder):
  tok = ChatTokenizer.load(folder)
  assert (tok.endoftext, tok.im_start, tok.im_end) == (151643, 151644, 151645)
  assert (tok.vision_start, tok.vision_end, tok.image_pad, tok.video_pad) == (
    *(151652, 151653, 151655, 151656),
  )
  assert tok.token_to_id('<tool_call>') == 151657 and tok.token_to_id('</think>') == 151668
  assert tok.vocab_size == 151669 and tok.token_to_id('<answer>') is None


def test_both_forms_of_the_files_are_the_same_tokenizer(folder, tmp_path):
  for name in ('vocab.json', 'merges.txt', 'tokenizer_config.json'):
    (tmp_path / name).write_bytes((folder / name).read_bytes())
  both = ChatTokenizer.load(folder), ChatTokenizer.load(tmp_path)
  assert (
    len({tuple(tok.encode(text, trusted=True).tolist()) for tok in both for text in TEXTS}) == 4
  )
  model = json.loads((folder / 'tokenizer.json').read_text())['model']
  assert (len(model['vocab']), len(model['merges'])) == (151643, 151387)


def test_ranks_are_the_published_file(folder):
  known = published_tokenizer.ranks()
  assert len(known) == 151643 and known[base64.b64decode('IQ==')] == 0


def test_a_cut_tokenizer_gives_the_same_tokens_under_new_ids(folder, tmp_path):
  whole = ChatTokenizer.load(folder)
  used = {*range(256), *whole.encode(TEXTS[0], trusted=True), *whole.encode(TEXTS[2], trusted=True)}
  known = published_tokenizer.cut(folder, set(map(int, used)), tmp_path / 'cut')
  cut = ChatTokenizer.load(tmp_path / 'cut')
  assert cut.vocab_size == len(known) < 400
  for text in (TEXTS[0], TEXTS[2]):
    assert known[cut.encode(text, trusted=True)].tolist() == (
      whole.encode(text, trusted=True).tolist()
    )
  assert known[cut.image_pad] == whole.image_pad
