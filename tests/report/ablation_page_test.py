"""An ablation's files: what is drawn of several seeds, and that the page and the pictures stand
alone.
"""

import json
import re
import xml.etree.ElementTree as ET

import pytest

from paravt_jax.errors import ParavtError
from paravt_jax.report import ablation_page
from paravt_jax.report.ablation import Result, Settings
from tests.report.ablation_test import result

SETTINGS = Settings('configs/para_grpo.py:tiny', ('rollout.steps=4',), {'grpo': ('frames.gating=False',), 'para_grpo': ()}, 'para_grpo',
                    {'parts': ('grpo', 'para_grpo')})  # fmt: skip


def trained(accuracy, curve):
  """A run whose training accuracy went along `curve`."""
  return Result(
    result(accuracy).summary,
    [{'step': step, 'accuracy': value} for step, value in enumerate(curve)],
  )


RESULTS = {
  'grpo': {0: trained(0.5, [0.1, 0.2, 0.3, 0.4]), 1: trained(0.6, [0.3, 0.4, 0.5])},
  'para_grpo': {0: trained(0.75, [0.5, 0.6, 0.7])},
}


def test_a_curve_over_seeds_is_their_mean_between_the_lowest_and_the_highest_as_far_as_all_went():
  series = ablation_page.over_seeds(
    'grpo', [[(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)], [(0, 0.3), (1, 0.4), (2, 0.5)]], 'red'
  )
  assert series.points == [
    (0, pytest.approx(0.2)),
    (1, pytest.approx(0.3)),
    (2, pytest.approx(0.4)),
  ]
  assert series.band == [(0, 0.1, 0.3), (1, 0.2, 0.4), (2, 0.3, 0.5)]


def test_one_seed_has_no_band_and_none_no_points():
  assert ablation_page.over_seeds('a', [[(0, 1.0), (1, 2.0)]], 'red').band == []
  assert ablation_page.over_seeds('a', [[]], 'red').points == []


def test_long_curves_are_smoothed_over_a_tenth():
  points = [(step, float(step == 20)) for step in range(40)]
  smooth = dict(ablation_page.over_seeds('a', [points], 'red').points)
  assert [smooth[step] for step in (17, 18, 20, 22, 23)] == [
    0.0,
    0.2,
    0.2,
    0.2,
    0.0,
  ]  # two to each side


def test_the_folder_holds_the_table_its_numbers_the_page_and_each_picture(tmp_path):
  text = ablation_page.write(tmp_path, RESULTS, SETTINGS)
  assert (tmp_path / 'table.md').read_text() == text + '\n' and '| grpo ' in text
  found = json.loads((tmp_path / 'summary.json').read_text())
  assert (
    found['grpo']['accuracy']['mean'] == pytest.approx(0.55)
    and found['grpo']['accuracy']['seeds'] == 2
  )
  assert found['para_grpo']['accuracy'] == {'mean': 0.75, 'low': None, 'high': None, 'seeds': 1}
  assert found['grpo']['against']['mean'] == pytest.approx(-0.25)
  assert [path.name for path in (tmp_path / 'curves').iterdir()] == ['parts-accuracy.svg']
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'ablations.html',
    'curves',
    'summary.json',
    'table.md',
  ]


def test_the_page_shows_every_set_with_its_overrides_and_loads_nothing(tmp_path):
  ablation_page.write(tmp_path, RESULTS, SETTINGS)
  page = (tmp_path / 'ablations.html').read_text()
  assert (
    'frames.gating=False' in page
    and 'rollout.steps=4' in page
    and page.count('<tr class="reference">') == 1
  )
  assert 'Some sets have a single seed' in page and not re.search(r'(?:src|href)="https?:', page)
  assert '<td>0.550<small>[-0.085, 1.185]</small></td>' in page  # .55 ± 12.706 * .0707 / sqrt(2)


def test_a_set_without_a_finished_run_is_named_and_an_empty_grid_is_a_page(tmp_path):
  ablation_page.write(tmp_path, {'grpo': RESULTS['grpo']}, SETTINGS)
  assert (
    'No run of these sets has reached its end: para_grpo.'
    in (tmp_path / 'ablations.html').read_text()
  )
  assert ablation_page.write(tmp_path, {}, SETTINGS) == 'no run has reached its end yet'
  assert 'No run has reached its end yet.' in (tmp_path / 'ablations.html').read_text()


def test_a_picture_is_whole_without_a_page(tmp_path):
  ablation_page.write(tmp_path, RESULTS, SETTINGS)
  root = ET.fromstring((tmp_path / 'curves' / 'parts-accuracy.svg').read_text())
  texts = [element.text for element in root.iter('{http://www.w3.org/2000/svg}text')]
  assert texts[:4] == ['Accuracy', 'share of training episodes', 'grpo 0.4', 'para_grpo 0.7']
  style = root.find('{http://www.w3.org/2000/svg}style').text
  used = set(re.findall(r'var\((--\w+)\)', ET.tostring(root).decode()))
  assert used and all(f'{name}:#' in style for name in used)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'table.md').mkdir()
  with pytest.raises(ParavtError, match=r'table\.md'):
    ablation_page.write(tmp_path, RESULTS, SETTINGS)
