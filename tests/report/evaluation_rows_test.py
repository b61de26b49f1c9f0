"""The numbers that an evaluation's page shows."""

import dataclasses
import json
import re

import pytest

from paravt_jax.report import evaluation
from paravt_jax.types import (
  ResultStatus,
  StopReason,
  ToolCall,
  ToolResult,
  Trajectory,
  Window,
)
from tests.report.made_evaluation import cards, folder_of, line, page_of, scored

SUMMARY = {
  'charades': {
    'samples': 200,
    'answered': 198,
    'errors': 2,
    'score': 0.5012,
    'interval': [0.44, 0.56],
    'score_answered': 0.506,
    'score_official': 0.49,
    'metric': 'mIoU',
    'calls_per_sample': 1.25,
    'fingerprint': 'ab',
    'metrics': {
      'iou': {'all': 0.5012, 'interval': [0.44, 0.56], 'answered': 0.506},
      'r@0.5': {'all': 0.6, 'interval': [0.53, 0.67], 'answered': 0.61},
    },
    'breakdowns': {
      'k': {
        '4': {'samples': 100, 'errors': 2, 'score': 0.4, 'interval': [0.3, 0.5]},
        '64': {'samples': 100, 'errors': 0, 'score': 0.6, 'interval': [0.5, 0.7]},
      }
    },
  },
}


def test_the_table_is_the_summary_s_with_its_intervals(tmp_path):
  page = page_of(folder_of(tmp_path, line('charades', 3), summary=SUMMARY))
  row = re.search(r'<tr><th scope="row">charades</th>(.*?)</tr>', page, re.DOTALL)[1]
  words = [word for word in re.sub('<[^>]+>', '|', row).split('|') if word.strip()]
  assert [word.strip() for word in words] == [
    'mIoU',
    '50.1 %',
    '[44.0, 56.0]',
    '50.6 %',
    '49.0 %',
    '200',
    '2',
    '1.25',
  ]
  assert 'left:44.0%;width:12.0%' in row and 'left:50.12%' in row
  assert 'This page is not complete' not in page
  assert re.search(
    r'charades<small>by K</small>.*?>64</th><td>60\.0 % <small>\[50\.0, 70\.0\]', page, re.DOTALL
  )
  assert re.search(
    r'charades<small>by metric</small>.*?>r@0\.5</th><td>60\.0 % <small>\[53\.0, 67\.0\]',
    page,
    re.DOTALL,
  )


def test_the_score_is_that_of_the_line_and_not_of_the_episodes_reward(tmp_path):
  made = scored(1)
  made = dataclasses.replace(made, parts={**made.parts, 'accuracy': 1.0})
  page = page_of(
    folder_of(
      tmp_path, line('charades', 1, score=0.25, scored=made, metrics={'iou': 0.25}, official=None)
    )
  )
  assert 'score <b>0.25</b>' in page and 'iou <b>0.25</b>' in page and 'accuracy <b>' not in page
  assert cards(page)[0][0] == 'partial' and '<span class="chip outcome">0.25</span>' in page


def test_a_crop_whose_frames_came_back_is_not_called_a_sub_agents(tmp_path):
  result = ToolResult(
    ToolCall('crop_video', {}),
    ResultStatus.EXECUTED,
    '2 frames of 1.0 to 2.0 seconds.',
    Window(1, 2),
    (1.0, 2.0),
  )
  looked = dataclasses.replace(result, subagent=Trajectory((), StopReason.STOP))
  made = scored(1)
  turn = dataclasses.replace(made.episode.turns[0], results=(result, looked, result))
  made = dataclasses.replace(made, episode=dataclasses.replace(made.episode, turns=(turn,)))
  page = page_of(folder_of(tmp_path, line('mlvu', 1, scored=made)))
  assert re.findall(r'</span>([a-z-]+) · ', page) == ['frames', 'sub-agent', 'frames']


def test_published_numbers_stand_beside_ours_and_are_marked(tmp_path):
  page = page_of(
    folder_of(tmp_path, line('charades', 3), summary=SUMMARY),
    published={'charades': {'ParaVT-8B': 50.1}, 'mlvu': {'x': 9.9}},
  )
  assert '9.9 %' not in page
  assert re.search(
    r'<tr class="published"><th scope="row">ParaVT-8B</th><td><span '
    r'class="chip">published</span></td><td>50\.1 %</td>',
    page,
  )


def test_what_was_cut_off_says_so_and_stands_beside_nothing(tmp_path):
  summary = {'charades': {**SUMMARY['charades'], 'missing': 4}}
  page = page_of(
    folder_of(tmp_path, line('charades', 3), summary=summary),
    published={'charades': {'ParaVT-8B': 50.1}},
  )
  planned = SUMMARY['charades']['samples'] + 4
  assert (
    'charades is not complete: 4 of its samples are missing.' in page
    and f' of {planned:,}<' in page
    and 'ParaVT-8B' not in page
  )


def test_a_sample_counts_under_each_of_its_values(tmp_path):
  page = page_of(
    folder_of(
      tmp_path,
      line('lvbench', 1, fields={'type': 'reasoning; summary'}),
      line('lvbench', 2, fields={'type': 'summary'}),
    )
  )
  assert '>reasoning<' in page and '>summary<' in page and 'reasoning; summary</th>' not in page


