"""The sizes of a dense Qwen3-VL, read from and written to Hugging Face's `config.json`."""

import dataclasses
import math
import reprlib
from typing import Any

from paravt_jax.errors import ConfigError
from paravt_jax.models.lora import Adapter


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes of the vision tower."""

  width: int
  depth: int  # blocks
  mlp: int  # hidden units
  heads: int
  patch: int  # pixels per side of a patch
  merge: int  # patches per side of a merged token
  temporal: int  # frames per patch
  positions: int  # entries of the learned position table, a square number
  taps: tuple[int, ...]  # blocks whose outputs become DeepStack features


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Sizes of the text decoder."""

  vocab: int  # entries of the embedding table; the tokenizer may have fewer
  width: int
  layers: int
  heads: int  # query heads
  kv_heads: int
  head_dim: int
  mlp: int  # hidden units
  rope_theta: float
  rope_sections: tuple[int, int, int]  # rotary frequencies of time, height and width
  norm_eps: float
  max_positions: int


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes and special tokens of a whole model."""

  text: TextConfig
  vision: VisionConfig
  tied: bool  # the output head is the transposed token embedding
  image_id: int  # the image placeholder, repeated once per merged token
  video_id: int  # the same for a native video
  vision_start_id: int
  vision_end_id: int
  adapter: Adapter | None = None  # beside the decoder's products; no Hugging Face folder has one

  def __post_init__(self):
    _check(self)

  @property
  def base(self) -> 'Config':
    """Returns the same model without an adapter."""
    return dataclasses.replace(self, adapter=None)

  @staticmethod
  def from_hf(hf: dict[str, Any]) -> 'Config':
    """Returns the Config of a parsed `config.json`.

    Both rotary styles are accepted: `rope_parameters` (transformers 5), or `rope_theta` with
    `rope_scaling` (transformers 4).

    Raises:
      ConfigError: a field is missing or has an invalid value, or this code does not implement the
        kind of model.
    """
    text, vision = (_section(hf, name, 'config.json') for name in ('text_config', 'vision_config'))
    _refuse_unsupported(hf, text, vision)
    theta, sections = _rope(text)
    get = lambda name: _whole(_field(text, name, 'text_config'), name, 'text_config', 1)
    see = lambda name: _whole(_field(vision, name, 'vision_config'), name, 'vision_config', 1)
    taps = _field(vision, 'deepstack_visual_indexes', 'vision_config')
    token = lambda name: _whole(_field(hf, name, 'config.json'), name, 'config.json', 0)
    tied = hf.get('tie_word_embeddings', text.get('tie_word_embeddings', False))
    return Config(
      text=TextConfig(
        vocab=get('vocab_size'),
        width=get('hidden_size'),
        layers=get('num_hidden_layers'),
        heads=get('num_attention_heads'),
        kv_heads=get('num_key_value_heads'),
        head_dim=get('head_dim'),
        mlp=get('intermediate_size'),
        rope_theta=theta,
        rope_sections=sections,
        norm_eps=_positive(_field(text, 'rms_norm_eps', 'text_config'), 'rms_norm_eps'),
        max_positions=get('max_position_embeddings'),
      ),
      vision=VisionConfig(
        width=see('hidden_size'),
        depth=see('depth'),
        mlp=see('intermediate_size'),
        heads=see('num_heads'),
        patch=see('patch_size'),
        merge=see('spatial_merge_size'),
        temporal=see('temporal_patch_size'),
        positions=see('num_position_embeddings'),
        taps=_wholes(taps, 'deepstack_visual_indexes', 'vision_config'),
      ),
      tied=bool(tied),
      image_id=token('image_token_id'),
      video_id=token('video_token_id'),
      vision_start_id=token('vision_start_token_id'),
      vision_end_id=token('vision_end_token_id'),
    )

  def to_hf(self, dtype: str) -> dict[str, Any]:
    """Returns `config.json` as a dict, with the rotary fields of both transformers 4 and 5.
    `dtype` is a name such as 'bfloat16'.
    """
    text, vision = self.text, self.vision
    rope = {
      'mrope_interleaved': True,
      'mrope_section': list(text.rope_sections),
      'rope_type': 'default',
    }
    return {
      'architectures': ['Qwen3VLForConditionalGeneration'],
      'model_type': 'qwen3_vl',
      'dtype': dtype,
      'torch_dtype': dtype,
      'image_token_id': self.image_id,
      'video_token_id': self.video_id,
      'vision_start_token_id': self.vision_start_id,
      'vision_end_token_id': self.vision_end_id,
      'tie_word_embeddings': self.tied,
      'text_config': {
        'model_type': 'qwen3_vl_text',
        'dtype': dtype,
        'vocab_size': text.vocab,
        'hidden_size': text.width,
        'intermediate_size': text.mlp,
        'num_hidden_layers': text.layers,
        'num_attention_heads': text.heads,
        'num_key_value_heads': text.kv_heads,
        'head_dim': text.head_dim,
        'hidden_act': 'silu',
        'max_position_embeddings': text.max_positions,
        'initializer_range': 0.02,
        'rms_norm_eps': text.norm_eps,
        'use_cache': True,
        'attention_bias': False,
        'attention_dropout': 0.0,
        'tie_word_embeddings': self.tied,
        'rope_theta': text.rope_theta,
        'rope_scaling': rope,
        'rope_parameters': {**rope, 'rope_theta': text.rope_theta},
      },
      'vision_config': {
        'model_type': 'qwen3_vl',
        'depth': vision.depth,
        'hidden_size': vision.width,
        'hidden_act': 'gelu_pytorch_tanh',
        'intermediate_size': vision.mlp,
        'num_heads': vision.heads,
        'in_channels': 3,
        'patch_size': vision.patch,
        'spatial_merge_size': vision.merge,
        'temporal_patch_size': vision.temporal,
        'out_hidden_size': text.width,
        'num_position_embeddings': vision.positions,
        'deepstack_visual_indexes': list(vision.taps),
        'initializer_range': 0.02,
      },
    }


def _field(section: dict[str, Any], name: str, where: str) -> Any:
  if not isinstance(section, dict) or section.get(name) is None:
    raise ConfigError(
      f'{where}: got no {name!r}, wanted the config.json of a Qwen3-VL checkpoint; check the '
      'model folder'
    )
  return section[name]


def _section(section: dict[str, Any], name: str, where: str) -> dict[str, Any]:
  value = _field(section, name, where)
  if not isinstance(value, dict):
    raise _wrong(value, name, where, 'an object')
  return value


def _whole(value: Any, name: str, where: str, least: int) -> int:
  if type(value) is not int or not least <= value < 1 << 31:
    raise _wrong(value, name, where, f'a whole number, {least} or more')
  return value


def _wholes(value: Any, name: str, where: str) -> tuple[int, ...]:
  if not isinstance(value, list):
    raise _wrong(value, name, where, 'a list of whole numbers')
  return tuple(_whole(one, name, where, 0) for one in value)


def _positive(value: Any, name: str) -> float:
  if type(value) not in (int, float) or not 0 < value < math.inf:
    raise _wrong(value, name, 'text_config', 'a number above 0')
  return float(value)


def _wrong(value: Any, name: str, where: str, wanted: str) -> ConfigError:
  return ConfigError(
    f'{where}: {name} is {reprlib.repr(value)}, wanted {wanted}; copy or download config.json again'
  )


def _rope(text: dict[str, Any]) -> tuple[float, tuple[int, int, int]]:
  """Returns (theta, sections) from either style of rotary fields.

  A missing theta is an error, because transformers has changed its default theta once.
  """
  new, old = (
    _section(text, name, 'text_config') if text.get(name) else {}
    for name in ('rope_parameters', 'rope_scaling')
  )
  rope = {**old, **new}
  theta = new.get('rope_theta', text.get('rope_theta'))
  kind = rope.get('rope_type', rope.get('type', 'default'))
  sections = rope.get('mrope_section')
  if theta is None or sections is None:
    raise ConfigError(
      'text_config: got no rope theta or mrope_section, wanted rope_parameters, or rope_theta with '
      'rope_scaling; add them to config.json'
    )
  if kind not in ('default', 'mrope') or rope.get('mrope_interleaved') is False:
    raise ConfigError(
      f'text_config: got rope type {kind!r} (interleaved={rope.get("mrope_interleaved")}), '
      'wanted the default interleaved M-RoPE; this model is not of the dense Qwen3-VL family'
    )
  sections = _wholes(sections, 'mrope_section', 'text_config')
  if len(sections) != 3:
    raise _wrong(list(sections), 'mrope_section', 'text_config', 'three whole numbers')
  return _positive(theta, 'rope_theta'), sections


def _refuse_unsupported(hf: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
  wanted = {
    'model_type': (hf.get('model_type', 'qwen3_vl'), 'qwen3_vl'),
    'text_config.hidden_act': (text.get('hidden_act', 'silu'), 'silu'),
    'text_config.attention_bias': (bool(text.get('attention_bias', False)), False),
    'text_config.num_experts': (text.get('num_experts') or 0, 0),
    'vision_config.hidden_act': (
      vision.get('hidden_act', 'gelu_pytorch_tanh'),
      'gelu_pytorch_tanh',
    ),
    'vision_config.in_channels': (vision.get('in_channels', 3), 3),
    'vision_config.out_hidden_size': (
      vision.get('out_hidden_size'),
      _field(text, 'hidden_size', 'text_config'),
    ),
  }
  for name, (got, want) in wanted.items():
    if got != want:
      raise ConfigError(
        f'config.json: {name} is {got!r}, wanted {want!r}; only the dense Qwen3-VL family is '
        'supported'
      )


def _check(config: Config) -> None:
  text, vision = config.text, config.vision
  side = int(round(vision.positions**0.5))
  taps_rise = list(vision.taps) == sorted(set(vision.taps))
  taps_exist = all(0 <= tap < vision.depth for tap in vision.taps)
  claims = [
    (
      text.heads % text.kv_heads == 0,
      f'text heads {text.heads} are a multiple of kv_heads {text.kv_heads}',
    ),
    (
      sum(text.rope_sections) * 2 == text.head_dim,
      f'rope sections {text.rope_sections} add up to head_dim / 2 = {text.head_dim // 2}',
    ),
    (
      vision.width % (4 * vision.heads) == 0,
      f'vision width {vision.width} / heads {vision.heads} is a multiple of 4',
    ),
    (side * side == vision.positions, f'vision positions {vision.positions} are a square'),
    (
      taps_rise and taps_exist and len(vision.taps) <= text.layers,
      f'vision taps {vision.taps} rise within depth {vision.depth}, no more than text layers '
      f'{text.layers}',
    ),
  ]
  for holds, claim in claims:
    if not holds:
      raise ConfigError(f'model config: it does not hold that {claim}; correct the sizes')


def _published_size(
  width: int, layers: int, heads: int, mlp: int, tied: bool, vision: VisionConfig
) -> Config:
  text = TextConfig(
    vocab=151936,
    width=width,
    layers=layers,
    heads=heads,
    kv_heads=8,
    head_dim=128,
    mlp=mlp,
    rope_theta=5e6,
    rope_sections=(24, 20, 20),
    norm_eps=1e-6,
    max_positions=262144,
  )
  return Config(
    text=text,
    vision=vision,
    tied=tied,
    image_id=151655,
    video_id=151656,
    vision_start_id=151652,
    vision_end_id=151653,
  )


_SMALL_EYE = VisionConfig(
  width=1024,
  depth=24,
  mlp=4096,
  heads=16,
  patch=16,
  merge=2,
  temporal=2,
  positions=2304,
  taps=(5, 11, 17),
)
_LARGE_EYE = VisionConfig(
  width=1152,
  depth=27,
  mlp=4304,
  heads=16,
  patch=16,
  merge=2,
  temporal=2,
  positions=2304,
  taps=(8, 16, 24),
)

PUBLISHED = {
  '2b': lambda: _published_size(2048, 28, 16, 6144, True, _SMALL_EYE),
  '4b': lambda: _published_size(2560, 36, 32, 9728, True, _SMALL_EYE),
  '8b': lambda: _published_size(4096, 36, 32, 12288, False, _LARGE_EYE),
  '32b': lambda: _published_size(5120, 64, 64, 25600, False, _LARGE_EYE),
}
