"""A small byte-level BPE tokenizer with Qwen's pre-tokenizer, control tokens and structural tags,
made from a few sentences.
"""

import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from paravt_jax.chat import prompts, tokenizer

CONTROL = (
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
PLAIN = (
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
)
_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| "
  r'?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


@functools.cache
def spec() -> str:
  """The tokenizer.json, as text."""
  tok = tokenizers.Tokenizer(models.BPE())
  tok.normalizer = normalizers.NFC()
  tok.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(_WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  tok.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=600,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=[],
    show_progress=False,
  )
  texts = [
    prompts.SYSTEM,
    'user\nassistant\nWhat appears?\n\nThe  red car.\n\n\n I look; then I answer.',
  ]
  tok.train_from_iterator(texts * 3, trainer)
  tok.add_special_tokens(
    [tokenizers.AddedToken(text, special=True, normalized=False) for text in CONTROL]
  )
  tok.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in PLAIN])
  return tok.to_str()


@functools.cache
def tok() -> tokenizer.ChatTokenizer:
  """The tokenizer as the library loads it."""
  return tokenizer.ChatTokenizer(json.loads(spec()), 'made')


def published() -> tokenizers.Tokenizer:
  """The plain tokenizer, which reads control tokens in text."""
  return tokenizers.Tokenizer.from_str(spec())