def test_without_a_summary_the_numbers_come_from_the_samples_and_an_error_earns_nothing(tmp_path):
  rows = [
    line('mlvu', 1, score=1.0),
    line('mlvu', 2),
    line('mlvu', 3, score=None),
    line('mlvu', 4, k=64, score=1.0),
  ]
  page = page_of(folder_of(tmp_path, *rows))
  assert (
    'The numbers of mlvu come from the samples that are there: summary.json lacks them.' in page
  )
  row = re.search(r'<tr><th scope="row">mlvu</th>(.*?)</tr>', page, re.DOTALL)[1]
  assert re.findall(r'>([\d.]+ %)<', row) == ['50.0 %', '66.7 %'] and '[15.0, 85.0]' in row
  assert re.search(
    r'mlvu<small>by K</small>.*?>4</th><td>33\.3 %.*?3, 1 errors.*?>64</th><td>100\.0 %',
    page,
    re.DOTALL,
  )


@pytest.mark.parametrize('text', ['{', '[]', '{"mlvu": 3}'])
def test_a_summary_that_is_none_is_not_believed(tmp_path, text):
  (tmp_path / 'summary.json').write_text(text)
  assert 'come from the samples that are there' in page_of(folder_of(tmp_path, line('mlvu', 1)))


def test_calls_by_form_are_rates_and_those_that_did_not_run_are_counts_of_their_own(tmp_path):
  folder = folder_of(tmp_path, line('mlvu', 1))
  numbers = {
    'samples': 1,
    'score': 0.5,
    'interval': [0, 1],
    'calls_per_sample': 1.25,
    'calls_well_formed': 1.0,
    'calls_other': 0.5,
    'calls_failed_by_reason': {'bad_arguments': 3, 'parse_failure': 1200},
  }
  (folder / 'summary.json').write_text(json.dumps({'mlvu': numbers}))
  page = page_of(folder)
  assert cells_of(page, 'mlvu') == [
    [('metric', 'score'), ('score, all samples', '50.0 %[0.0, 100.0]'), ('0 to 100 %', '')]
    + [('score, answered', '–'), ('samples', '1'), ('errors', '0'), ('calls per sample', '1.25')],
    [
      ('well-formed, per sample', '1.00'),
      ('of another form, per sample', '0.50'),
      ('ran, per sample', '1.25'),
      ('did not run, in all samples', '1,200 parse failure, 3 bad arguments'),
    ],
  ]


def cells_of(page, benchmark):
  """[[(what, text) of each cell] of each row of that benchmark]."""
  rows = re.findall(rf'<tr><th scope="row">{benchmark}</th>(.*?)</tr>', page, re.DOTALL)
  cells = lambda row: re.findall(r'<td[^>]*data-name="([^"]*)"[^>]*>(.*?)</td>', row, re.DOTALL)
  return [[(what, re.sub('<[^>]+>', '', text).strip()) for what, text in cells(r)] for r in rows]


def test_a_rule_has_a_column_where_a_benchmark_has_one_and_the_others_a_dash(tmp_path):
  numbers = {'samples': 1, 'score': 0.5, 'interval': [0, 1], 'score_official': 0.25}
  folder = folder_of(tmp_path, summary={'mlvu': {**numbers, 'score_lmms_eval': 0.75}})
  assert '<th>official rule</th><th>lmms-eval rule</th><th>samples</th>' in page_of(folder)
  summary = {'mlvu': {**numbers, 'score_lmms_eval': 0.75}, 'mmvu': numbers}
  page = page_of(folder_of(tmp_path, summary=summary))
  assert [dict(row)['lmms-eval rule'] for row in cells_of(page, 'mlvu')] == ['75.0 %']
  assert [dict(row)['lmms-eval rule'] for row in cells_of(page, 'mmvu')] == ['–']
  assert '>lmms-eval rule<' not in page_of(folder_of(tmp_path, summary={'mmvu': numbers}))


def test_errors_are_counted_by_reason_above_the_samples(tmp_path):
  reasons = {'media_timeout': 2, 'call_timeout': 26}
  summary = {'mlvu': {'samples': 30, 'score': 0.1, 'errors': 28, 'reasons': reasons}}
  page = page_of(folder_of(tmp_path, summary=summary))
  assert 'Errors of mlvu: 26 call timeout, 2 media timeout.' in page
  failed = [line('mlvu', n, score=None) for n in (1, 2)]
  assert 'Errors of mlvu: 2 media timeout.' in page_of(folder_of(tmp_path, *failed, summary={}))
  assert 'Errors of' not in page_of(folder_of(tmp_path, line('mlvu', 1), summary={}))


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0, '0 ms'), (0.00002, 'under 0.1 ms'), (0.0005, '0.5 ms'), (0.0091, '9.1 ms')]
  + [(0.25, '250 ms'), (1.754, '1.75 s'), (1800, '1800.00 s')],
)
def test_how_long_a_stage_took_is_said_without_an_exponent(tmp_path, seconds, text):
  page = page_of(folder_of(tmp_path, line('mlvu', 1, seconds={'reward': seconds})))
  assert f'<span>time:</span><span>reward <b>{text}</b></span>' in page


def test_other_rules_broken_rows_and_the_rule_of_a_published_row_are_shown(tmp_path):
  summary = {
    'charades': {
      **SUMMARY['charades'],
      'score_lmms_eval': 0.47,
      'broken': {'rows': 2, 'gold nowhere': 2},
    }
  }
  folder = folder_of(tmp_path, line('charades', 1, lmms_eval={'accuracy': 1.0}), summary=summary)
  page = evaluation.write(
    folder,
    tmp_path / 'a.html',
    None,
    published={'charades': {'X': 50.1, 'Y': 49.3}},
    rules={'X': 'official'},
  ).read_text()
  assert (
    '<td data-name="lmms-eval rule">47.0 %</td>' in page and 'lmms-eval accuracy <b>1</b>' in page
  )
  assert 'by the rule: official' in page and 'by the rule: unknown' in page
  assert (
    'Of the rows of charades, 2 are broken as published (2 gold nowhere); they were asked as '
    'they are.' in page
  )
