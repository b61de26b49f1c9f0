"""Scenes: layouts keep their gaps, are a function of the seed, and impossible ones are refused."""

import dataclasses

import numpy as np
import pytest

from paravt_jax.data.world import scene, traces
from paravt_jax.errors import ConfigError
from paravt_jax.video import sampling
from tests.data.world.small import SCENE

SCENES = [scene.draw(SCENE, f'v{i}', 0) for i in range(200)]


def test_a_scene_is_a_function_of_options_name_and_seed():
  assert scene.draw(SCENE, 'v3', 0) == SCENES[3]
  assert scene.draw(SCENE, 'v3', 1) != SCENES[3]
  assert scene.draw(SCENE, 'v4', 0).events != SCENES[3].events


def test_events_keep_gaps_margins_counts_and_whole_seconds():
  for drawn in SCENES:
    assert 6 <= len(drawn.events) <= 10
    assert drawn.events[0].start >= 6 and drawn.events[-1].end <= 122
    assert all(3 <= e.end - e.start <= 4 and isinstance(e.start, int) for e in drawn.events)
    assert all(b.start - a.end >= 4 for a, b in zip(drawn.events, drawn.events[1:]))


def test_all_colours_occur_and_one_may_recur_in_a_video():
  assert {e.colour for drawn in SCENES for e in drawn.events} == set(scene.COLOURS)
  assert any(len({e.colour for e in drawn.events}) < len(drawn.events) for drawn in SCENES)


def test_an_event_is_shown_from_its_start_up_to_its_end():
  drawn = scene.Scene('v', 128, (scene.Event(40, 43, 'red', 'disc', 0.5, 0.5),), 0)
  assert [scene.label(drawn.at(t), False) for t in (39.9, 40, 42.9, 43)] == [
    'nothing',
    'red',
    'red',
    'nothing',
  ]
  assert scene.label(drawn.at(41), True) == 'red disc'


@pytest.mark.parametrize(('budget', 'low', 'high'), [(4, 0.05, 0.20), (64, 1.0, 1.0)])
def test_an_overview_of_64_frames_shows_every_event_and_one_of_4_about_a_tenth(budget, low, high):
  seconds = sampling.budget_times(128, budget, 4)
  shown = np.mean(
    [any(e.start <= s < e.end for s in seconds) for drawn in SCENES for e in drawn.events]
  )
  assert low <= shown <= high


@pytest.mark.parametrize(('budget', 'low', 'high'), [(4, 0.05, 0.25), (64, 1.0, 1.0)])
def test_a_cue_in_an_event_is_visible_at_64_frames_and_seldom_at_4(budget, low, high):
  seconds = sampling.budget_times(128, budget, 4)
  cues = [(drawn, cue) for drawn in SCENES for e in drawn.events for cue in range(e.start, e.end)]
  assert low <= np.mean([traces.visible(drawn, cue, seconds, 1) for drawn, cue in cues]) <= high


@pytest.mark.parametrize(
  ('change', 'knob'),
  [
    ({'seconds': 60}, 'events'),
    ({'colours': 9}, 'colours'),
    ({'pixels': 50}, 'pixels'),
    ({'events': (3, 2)}, 'events'),
  ],
)
def test_impossible_scenes_are_refused_by_the_name_of_the_knob(change, knob):
  with pytest.raises(ConfigError, match=knob):
    scene.check(dataclasses.replace(SCENE, **change))
