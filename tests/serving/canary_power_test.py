"""How often the canary's rule passes right weights and catches wrong ones, at 28 layers in bfloat16.

The published rates stand in paravt_jax/serving/README.md. `-s` prints the table of this run.
"""

import collections

import numpy as np
import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from paravt_jax.models.qwen3_vl import weights as hf
from paravt_jax.testing import tiny
from tests.models.qwen3_vl import oracle
from tests.serving import canary_kinds as kinds

pytestmark = pytest.mark.slow

# the least share of wrong servers that is caught, by family, as the README states it
LEAST = {
  'a whole text tensor of other weights': 1.0,
  'a text tensor transposed': 1.0,
  'one layer stale': 1.0,
  'vocabulary shifted by one': 1.0,
  'a part of other weights': 1.0,
  'another temperature': 1.0,
  'another picture': 1.0,
  'positions of text at image tokens': 1.0,
  'another version, 0.3 away': 1.0,
  'another version, 0.1 away': 1.0,
  'another version, 0.03 away': 1.0,
  'another version, 0.01 away': 0.0,
  'another version, 0.003 away': 0.0,
  'another version, 0.001 away': 0.0,
  'a tensor of two layers swapped': 0.7,
  'a tensor of one layer stale': 0.6,
  'exponent bits of a text tensor': 0.7,
  'a vision tensor transposed': 0.5,
  'a whole vision tensor of other weights': 0.4,
  'exponent bits of a vision tensor': 0.0,
}
SEEN = kinds.Seen(kinds.PICTURE)


def test_right_weights_pass_200_times_of_200_in_bfloat16_and_exactly_in_float32():
  for seed in range(200):
    params = kinds.weights(seed)
    expected, ids_RT = kinds.canary(params)
    other = kinds.reordered(params, seed)
    found_RTV = kinds.logprobs(other, ids_RT, SEEN, 'bfloat16')
    assert expected.problem(kinds.replies(expected, found_RTV), **kinds.RULE) is None, seed
    if seed < 5:
      exact_RTV = kinds.logprobs(other, ids_RT, SEEN, 'float32')
      own = kinds.replies(expected, exact_RTV)
      assert expected.problem(own, tolerance=1e-5, ratio=0.0) is None
      # what one token of all may do: the rule before this one refused right weights
      chosen_RT1 = ids_RT[..., None]
      gap_RT1 = np.take_along_axis(np.abs(found_RTV - exact_RTV), chosen_RT1, axis=2)
      assert gap_RT1.max() > 2 * gap_RT1.mean()


def test_transformers_in_bfloat16_passes_and_in_float32_agrees_to_1e_4(tmp_path):
  files = tmp_path / 'files'
  tiny.build_tokenizer(files)
  for seed in range(8):
    params = kinds.weights(seed)
    expected, ids_RT = kinds.canary(params)
    folder = tmp_path / str(seed)
    hf.save_hf(folder, kinds.CONFIG, params, files)
    for dtype, limits in (
      (torch.bfloat16, kinds.RULE),
      (torch.float32, {'tolerance': 1e-4, 'ratio': 0.0}),
    ):
      theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
      found_RTV = torch_logprobs(theirs, ids_RT)
      says = expected.problem(kinds.replies(expected, found_RTV), **limits)
      # without rounding in the rule, float32 must agree closely, and bfloat16 cannot
      assert says is None, (seed, dtype, says)


def torch_logprobs(theirs, ids_RT) -> np.ndarray:
  """float32[R, T, V] of transformers, at the places of the continuations' ids."""
  rows = []
  for ids_T in ids_RT:
    ids = [*kinds.EXPANDED, *ids_T.tolist()]
    with torch.no_grad():
      logits = oracle.torch_logits(theirs, ids, images=(kinds.PICTURE,)).float()
    logits = logits[len(kinds.EXPANDED) - 1 : -1]
    logits[:, list(kinds.BANNED)] = -torch.inf
    rows.append(torch.log_softmax(logits, -1).numpy())
  return np.stack(rows)


def test_wrong_servers_of_151_kinds_are_caught_as_often_as_is_stated():
  caught = collections.defaultdict(list)
  for seed in range(4):
    params, other = kinds.weights(seed), kinds.weights(10_000 + seed)
    expected, ids_RT = kinds.canary(params)
    wrong = kinds.wrong_servers(params, other, np.random.default_rng(seed))
    for family, _, (served, seen) in wrong:
      found_RTV = kinds.logprobs(served, ids_RT, seen, 'bfloat16')
      says = expected.problem(kinds.replies(expected, found_RTV), **kinds.RULE)
      caught[family].append(says is not None)
  assert sum(map(len, caught.values())) == 4 * 151 and caught.keys() == LEAST.keys()
  for family, found in caught.items():
    print(f'| {family} | {len(found) // 4} | {np.mean(found):.2f} | {LEAST[family]:.2f} |')
  assert all(np.mean(found) >= LEAST[family] for family, found in caught.items())
