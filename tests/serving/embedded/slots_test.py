"""What the compiled programs of the embedded server compute in."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from paravt_jax.models.qwen3_vl import model
from paravt_jax.serving.embedded import compiled, programs, slots
from paravt_jax.testing import tiny

SLOTS, CONTEXT = 2, 32


def shapes() -> programs.Shapes:
  config = tiny.tiny_config(tiny.make_tokenizer(), layers=2, width=64)
  return programs.Shapes(
    config,
    dtype='bfloat16',
    chunk=16,
    rows=1,
    pages=2,
    context=CONTEXT,
    steps=1,
    image_batch=1,
    image_slots=1,
    patches=4,
    stops=1,
    biases=1,
  )


def test_logits_of_a_bfloat16_server_are_float32_and_are_never_rounded():
  s = shapes()
  vocab, width = s.config.text.vocab, s.config.text.width
  params = programs.prepare(s.config, model.init(s.config, jax.random.key(0)), s.dtype)
  state, caches = compiled.make_block(s, CONTEXT, SLOTS)
  # a matrix whose logits spread over many bfloat16 steps
  hidden = jax.random.normal(jax.random.key(1), state['hidden'].shape, jnp.bfloat16) * 8
  state = {**state, 'hidden': hidden, 'active': jnp.ones(SLOTS, bool)}
  given = (params, state, caches, jnp.zeros((1, vocab), jnp.float32), jnp.ones(SLOTS, bool))
  program = jax.jit(functools.partial(slots.decode, s)).lower(*given)
  made = program.compile()
  # as written, and as compiled; the matrix itself is bfloat16
  for found in (
    re.findall(rf'tensor<([\dx]*){vocab}x(\w+)>', program.as_text()),
    [
      (shape, kind) for kind, shape in re.findall(rf'(\w+)\[([\d,]*){vocab}\]', str(made.as_text()))
    ],
  ):
    kinds = {kind for shape, kind in found if not shape.strip('x,').endswith(str(width))}
    assert 'f32' in kinds and not kinds & {'bf16', 'f16'}
  _, _, tokens, logprobs = made(*given)
  head_DV = np.asarray(model.head(params, s.config), np.float64)
  logits_SV = np.asarray(hidden, np.float64) @ head_DV
  wanted_SV = logits_SV - np.log(np.exp(logits_SV).sum(-1, keepdims=True))
  wanted = wanted_SV[np.arange(SLOTS), tokens[0]]
  np.testing.assert_allclose(logprobs[0], wanted, atol=1e-5)
  rounded = np.asarray(jnp.asarray(logits_SV, jnp.bfloat16), np.float64)
  assert np.abs(rounded - logits_SV).max() > 1e-3
