"""The preview's command: any row of a recipe on a page, and one line for a row that there is
not.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import sft as recipe
from experiments import preview
from experiments.bench import media as bench_media
from paravt_jax.errors import ConfigError
from paravt_jax.testing import clips, tiny
from tests import patience, recipes

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """(recipe flags, folder): one source of three rows, the second without its video, the last one
  longer than a pack.
  """
  folder = tmp_path_factory.mktemp('corpus')
  tiny.build_tokenizer(folder / 'model')
  media = folder / 'media' / bench_media.BUCKET
  media.mkdir(parents=True)
  clips.make_clip(media / 'a.mp4', 4, 4, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 8)
  rows = [
    bench_media.conversation(f'{bench_media.BUCKET}/{name}.mp4', None, 2, None, tokens)
    for name, tokens in (('a', 9), ('b', 9), ('a', 900))
  ]
  bench_media.parquet(folder / 'paravt_sft_mine.parquet', rows)
  knobs = {
    'data.kind': 'files',
    'data.train': (str(folder / 'paravt_sft_mine.parquet'),),
    'data.media_root': str(folder / 'media'),
    'model.folder': str(folder / 'model'),
  }
  return knobs, folder


def recipe_of(knobs):
  return recipes.typed(
    recipe.get_config(), **{name.replace('.', '__'): value for name, value in knobs.items()}
  )


def test_rows_are_shown_as_they_were_asked_for_each_with_its_verdict(corpus, tmp_path):
  knobs, _ = corpus
  page = preview.page(
    recipe_of(knobs), ['mine:2', 'mine:0', 'mine:1'], tmp_path / 'p.html'
  ).read_text()
  assert [part.split('</h2>')[0] for part in page.split('<h2>')[1:]] == [
    'mine:2',
    'mine:0',
    'mine:1',
  ]
  verdicts = [part.split('">')[1].split('<')[0] for part in page.split('<li class="chip ')[1:]]
  assert verdicts == ['dropped: too_long', 'fits', 'dropped: media_missing']
  assert (
    page.count('alt="0.8 s') + page.count('alt="1.0 s') == 2 and 'paravt_sft_mine.parquet:0' in page
  )


def test_the_command_prints_the_page_s_path_and_nothing_else(corpus, tmp_path):
  knobs, _ = corpus
  flags = [f'--config.{knob}={value}' for knob, value in knobs.items()]
  command = [sys.executable, '-m', 'experiments.preview', '--config=configs/sft.py', '--row=mine:0']
  done = subprocess.run(
    [*command, f'--output={tmp_path / "p.html"}', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    timeout=patience.seconds(300),
  )
  assert (done.returncode, done.stdout) == (0, f'{tmp_path / "p.html"}\n'), done.stderr[-2000:]
  assert 'data:image/jpeg' in (tmp_path / 'p.html').read_text()


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([], '--row is empty: wanted SOURCE:NUMBER'),
    (['mine'], '--row=mine: wanted SOURCE:NUMBER, as in --row=trace:0'),
    (['mine:-1'], '--row=mine:-1: wanted SOURCE:NUMBER'),
    (['other:0'], "--row=other:0: there is no source 'other', only mine"),
    (['mine:0', 'mine:3'], '--row=mine:3: mine has 3 rows, wanted one from 0 to 2'),
  ],
)
def test_a_row_that_there_is_not_is_one_line_and_no_page(corpus, tmp_path, rows, message):
  with pytest.raises(ConfigError) as caught:
    preview.page(recipe_of(corpus[0]), rows, tmp_path / 'p.html')
  assert message in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['', 'taken'])
def test_an_output_that_is_no_file_is_one_line(corpus, tmp_path, name):
  (tmp_path / 'taken').mkdir()
  with pytest.raises(ConfigError, match=r'--output=.*: wanted a file to write'):
    preview.page(recipe_of(corpus[0]), ['mine:0'], pathlib.Path(tmp_path / name if name else ''))


def test_a_row_that_breaks_the_schema_is_shown_with_its_fault(corpus, tmp_path):
  knobs, folder = corpus
  rows = [[{'role': 'user', 'content': 'hm'}], [{'role': 'cook', 'content': 'x'}]]
  file = bench_media.parquet(tmp_path / 'paravt_sft_odd.parquet', rows)
  page = preview.page(
    recipe_of({**knobs, 'data.train': (str(file),)}), ['odd:1'], tmp_path / 'p.html'
  ).read_text()
  assert 'dropped: schema' in page and 'cook' in page
