"""A tiny Qwen3-VL that trains on a CPU: tokenizer, configuration and checkpoint folder.

The tokenizer is a byte-level BPE without merges (`ignore_merges`). A word of the vocabulary is one
token, and any other text is split into bytes. The vocabulary has these tokens:

  Qwen3-VL's special tokens, with their original names
  the integers 0..199
  the time stamps of whole seconds, such as `<41.0 seconds>`
  the fixed phrases of prompts and tool calls, so that sequences stay short
"""

import json
import pathlib
import tempfile
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from paravt_jax import seeds
from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.models.qwen3_vl.config import Config, TextConfig, VisionConfig
from paravt_jax.testing import phrases as texts

SPECIAL = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|object_ref_start|>',
  '<|object_ref_end|>',
  '<|box_start|>',
  '<|box_end|>',
  '<|quad_start|>',
  '<|quad_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
)
STRUCTURAL = (
  '<tool_call>',
  '</tool_call>',
  '<|fim_prefix|>',
  '<|fim_middle|>',
  '<|fim_suffix|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
  '<tool_response>',
  '</tool_response>',
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
)
VERSION = 2  # increase it when the same seed gives different bytes
# standard deviation of token embeddings; at the usual 0.02, the first layers' outputs are much
# larger than the embeddings for a hundred steps
SPREAD = 0.1
INTEGERS = 200
STAMPS = 129  # whole seconds that have a time stamp token: 0..128
# Digits; letters with the blank before them, and the one after them if digits follow; punctuation
# with its line ends; blanks.
WORD = r'\p{N}+| ?\p{L}+(?: (?=\p{N}))?| ?[^\s\p{L}\p{N}]+(?:[\r\n]+| (?=\p{N}))?|\s+'
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer(folder: pathlib.Path | str) -> Tokenizer:
  """Writes tokenizer and processor files into `folder` (made if missing) and returns the tokenizer.

  `tokenizers` and transformers' AutoTokenizer can load the files. The same code always writes the
  same bytes.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  tokenizer = make_tokenizer()
  tokenizer.save(str(folder / 'tokenizer.json'))
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'bos_token': None,
    'unk_token': None,
    'additional_special_tokens': [t for t in SPECIAL if t not in ('<|im_end|>', '<|endoftext|>')],
    'clean_up_tokenization_spaces': False,
    'model_max_length': 32768,
    'add_prefix_space': False,
    'errors': 'replace',
    'chat_template': CHAT_TEMPLATE,
  }
  pixels = {
    'patch_size': 16,
    'temporal_patch_size': 2,
    'merge_size': 2,
    'image_mean': [0.5] * 3,
    'image_std': [0.5] * 3,
    'size': {'shortest_edge': 1024, 'longest_edge': 50176},
    'processor_class': 'Qwen3VLProcessor',
  }
  _write(folder / 'tokenizer_config.json', config)
  _write(
    folder / 'preprocessor_config.json',
    {**pixels, 'image_processor_type': 'Qwen2VLImageProcessorFast'},
  )
  _write(
    folder / 'video_preprocessor_config.json',
    {**pixels, 'video_processor_type': 'Qwen3VLVideoProcessor'},
  )
  (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
  return tokenizer


def make_tokenizer(
  phrases: Sequence[str] | None = None, corpus: Iterable[str] | None = None
) -> Tokenizer:
  """Returns the tokenizer.

  Args:
    phrases: texts that become one token each; None for `phrases.phrases`.
    corpus: texts in which each word becomes one token; None for `phrases.corpus`.
  """
  phrases = texts.phrases() if phrases is None else phrases
  corpus = texts.corpus() if corpus is None else corpus
  split = pre_tokenizers.Split(Regex(WORD), 'isolated')
  level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  order = pre_tokenizers.Sequence([split, level])
  words = [str(number) for number in range(INTEGERS)]
  words += [word for text in corpus for word, _ in order.pre_tokenize_str(text)]
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocab = {word: i for i, word in enumerate(dict.fromkeys([*alphabet, *words]))}
  tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
  tokenizer.pre_tokenizer = order
  tokenizer.decoder = decoders.ByteLevel()
  plain = [*STRUCTURAL, *(f'<{second}.0 seconds>' for second in range(STAMPS)), *phrases]
  tokenizer.add_special_tokens(
    [AddedToken(text, special=True, normalized=False) for text in SPECIAL]
  )
  tokenizer.add_tokens(
    [AddedToken(text, special=False, normalized=False) for text in dict.fromkeys(plain)]
  )
  return tokenizer


def tiny_config(tokenizer: Tokenizer, *, layers: int = 4, width: int = 128) -> Config:
  """Returns the config of a model with 1.8M parameters at the default sizes.

  The text decoder has `layers` layers of `width`, 4 query heads of 32 and 2 key heads. The vision
  tower has 2 blocks of width 96, both tapped. The output head is tied. The vocabulary is padded to
  a multiple of 64, so that it can be sharded over a mesh.
  """
  vocab = -(-tokenizer.get_vocab_size() // 64) * 64
  text = TextConfig(
    vocab=vocab,
    width=width,
    layers=layers,
    heads=4,
    kv_heads=2,
    head_dim=32,
    mlp=3 * width,
    rope_theta=1e4,
    rope_sections=(6, 5, 5),
    norm_eps=1e-6,
    max_positions=32768,
  )
  vision = VisionConfig(
    width=96, depth=2, mlp=192, heads=4, patch=16, merge=2, temporal=2, positions=64, taps=(0, 1)
  )
  vocabulary = tokenizer.get_vocab()
  return Config(
    text,
    vision,
    tied=True,
    image_id=vocabulary['<|image_pad|>'],
    video_id=vocabulary['<|video_pad|>'],
    vision_start_id=vocabulary['<|vision_start|>'],
    vision_end_id=vocabulary['<|vision_end|>'],
  )


def build_model_folder(folder: pathlib.Path | str, seed: int) -> Config:
  """Writes a checkpoint folder and returns its config.

  The folder has random float32 weights, tokenizer and processor files. The seed determines every
  byte.
  """
  folder = pathlib.Path(folder)
  with tempfile.TemporaryDirectory() as files:
    config = tiny_config(build_tokenizer(files))
    params = jax.tree.map(np.asarray, model.init(config, jax.random.key(seed)))
    params['text']['embed']['embedding'] = number_embeddings(
      params['text']['embed']['embedding'],
      Tokenizer.from_file(str(pathlib.Path(files) / 'tokenizer.json')),
      seed,
    )
    folder.parent.mkdir(parents=True, exist_ok=True)
    weights.save_hf(folder, config, params, files)
  return config


def number_embeddings(table_VD: np.ndarray, tokenizer: Tokenizer, seed: int) -> np.ndarray:
  """Returns a random embedding table float32[V, D] that represents the order of numbers.

  Published checkpoints have learned this order, too. The standard deviation is SPREAD. Integers get
  random Fourier features, so that subtracting two is a rotation. The embedding of the stamp
  '<41.0 seconds>' is close to that of '41'. `table_VD` supplies the other rows.
  """
  # rescale the table [V, D] to the standard deviation SPREAD
  rng = seeds.rng(seed, 'number_embeddings')
  table_VD = (table_VD * (SPREAD / table_VD.std())).astype(np.float32)
  width = table_VD.shape[1]
  # Fourier features of the integers [INTEGERS, D], mixed by a random orthogonal matrix
  periods = np.exp(rng.uniform(np.log(3), np.log(400), width // 2))
  phases = rng.uniform(0, 2 * np.pi, width // 2)
  angles = 2 * np.pi * np.arange(INTEGERS)[:, None] / periods + phases
  mixing = np.linalg.qr(rng.normal(size=(width, width)))[0]
  numbers = np.concatenate([np.cos(angles), np.sin(angles)], 1) @ mixing * (SPREAD * np.sqrt(2))
  # time stamps: the integer's embedding plus one common offset
  offset = rng.normal(size=width) * SPREAD
  for number in range(INTEGERS):
    table_VD[tokenizer.token_to_id(str(number))] = numbers[number]
  for second in range(STAMPS):
    table_VD[tokenizer.token_to_id(f'<{second}.0 seconds>')] = (numbers[second] + offset) / np.sqrt(
      2
    )
  return table_VD


def _write(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + '\n')
