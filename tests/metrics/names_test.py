"""The dictionary of metrics: what is in it is allowed, everything else is refused with a way
out.
"""

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.metrics import names


def test_a_known_name_gives_its_unit_and_meaning():
  assert names.lookup('policy/gap_mean').unit == 'nats'
  assert 'learner against server' in names.lookup('policy/gap_mean').meaning


@pytest.mark.parametrize(
  'name',
  [
    'accuracy/k=4',
    'accuracy/k=4/type=mcq',
    'calls/failed/reason=parse_failure',
    'policy/gap_max/class=after_tool',
    'advantage/k=64',
    'sync/seconds/stage=load',
  ],
)
def test_a_suffix_that_the_entry_lists_is_allowed(name):
  assert names.lookup(name) is names.METRICS[names.split(name)[0]]


def test_a_misspelt_name_is_refused_with_the_nearest_one():
  with pytest.raises(
    ConfigError, match=r"metric 'reward/totl' is unknown; did you mean 'reward/total'\?"
  ):
    names.lookup('reward/totl')


def test_a_stranger_is_refused_and_the_dictionary_named():
  with pytest.raises(ConfigError, match=r'zzzz.*paravt_jax/metrics/names.py'):
    names.lookup('zzzz')


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('policy/entropy/k=4', "no suffix 'k'; allowed: class"),
    ('optim/skipped/k=4', "no suffix 'k'; allowed: none"),
    ('accuracy/k=', "got the value '' for 'k'"),
    ('accuracy/k=4/k=8', 'suffixes stand last and once each'),
    ('reward/k=4/total', 'suffixes stand last and once each'),
  ],
)
def test_a_suffix_out_of_place_is_refused(name, message):
  with pytest.raises(ConfigError, match=message):
    names.lookup(name)


def test_split_is_textual():
  assert names.split('calls/failed/reason=timeout/k=4') == (
    'calls/failed',
    {'reason': 'timeout', 'k': '4'},
  )
  assert names.split('turns') == ('turns', {})


@pytest.mark.parametrize(
  'name',
  [
    # what section 7 of the specification wants logged at every step
    'reward/total',
    'reward/accuracy',
    'reward/format',
    'reward/base',
    'reward/anchor',
    'reward/tool',
    'advantage/k=4',
    'accuracy/k=4',
    'groups/no_signal',
    'policy/entropy',
    'policy/ratio',
    'policy/clip_share',
    'policy/dropped_share',
    'policy/ess',
    'policy/gap_mean/class=text',
    'policy/gap_mean/class=after_frame',
    'policy/gap_max/class=after_tool',
    'policy/kl_reference',
    'calls/parsed',
    'calls/executed',
    'calls/failed/reason=media_error',
    'truncated/turn',
    'truncated/context',
    'length/sampled',
    'staleness',
    'time/rollout',
    'time/learn',
  ],
)
def test_everything_that_must_be_logged_has_an_entry(name):
  names.lookup(name)


def test_every_entry_says_something_and_every_stage_of_a_step_has_its_time():
  for name, metric in names.METRICS.items():
    assert metric.unit and len(metric.meaning) > 5, name
    assert '=' not in name
  assert {f'time/{stage}' for stage in names.TIME} <= set(names.METRICS)
