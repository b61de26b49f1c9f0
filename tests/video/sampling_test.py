"""Which frames: budgets, overviews, windows."""

import collections
import subprocess
import sys

import numpy as np
import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.types import Clip, Window
from paravt_jax.video import sampling

CHOICES = (4, 8, 16, 32, 64)
RATE = {'fps': 1.0, 'min_frames': 2, 'max_frames': 16}


def test_budgets_are_uniform_over_the_choices():
  counts = collections.Counter(
    sampling.draw_budget(0, f'task-{i}', 0, CHOICES) for i in range(5000)
  )
  assert set(counts) == set(CHOICES)
  assert (
    sum((n - 1000) ** 2 / 1000 for n in counts.values()) < 18.47
  )  # chi-square, 4 degrees of freedom, p = .001


def test_release_3_the_budget_is_a_stable_hash_of_seed_task_and_epoch_equal_in_every_process():
  program = (
    'from paravt_jax.video.sampling import draw_budget\n'
    'print([draw_budget(7, f"task-{i}", 2, (4, 8, 16, 32, 64)) for i in range(8)])'
  )
  here = [sampling.draw_budget(7, f'task-{i}', 2, CHOICES) for i in range(8)]
  for salt in ('1', '2'):
    other = subprocess.run(
      [sys.executable, '-c', program],
      env={'PYTHONHASHSEED': salt, 'PYTHONPATH': '.'},
      capture_output=True,
      text=True,
      check=True,
    )
    assert other.stdout.strip() == str(here)
  assert here == [4, 64, 64, 8, 32, 8, 4, 64]


def test_release_3_the_budget_is_drawn_anew_for_another_task_epoch_or_seed():
  draw = lambda seed, task, epoch: [
    sampling.draw_budget(seed, f'{task}-{i}', epoch, CHOICES) for i in range(50)
  ]
  base = draw(0, 'a', 0)
  assert draw(1, 'a', 0) != base
  assert draw(0, 'b', 0) != base
  assert draw(0, 'a', 1) != base


def test_one_choice_means_gating_is_off():
  assert {sampling.draw_budget(0, f'{i}', 0, (64,)) for i in range(20)} == {64}


@pytest.mark.parametrize('choices', [(), (0, 4)])
def test_budgets_that_are_no_positive_numbers_are_refused(choices):
  with pytest.raises(ConfigError, match='wanted integers >= 1'):
    sampling.draw_budget(0, 'a', 0, choices)


def test_an_overview_stands_at_the_middles_of_equal_parts():
  np.testing.assert_allclose(sampling.budget_times(64.0, 4, 4.0), [8, 24, 40, 56])


@pytest.mark.parametrize(
  ('budget', 'fps', 'want'),
  [(4, 30.0, 4), (64, 30.0, 64), (64, 4.0, 40), (64, 0.05, 1), (1, 30.0, 1)],
)
def test_release_2_exactly_min_of_budget_and_frames_available_whatever_the_frame_rate(
  budget, fps, want
):
  assert len(sampling.budget_times(10.0, budget, fps)) == want


@pytest.mark.parametrize('fps', [1.0, 4.0, 29.97, 30.0])
def test_every_time_of_a_full_overview_falls_on_a_frame_of_its_own(fps):
  count = 37
  shown = np.floor(sampling.budget_times(count / fps, 64, fps) * fps + 1e-6)
  assert shown.tolist() == list(range(count))


def test_an_overview_of_nothing_is_refused():
  with pytest.raises(ValueError, match='duration=0'):
    sampling.budget_times(0, 4, 4.0)


@pytest.mark.parametrize(
  ('start', 'end', 'want'),
  [
    (10, 13, [10, 11, 12, 13]),
    (10.5, 13, [10.5, 11.5, 12.5]),
    (10, 10.4, [10, 10.4]),  # at least two
    (0.1, 0.1 + 3, [0.1, 1.1, 2.1, 3.1]),  # floats must not lose the last one
  ],
)
def test_a_window_is_sampled_from_its_start_at_the_rate(start, end, want):
  np.testing.assert_allclose(sampling.window_times(Window(start, end), **RATE), want)


def test_a_long_window_is_thinned_evenly_to_the_maximum_and_keeps_both_ends():
  times = sampling.window_times(Window(100, 200), **RATE)
  assert len(times) == 16 and times[0] == 100 and times[-1] == 200
  assert set(np.diff(times)) <= {6.0, 7.0}


@pytest.mark.parametrize(('wanted', 'got'), [(5, 5), (1, 2), (99, 16)])
def test_a_number_of_frames_replaces_the_rate_and_is_clamped(wanted, got):
  times = sampling.window_times(Window(10, 20, wanted), **RATE)
  np.testing.assert_allclose(times, np.linspace(10, 20, got))


def test_an_empty_window_is_refused():
  with pytest.raises(ValueError, match='wanted start < end'):
    sampling.window_times(Window(5, 5), **RATE)


def test_an_overview_asks_for_k_middles_even_of_a_video_with_fewer_frames():
  np.testing.assert_array_equal(
    sampling.overview_times(64.0, 16, 4.0), sampling.budget_times(64.0, 16, 4.0)
  )
  np.testing.assert_allclose(sampling.overview_times(10.0, 4, 0.2), [1.25, 3.75, 6.25, 8.75])


@pytest.mark.parametrize(('count', 'fps'), [(1, 4), (5, 30), (37, 29.97), (63, 10), (64, 10)])
def test_of_a_short_video_at_a_constant_rate_every_frame_is_found_once(count, fps):
  times = sampling.overview_times(count / fps, 64, fps)
  own = np.floor(times * fps + 1e-6) / fps
  got, repeated = sampling.once(Clip(np.zeros((64, 32, 32, 3), np.uint8), own, count / fps), times)
  np.testing.assert_allclose(got.seconds, np.arange(count) / fps)
  assert repeated == 64 - count


def test_each_frame_is_left_once_under_its_first_label_and_the_repeats_are_counted():
  frames = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
  clip = Clip(
    frames, np.array([1.0, 41.0, 42.0, 43.0, 101.0]), 102.0, np.array([1.0, 1.0, 1.0, 2.0, 101.0])
  )
  got, repeated = sampling.once(clip, [1.5, 41.0, 42.0, 43.0, 101.5])
  assert (got.seconds.tolist(), got.own.tolist(), repeated) == (
    [1.0, 43.0, 101.0],
    [1.0, 2.0, 101.0],
    2,
  )
  assert got.frames[:, 0, 0, 0].tolist() == [0, 3, 4]


def test_equal_pictures_at_different_times_are_frames_of_their_own():
  clip = Clip(np.zeros((3, 32, 32, 3), np.uint8), np.array([0.0, 0.25, 0.5]), 1.0)
  got, repeated = sampling.once(clip, clip.seconds)
  assert got.frames is clip.frames and got.seconds.tolist() == [0.0, 0.25, 0.5] and repeated == 0


def test_the_frame_on_screen_when_a_window_opens_is_labelled_with_the_time_looked_at():
  clip = Clip(np.zeros((2, 32, 32, 3), np.uint8), np.array([39.5, 41.5]), 64.0)
  got, _ = sampling.once(clip, [40.0, 42.0], since=40.0)
  assert got.seconds.tolist() == [40.0, 41.5] and got.own.tolist() == [39.5, 41.5]
