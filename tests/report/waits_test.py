"""The picture of a timeline: the last steps, whose lane was busy with what, and for how long."""

import re

from paravt_jax.report import waits

# five steps of two seconds: one of waiting, one of learning
LEARNER = [
  span
  for step in range(5)
  for span in (('wait for rollouts', 2 * step, 2 * step + 1), ('learn', 2 * step + 1, 2 * step + 2))
]


def test_the_last_steps_are_drawn_with_the_share_of_each_lane():
  made = waits.draw(
    {'server b': [('busy', 0.0, 4.0)], 'decoder': [('busy', 9.0, 99.0)], 'learner': LEARNER}
  )
  assert made.steps == waits.STEPS == 4
  # from 2 to 10 s: each lane is cut to that
  assert made.shares == [
    'learner: wait for rollouts 50 %, learn 50 %',
    'server b: busy 25 %',
    'decoder: busy 12 %',
  ]
  assert [name for name, _ in made.legend] == ['wait for rollouts', 'learn', 'busy']
  places = [
    (float(x), float(width))
    for x, width in re.findall(r'rect x="(\S+)" y="\d+" width="(\S+)"', made.svg)
  ]
  assert all(x >= 150 and x + width <= 893 for x, width in places) and len(places) == 8 + 2


def test_a_lane_without_spans_in_the_window_is_left_out():
  made = waits.draw({'server a': [('busy', 0.0, 1.0)], 'learner': LEARNER})
  assert [share.split(':')[0] for share in made.shares] == ['learner']


def test_fewer_than_two_steps_are_no_picture():
  assert waits.draw({}) is None
  assert waits.draw({'learner': LEARNER[:2], 'server': [('busy', 0, 1)]}) is None


def test_names_of_servers_cannot_bring_markup():
  made = waits.draw({'<script>x</script>': [('<b>', 3.0, 4.0)], 'learner': LEARNER})
  assert '<script' not in made.svg and '<b>' not in made.svg and '&lt;b&gt;' in made.svg


def test_the_axis_has_round_numbers_that_fit():
  for seconds in (0.004, 0.3, 1.0, 7.9, 65.0, 4000.0):
    ticks = waits._ticks(seconds)
    assert 2 <= len(ticks) <= 8 and ticks[0] == 0 and ticks[-1] < seconds
