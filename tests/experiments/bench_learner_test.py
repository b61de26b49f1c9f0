"""Suite `learner`: its cases, its arithmetic, and a small run against transformers."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from configs import bench as recipes
from experiments import launch
from experiments.bench import learner, learner_attention, learner_cases, learner_plot
from experiments.bench import turns as taking
from experiments.bench.learner import Turn
from experiments.bench.recipe import BenchRecipe
from paravt_jax.orchestrator.profiling import ProfileOptions
from tests.train import common

SMALL = {
  'threads': 1,
  'learner.model.vocab': 1024,
  'learner.model.width': 32,
  'learner.model.layers': 2,
  'learner.model.heads': 4,
  'learner.model.kv_heads': 2,
  'learner.model.head_dim': 16,
  'learner.model.mlp': 48,
  'learner.repeats': 1,
  'learner.text.documents': 2,
  'learner.text.tokens': 32,
  'learner.text.row_tokens': 32,
  'learner.packed.overviews': 1,
  'learner.packed.overview_frames': (3, 3),
  'learner.packed.windows': 2,
  'learner.packed.window_frames': (1, 2),
  'learner.packed.words': (4, 30),
  'learner.packed.row_tokens': 128,
  'learner.packed.row_images': 6,
  'learner.group.rollouts': 3,
  'learner.group.frames': 2,
  'learner.group.words': 8,
  'learner.group.new_tokens': 6,
  'learner.group.row_multiple': 8,
  'learner.attention.row_tokens': 256,
  'learner.attention.repeats': 1,
}


def _recipe(**more) -> BenchRecipe:
  config = recipes.get_config()
  config.update_from_flattened_dict({**SMALL, **more})
  return launch.typed(BenchRecipe, config)


def test_a_ratio_is_the_median_over_the_pairs_of_turns():
  turns = {
    'ours': [Turn(1.0, 2.0), Turn(2.0, 2.0), Turn(4.0, 2.0)],
    'torch': [Turn(3.0, 8.0), Turn(2.0, 6.0), Turn(8.0, 4.0)],  # 3, 1 and 2 times
  }
  assert taking.median_ratio(turns, 'torch', 'ours') == 2.0
  assert taking.median_ratio(turns, 'torch', 'ours', cpu=True) == 3.0
  assert taking.spread(turns)['ours_seconds'] == 2.0
  assert taking.spread(turns)['torch_most_seconds'] == 8.0


def test_turns_alternate_in_both_orders():
  seen = []
  runs = {name: lambda name=name: seen.append(name) for name in ('a', 'b')}
  turns = taking.take_turns(runs, 3)
  assert seen == ['a', 'b', 'b', 'a', 'a', 'b']
  assert {name: len(one) for name, one in turns.items()} == {'a': 3, 'b': 3}


def test_flops_of_text_are_six_per_weight_and_token_and_twelve_per_visible_pair():
  knobs = _recipe().learner
  config = learner_cases.model_config(common.CONFIG, knobs)
  case = learner_cases.text_case(config, knobs, 0)
  # 2 documents of 32 tokens, the last 16 of each trained
  weights = 2 * (32 * 16 * (4 + 2 + 2 + 4) + 3 * 32 * 48)
  pairs = 2 * 32 * 33 // 2
  wanted = 6 * weights * 64 + 12 * 4 * 16 * 2 * pairs + 6 * 32 * 1024 * 32
  assert (case.tokens, case.trained) == (64, 32)
  assert case.needed_flops(config, True) == wanted


def test_a_group_is_the_same_rollouts_with_one_prompt_and_with_their_own():
  knobs = _recipe().learner
  config = learner_cases.model_config(common.CONFIG, knobs)
  shared, alone = learner_cases.group_cases(config, knobs, 0)
  prompt, reply = 2 * 7 + 8, 6  # a frame is four tokens of time, its start, one token and its end
  assert alone.tokens == shared.tokens == 3 * (prompt + reply)
  assert int((shared.rows.segments_RT > 0).sum()) == prompt + 3 * reply
  assert shared.trained == alone.trained == 3 * reply
  for one in (shared, alone):
    trained = one.rows.extras['mask'] > 0
    assert sorted(one.rows.extras['advantage'][trained]) == [-1.0] * reply + [1.0] * 2 * reply


def test_lengths_of_documents_with_frames_differ_and_rows_hold_them_all():
  knobs = _recipe().learner
  config = learner_cases.model_config(common.CONFIG, knobs)
  case = learner_cases.packed_case(config, knobs, 0)
  assert len({len(one.ids) for one in case.documents}) > 1
  assert case.tokens == sum(len(one.ids) for one in case.documents)  # a frame is one token


def test_pairs_are_counted_on_the_published_episodes_and_times_on_a_short_row():
  recipe = _recipe()
  config = learner_cases.model_config(common.CONFIG, recipe.learner)
  found = learner_attention.attention_times(recipe.learner.attention, config, jax.devices()[0], 0)
  prompt, reply, replies, trees = 4200, 900, 8, 2
  own = reply * (reply + 1) // 2 + reply * prompt
  assert found['visible_pairs'] == trees * (prompt * (prompt + 1) // 2 + replies * own)
  assert 1.0 < found['pairs_ratio'] == found['multiplied_pairs'] / found['visible_pairs'] <= 2.0
  assert found['tiled_seconds'] > 0 and found['kernel_seconds'] is None


@dataclasses.dataclass(frozen=True)
class _Device:
  platform: str
  device_kind: str


@pytest.mark.parametrize(
  'kind, peak',
  [('NVIDIA H100 80GB HBM3', 989e12), ('NVIDIA H200', 989e12), ('NVIDIA A100-SXM4-80GB', 312e12)],
)
def test_a_known_device_has_the_peak_of_its_data_sheet(kind, peak):
  assert learner.peak_flops(_Device('gpu', kind), 'bfloat16') == peak


def test_an_unknown_device_and_a_cpu_have_no_peak():
  assert learner.peak_flops(_Device('gpu', 'NVIDIA T4'), 'float32') is None
  assert learner.peak_flops(_Device('cpu', 'cpu'), 'float32') is None


def test_the_picture_has_a_bar_for_each_figure(tmp_path):
  report = {
    'device': 'cpu',
    'versus_torch': {'text_ratio': 1.0, 'packed_ratio': 2.0, 'policy_ratio': 4.0},
    'prefix_sharing': {'time_ratio': 2.0, 'flops_ratio': 3.0},
    'attention': {
      'plain_seconds': 4.0,
      'chunked_seconds': 2.0,
      'tiled_seconds': 1.0,
      'kernel_seconds': None,
    },
  }
  pixels = np.asarray(Image.open(learner_plot.draw(report, tmp_path / 'a.png')).convert('RGB'))
  dark = (pixels == (43, 108, 176)).all(-1).sum(axis=1)  # of each line of pixels
  lengths = [max(group) for key, group in itertools.groupby(dark, key=bool) if key]
  # bars of one panel are as long as their values; the others have a scale of their own
  first, second = np.asarray(lengths[:5]), np.asarray(lengths[5:])
  np.testing.assert_allclose(first / first[0], [1, 2, 4, 2, 3], atol=0.02)
  np.testing.assert_allclose(second / second[-1], [4, 2, 1], atol=0.02)


@pytest.mark.slow
def test_both_programs_make_the_same_step_and_the_report_is_written(tmp_path):
  recipe = _recipe(**{'run.folder': str(tmp_path), 'profile.steps': 1})
  assert recipe.profile == ProfileOptions(steps=1)
  report = learner.suite(recipe)
  for name in ('text', 'packed', 'policy'):
    found = report['versus_torch'][name]
    assert found['grad_norm_gap'] < 1e-4 and found['loss_gap'] < 1e-4
    assert report['versus_torch'][f'{name}_ratio'] == found['tokens_per_second_ratio'] > 0
    assert found['ours_tokens_per_second'] == pytest.approx(found['tokens'] / found['ours_seconds'])
  assert report['prefix_sharing']['flops_ratio'] > 1.5
  assert json.loads((tmp_path / 'learner.json').read_text()) == report
  assert list((tmp_path / 'profile').rglob('*.trace.json.gz'))
