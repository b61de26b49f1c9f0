"""A canary tells a server that holds the learner's weights from one that does not."""

import numpy as np
import pytest

from paravt_jax.errors import SyncError
from paravt_jax.serving.canary import Canary, canary_image
from paravt_jax.serving.protocol import GenerateReply

CANARY = Canary(
  (5, 6, 7), canary_image(8), (3,), (40, 41, 42), (-0.5, -1.0, -2.0), (1.0, 1e-5, 0.3)
)


def reply(ids, logprobs) -> GenerateReply:
  return GenerateReply(list(ids), list(logprobs), 'length', 4, 0, 2, [(1, 0, len(ids))])


def test_the_learners_own_words_pass_and_so_does_what_lies_within_the_tolerance():
  assert CANARY.problem(reply((40, 41, 42), (-0.5, -1.0, -2.0)), 0.0) is None
  assert CANARY.problem(reply((40, 41, 42), (-0.5009, -1.0, -2.0)), 1e-3) is None


@pytest.mark.parametrize(
  'ids, logprobs, says',
  [
    (
      (40, 41, 42),
      (-0.5, -1.0, -2.01),
      'token 2: log-prob -2.01, the learner says -2 (apart 0.01, allowed 0.001)',
    ),
    ((40, 41, 42), (-0.5, float('nan'), -2.0), 'token 1: log-prob nan'),
    ((39, 41, 42), (-0.5, -1.0, -2.0), 'token 0: got id 39, the learner says 40, by a margin of 1'),
    ((40, 41), (-0.5, -1.0), 'got 2 tokens, wanted 3'),
  ],
)
def test_another_log_prob_another_token_or_too_few_is_a_problem(ids, logprobs, says):
  assert says in CANARY.problem(reply(ids, logprobs), 1e-3)


def test_after_a_tie_the_text_may_differ_but_the_tied_tokens_log_prob_may_not():
  assert CANARY.problem(reply((40, 17, 99), (-0.5, -1.0, -7.0)), 1e-3) is None
  assert 'token 1: log-prob -1.1' in CANARY.problem(reply((40, 17, 99), (-0.5, -1.1, -7.0)), 1e-3)


def test_it_survives_the_manifest_pixels_included():
  back = Canary.from_json(CANARY.to_json())
  assert np.array_equal(back.image, CANARY.image)
  assert (back.input_ids, back.output_ids, back.logprobs, back.margins) == (
    (5, 6, 7),
    (40, 41, 42),
    (-0.5, -1.0, -2.0),
    (1.0, 1e-5, 0.3),
  )
  assert back.request('r').banned_ids == (3,) and back.request('r').temperature == 0.0


@pytest.mark.parametrize(
  'change', [{'output_ids': [1]}, {'image': 'AAAA'}, {'logprobs': None}, {'margins': ['x', 1, 2]}]
)
def test_a_broken_one_is_refused_in_one_line(change):
  with pytest.raises(SyncError, match='canary of a manifest: broken'):
    Canary.from_json({**CANARY.to_json(), **change})
  with pytest.raises(SyncError, match='KeyError'):
    Canary.from_json(
      {name: value for name, value in CANARY.to_json().items() if name not in change}
    )


def test_the_picture_is_the_same_every_time_and_fits_the_patches_that_a_server_allows():
  assert canary_image(4).shape == (32, 32, 3) and canary_image(196).shape == (64, 32, 3)
  assert canary_image(4).sum() == canary_image(4).sum() and len(np.unique(canary_image(4))) > 200
