"""Builds Qwen's tokenizer from `vocab.json` and `merges.txt`, for folders without `tokenizer.json`.

The added tokens are in tokenizer_config.json (`added_tokens_decoder`). In older folders they are in
added_tokens.json.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from paravt_jax import errors

FILES = ('vocab.json', 'merges.txt')
# How Qwen splits text into words before BPE. The files lack this pattern; transformers' code has
# it.
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
  r'?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


def is_there(folder: pathlib.Path) -> bool:
  """Returns whether a folder has both files."""
  return all((folder / name).is_file() for name in FILES)


def spec(folder: pathlib.Path) -> dict:
  """Returns the content of the equivalent tokenizer.json. Raises ChatError for unreadable files."""
  byte_level = {
    'type': 'ByteLevel',
    'add_prefix_space': False,
    'trim_offsets': False,
    'use_regex': False,
  }
  words = {'type': 'Split', 'pattern': {'Regex': _WORDS}, 'behavior': 'Isolated', 'invert': False}
  vocab = _read(folder / FILES[0], json.loads)
  lines = _read(folder / FILES[1], lambda text: text.split('\n'))
  merges = [line for line in lines[lines[0].startswith('#version') :] if line.strip()]
  return {
    'version': '1.0',
    'added_tokens': _added(folder),
    'normalizer': {'type': 'NFC'},
    'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [words, byte_level]},
    'post_processor': None,
    'decoder': byte_level,
    'model': {
      'type': 'BPE',
      'dropout': None,
      'unk_token': None,
      'continuing_subword_prefix': '',
      'end_of_word_suffix': '',
      'fuse_unk': False,
      'byte_fallback': False,
      'vocab': vocab,
      'merges': merges,
    },
  }


def check_ids(folder: pathlib.Path, token_to_id: Callable[[str], int | None]) -> None:
  """Raises ChatError if the id of an added token differs from the id in the folder's files."""
  for token in _added(folder):
    if token_to_id(token['content']) != token['id']:
      raise errors.ChatError(
        f'{folder}: {token["content"]!r} should be {token["id"]} and would be '
        f'{token_to_id(token["content"])}, '
        'wanted ids that follow the vocabulary; copy tokenizer.json into the folder'
      )


def _added(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the added tokens in the form of tokenizer.json, sorted by id."""
  config, old = folder / 'tokenizer_config.json', folder / 'added_tokens.json'
  listed = _read(config, json.loads).get('added_tokens_decoder') if config.is_file() else None
  if listed is None:
    names = _read(old, json.loads) if old.is_file() else {}
    listed = {number: {'content': name} for name, number in names.items()}
  plain = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  try:
    tokens = [
      {key: token.get(key, value) for key, value in plain.items()}
      | {'id': int(number), 'content': token['content']}
      for number, token in listed.items()
    ]
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise errors.ChatError(
      f'{folder}: its added tokens cannot be read ({error!r}), wanted {{id: {{content}}}}; '
      'copy it again'
    ) from error
  return sorted(tokens, key=lambda token: token['id'])


def _read(file: pathlib.Path, parse: Callable[[str], Any]) -> Any:
  try:
    return parse(file.read_text(encoding='utf-8'))
  except (OSError, ValueError) as error:
    raise errors.ChatError(
      f'{file}: cannot be read ({error}), wanted the file of a checkpoint folder; copy it again'
    ) from error
