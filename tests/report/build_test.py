"""The page: whole, without network, and still a page when the run is not."""

import html.parser
import json
import re
import shutil
from pathlib import Path

import pytest

from paravt_jax.errors import DataError, MediaError, ParavtError
from paravt_jax.report.build import build
from tests.report import made_run

_VOID = {'meta', 'img', 'br', 'input', 'link'}


class _Balance(html.parser.HTMLParser):
  """Counts tags that are closed in the order in which they were opened."""

  def __init__(self):
    super().__init__()
    self.open: list[str] = []

  def handle_starttag(self, tag, attrs):
    if tag not in _VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    assert tag in {'line', 'rect', 'polyline', 'polygon', 'path'}, f'<{tag}/> is not closed in HTML'

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
  return made_run.write_run(
    tmp_path_factory.mktemp('runs') / 'made', questions=12, steps=30, seed=0
  )


@pytest.fixture(scope='module')
def page(folder) -> str:
  return build(folder, folder / 'report.html', made_run.frames, made_run.decode).read_text()


def test_the_page_is_well_formed_and_needs_no_network(page):
  parser = _Balance()
  parser.feed(page)
  assert parser.open == []
  assert not re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(?:https?:)?//', page)
  assert '@import' not in page and '<link' not in page


def test_it_opens_with_the_verdict_the_table_and_a_panel_per_budget(page):
  assert '<strong>The agent learned to crop, and it pays.</strong>' in page
  assert re.search(r'Accuracy</th><td class="">\d\d\.\d %<small>\[', page)
  assert re.findall(r'<h3>K = (\d+)<small>12 questions', page) == ['4', '16', '64']
  assert 'This page is not complete' not in page


def test_it_draws_every_curve_that_the_run_logged_and_names_the_others(page):
  titles = re.findall(r'class="card plot"><h3>([^<]+)<small>', page)
  assert titles == [
    'Reward',
    'Format terms',
    'Format compliance',
    'Accuracy by K',
    'Time per stage',
    'Calls',
    'Log-prob gap, learner to server',
    'Entropy',
    'KL to the reference',
    'Groups without signal',
    'Clipped and dropped tokens',
    'Gradient norm',
    'Lengths',
  ]
  assert 'Not logged in this run: Staleness, Videos in quarantine.' in page


def test_episodes_stand_side_by_side_with_frames_crops_and_reward_terms(page):
  assert 'solved by cropping' in page and 'before training' in page and 'after training' in page
  assert page.count('data:image/jpeg;base64,') > 20
  assert re.search(
    r'class="bar" style="left:[\d.]+%;width:[\d.]+%" title="crop 1: [\d.]+ s – [\d.]+ s, executed"',
    page,
  )
  assert re.search(r'reward <b>2\.80</b></span><span>accuracy <b>1\.00</b>', page)
  assert (
    '&lt;tool_call&gt;' in page and '<tool_call>' not in page
  )  # what the policy wrote is text, never markup


def test_the_recipe_and_the_code_state_are_there(page):
  assert '<span>rl.group_size</span> 8' in page
  assert 'commit <b>0123456789ab</b>' in page


def test_what_the_policy_writes_cannot_become_markup(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'run')
  path = copy / 'eval_after' / 'results.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  for episode in (line['episode'] for line in lines if line['episode'] is not None):
    episode['turns'][0]['text'] = '<script>alert(1)</script>'
    episode['task']['question'] = '"><img src=x onerror=alert(1)>'
  path.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  page = build(copy, tmp_path / 'x.html', None, None).read_text()
  assert '<script>alert' not in page and '<img src=x' not in page


@pytest.mark.parametrize(
  'kept',
  [
    [],
    ['config.json'],
    ['metrics.jsonl'],
    ['episodes'],
    ['summary.json'],
    ['eval_before'],
    ['episodes', 'eval_before', 'metrics.jsonl'],
  ],
)
def test_an_interrupted_run_still_gives_a_page_that_says_so(folder, tmp_path, kept):
  run = tmp_path / 'run'
  run.mkdir()
  for name in kept:
    if (folder / name).is_dir():
      shutil.copytree(folder / name, run / name)
    else:
      shutil.copy(folder / name, run / name)
  page = build(run, tmp_path / 'report.html', made_run.frames, made_run.decode).read_text()
  parser = _Balance()
  parser.feed(page)
  assert parser.open == []
  assert 'This page is not complete' in page


def test_a_run_of_one_step_says_that_curves_need_two(tmp_path):
  made_run.write_metrics(tmp_path / 'run', 1, 0)
  page = build(tmp_path / 'run', tmp_path / 'r.html').read_text()
  assert 'a single step: curves need two' in page and 'No curves: fewer than two steps' in page


def test_videos_that_are_gone_leave_times_and_a_note(folder, tmp_path):
  def gone(video, seconds):
    raise MediaError(f'{video}: no such file', 'missing')

  page = build(folder, tmp_path / 'r.html', gone, None).read_text()
  assert 'no frames: videos/' in page and 'data:image' not in page


def test_a_missing_folder_is_refused_and_nothing_written(tmp_path):
  with pytest.raises(DataError, match='no such folder'):
    build(tmp_path / 'nowhere', tmp_path / 'r.html')
  assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_one_clear_error(folder, tmp_path):
  (tmp_path / 'r.html').mkdir()
  with pytest.raises(ParavtError, match=r'r.html: could not write the report'):
    build(folder, tmp_path / 'r.html')
  assert [path.name for path in tmp_path.iterdir()] == ['r.html']


def test_the_page_says_how_the_run_went_and_lists_its_alarms(folder, page, tmp_path):
  assert '<p class="account">30 steps took 14.2 minutes of the 23.3 that' in page
  assert 'class="notes alarms"' not in page
  copy = shutil.copytree(folder, tmp_path / 'run')
  records = [json.loads(line) for line in (copy / 'metrics.jsonl').read_text().splitlines()]
  for record in records[4:7]:
    record['watch/on/alarm=calls'] = 1.0
  records[9]['watch/on/alarm=<b>'] = 1.0  # what a file contains is text, never markup
  (copy / 'metrics.jsonl').write_text(''.join(json.dumps(one) + '\n' for one in records))
  alarmed = build(copy, copy / 'report.html').read_text()
  assert 'class="notes alarms"' in alarmed
  assert '<li>calls (too few calls per episode) at steps 4–6</li>' in alarmed
  assert '<li>&lt;b&gt; (its condition held) at step 9</li>' in alarmed
