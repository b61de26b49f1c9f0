"""A canary tells a server that holds the learner's weights from one that does not."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from paravt_jax.errors import SyncError
from paravt_jax.serving.canary import Canary, Continuation, canary_image
from paravt_jax.serving.protocol import GenerateReply

FIRST = Continuation((), (40, 41, 42), (-0.5, -1.0, -2.0), (1.0, 1e-5, 0.3))
SECOND = Continuation((9, 8), (50, 51), (-0.25, -4.0), (2.0, 3.0))
CANARY = Canary((5, 6, 7), canary_image(8), (3,), (FIRST,), 0.0, 0.0)
BOTH = dataclasses.replace(CANARY, continuations=(FIRST, SECOND), rounding=0.01)


def reply(ids, logprobs) -> GenerateReply:
  return GenerateReply(list(ids), list(logprobs), 'length', 4, 0, 2, [(1, 0, len(ids))])


def problem(*replies, tolerance=1e-3, ratio=1.5, canary=CANARY) -> Any:
  return canary.problem(replies, tolerance=tolerance, ratio=ratio)


def test_the_learners_own_words_pass_and_so_does_a_mean_within_the_tolerance():
  assert problem(reply((40, 41, 42), (-0.5, -1.0, -2.0)), tolerance=0.0) is None
  # .0029 / 3 < .001
  assert problem(reply((40, 41, 42), (-0.5029, -1.0, -2.0))) is None
  assert problem(reply((40, 41, 42), (-0.5031, -1.0, -2.0))) is not None


@pytest.mark.parametrize(
  'ids, logprobs, says',
  [
    (
      (40, 41, 42),
      (-0.5, -1.0, -2.03),
      'continuation 0, token 2: log-prob -2.03, the learner says -2;',
    ),
    (
      (40, 41, 42),
      (-0.5, float('nan'), -2.0),
      "mean |log-prob - the learner's| of 3 tokens is nan",
    ),
    ((40, 41, 42), (-0.5, float('nan'), -2.0), 'token 1: log-prob nan'),
    ((39, 41, 42), (-0.5, -1.0, -2.0), '(id 39, the learner says 40 by a margin of 1)'),
    ((39, 41, 42), (float('nan'), -1.0, -2.0), 'token 0: log-prob nan'),
    ((40, 41), (-0.5, -1.0), 'continuation 0: got 2 tokens, wanted 3'),
  ],
)
def test_another_log_prob_another_token_or_too_few_is_a_problem(ids, logprobs, says):
  assert says in problem(reply(ids, logprobs))


def test_after_a_tie_the_text_may_differ_but_the_tied_tokens_log_prob_may_not():
  assert problem(reply((40, 17, 99), (-0.5, -1.0, -7.0))) is None
  assert 'token 1: log-prob -1.1' in problem(reply((40, 17, 99), (-0.5, -1.1, -7.0)))


def test_rounding_widens_the_limit_and_the_more_so_the_fewer_tokens_are_compared():
  # .001 + (1.5 + 3 / 3) * .01 and .001 + (1.5 + 3 / 1) * .01
  assert BOTH.limit(9, tolerance=1e-3, ratio=1.5) == pytest.approx(0.026)
  assert BOTH.limit(1, tolerance=1e-3, ratio=1.5) == pytest.approx(0.046)
  assert CANARY.limit(1, tolerance=1e-3, ratio=1.5) == 1e-3


def test_the_mean_is_over_all_continuations_and_one_coarse_token_does_not_decide():
  first = reply(FIRST.output_ids, FIRST.logprobs)
  # five tokens: .001 + (1.5 + 3 / sqrt(5)) * .01 = .0294 on average, .147 in all
  assert problem(first, reply((50, 51), (-0.25, -4.14)), canary=BOTH) is None
  says = problem(first, reply((50, 51), (-0.25, -4.16)), canary=BOTH)
  assert says == (
    "mean |log-prob - the learner's| of 5 tokens is 0.032 nats, allowed 0.029 "
    '(server.watch.tolerance=0.001, and rounding costs the learner itself 0.01), most at '
    'continuation 1, token 1: log-prob -4.16, the learner says -4; it has other weights or images, '
    'or it rounds more than the learner (its dtype or kernels; then raise '
    'server.watch.rounding_ratio)'
  )


def test_the_ratio_that_a_server_needs_is_where_its_problem_ends():
  found = BOTH.measure((reply(FIRST.output_ids, FIRST.logprobs), reply((50, 51), (-0.25, -4.2))))
  assert (found.tokens, found.worst.split(':')[0]) == (5, 'continuation 1, token 1')
  assert found.mean == pytest.approx(0.04)
  # (.04 - .001) / .01 - 3 / sqrt(5)
  needed = BOTH.needed_ratio(found, tolerance=1e-3)
  assert needed == pytest.approx(2.558359)
  replies = (reply(FIRST.output_ids, FIRST.logprobs), reply((50, 51), (-0.25, -4.2)))
  assert problem(*replies, ratio=needed + 1e-6, canary=BOTH) is None
  assert problem(*replies, ratio=needed - 1e-6, canary=BOTH) is not None


def test_without_rounding_or_with_a_nan_no_ratio_helps():
  off = CANARY.measure((reply(FIRST.output_ids, (-0.5, -1.0, -3.0)),))
  assert CANARY.needed_ratio(off, tolerance=1e-3) == math.inf
  assert CANARY.needed_ratio(off, tolerance=1.0) == -math.inf
  broken = BOTH.measure(
    (reply(FIRST.output_ids, (-0.5, math.nan, -2.0)), reply((50, 51), (-0.25, -4.0)))
  )
  assert BOTH.needed_ratio(broken, tolerance=1e-3) == math.inf


def test_each_continuation_is_asked_for_after_what_the_learner_sampled():
  first, second = BOTH.requests('canary-1')
  assert (first.rid, second.rid) == ('canary-1-0', 'canary-1-1')
  assert (first.input_ids, second.input_ids) == ([5, 6, 7], [5, 6, 7, 9, 8])
  assert (first.max_new_tokens, second.max_new_tokens) == (3, 2)
  assert first.banned_ids == (3,) and first.temperature == 0.0 and first.ignore_eos


def test_it_survives_the_manifest_pixels_included():
  back = Canary.from_json(BOTH.to_json())
  assert np.array_equal(back.image, BOTH.image)
  assert dataclasses.replace(back, image=BOTH.image) == BOTH


@pytest.mark.parametrize(
  'change',
  [
    {'continuations': []},
    {'continuations': [{**dataclasses.asdict(FIRST), 'output_ids': [1]}]},
    {'continuations': [{**dataclasses.asdict(FIRST), 'margins': ['x', 1, 2]}]},
    {'image': 'AAAA'},
    {'rounding': math.nan},
    {'sampled_rounding': None},
  ],
)
def test_a_broken_one_is_refused_in_one_line(change):
  with pytest.raises(SyncError, match='canary of a manifest: broken'):
    Canary.from_json({**CANARY.to_json(), **change})
  with pytest.raises(SyncError, match='KeyError'):
    Canary.from_json(
      {name: value for name, value in CANARY.to_json().items() if name not in change}
    )


def test_one_of_another_release_is_refused_with_the_way_out():
  old = {'input_ids': [5], 'output_ids': [1], 'logprobs': [-1.0], 'margins': [1.0]}
  with pytest.raises(SyncError, match=r'got format 1, wanted 2: .* publishes the version anew'):
    Canary.from_json(old)
  with pytest.raises(SyncError, match='got format 3, wanted 2'):
    Canary.from_json({**CANARY.to_json(), 'format': 3})


def test_the_picture_is_the_same_every_time_and_fits_the_patches_that_a_server_allows():
  shapes = {patches: canary_image(patches).shape for patches in (4, 8, 63, 64, 196)}
  assert shapes == {
    4: (32, 32, 3),
    8: (64, 32, 3),
    63: (64, 32, 3),
    64: (128, 128, 3),
    196: (128, 128, 3),
  }
  assert canary_image(4).sum() == canary_image(4).sum() and len(np.unique(canary_image(4))) > 200
