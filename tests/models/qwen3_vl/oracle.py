"""Tiny random torch models of transformers, and the inputs it wants: the oracle of the parity
tests.
"""

import pathlib

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

IMAGE, VIDEO, START, END = 60, 61, 58, 59


def torch_config(tied: bool = True, layers: int = 4, depth: int = 3, taps=(0, 1)) -> Qwen3VLConfig:
  """Sizes that keep every feature: GQA, unequal rope sections, DeepStack."""
  rope = {
    'rope_type': 'default',
    'rope_theta': 5e6,
    'mrope_section': [6, 5, 5],
    'mrope_interleaved': True,
  }
  text = {
    'vocab_size': 64,
    'hidden_size': 48,
    'intermediate_size': 80,
    'num_hidden_layers': layers,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 32,
    'max_position_embeddings': 4096,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': tied,
    'rope_parameters': rope,
  }
  vision = {
    'depth': depth,
    'hidden_size': 32,
    'intermediate_size': 56,
    'num_heads': 2,
    'out_hidden_size': 48,
    'num_position_embeddings': 36,
    'deepstack_visual_indexes': list(taps),
  }
  return Qwen3VLConfig(
    text_config=text,
    vision_config=vision,
    image_token_id=IMAGE,
    video_token_id=VIDEO,
    vision_start_token_id=START,
    vision_end_token_id=END,
    tie_word_embeddings=tied,
  )


def torch_model(seed: int = 0, **sizes) -> Qwen3VLForConditionalGeneration:
  """Random weights of a size where every term matters, norms and biases included."""
  torch.set_num_threads(1)
  torch.manual_seed(seed)
  model = Qwen3VLForConditionalGeneration(torch_config(**sizes)).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.normal_(1.0 if 'norm' in name and name.endswith('weight') else 0.0, 0.2)
  return model


def published_folder(folder: pathlib.Path) -> pathlib.Path:
  """Writes a folder in the published layout: bfloat16, untied, several shards, an index."""
  theirs = torch_model(tied=False, layers=2, depth=2, taps=(0,)).to(torch.bfloat16)
  theirs.save_pretrained(folder, max_shard_size='60KB')
  (folder / 'tokenizer.json').write_text('{}')
  return folder


def pixel_rows(frames: np.ndarray) -> np.ndarray:
  """float32[t * X, 3 * 2 * 16 * 16], as transformers' processor flattens uint8[2 * t, H, W, 3]
  (patch 16, merge 2).
  """
  pairs, height, width = len(frames) // 2, frames.shape[1] // 32, frames.shape[2] // 32
  x = (frames.astype(np.float32) / 255 - 0.5) / 0.5
  x = x.transpose(0, 3, 1, 2).reshape(pairs, 2, 3, height, 2, 16, width, 2, 16)
  return x.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(pairs * height * width * 4, -1)


def torch_logits(model, ids, *, images=(), video=None, position_ids=None) -> torch.Tensor:
  """[T, V] of one row; `images` uint8[H, W, 3] each, `video` uint8[2 * t, H, W, 3]."""
  ids = torch.tensor(np.asarray(ids))[None].long()
  extra = {}
  if len(images):
    extra['pixel_values'] = torch.tensor(
      np.concatenate([pixel_rows(np.stack([i, i])) for i in images])
    )
    extra['image_grid_thw'] = torch.tensor(
      [[1, i.shape[0] // 16, i.shape[1] // 16] for i in images]
    )
  if video is not None:
    extra['pixel_values_videos'] = torch.tensor(pixel_rows(video))
    extra['video_grid_thw'] = torch.tensor(
      [[len(video) // 2, video.shape[1] // 16, video.shape[2] // 16]]
    )
  if position_ids is not None:
    extra['position_ids'] = torch.tensor(np.asarray(position_ids)).long()
  types = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
  return model(input_ids=ids, mm_token_type_ids=types, use_cache=False, **extra).logits[0]
