"""The rows of a run: the synthetic world, or files of one's own; and what is left out of them."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from configs import para_grpo, sft
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.metrics import names
from paravt_jax.orchestrator import corpus, sft_data
from tests.recipes import typed


@pytest.fixture
def small(tmp_path, monkeypatch):
  """The tiny recipe over a world of 3 videos, in an empty working directory."""
  monkeypatch.chdir(tmp_path)
  config = para_grpo.get_config()
  config.world.corpus.update(
    {'videos': 2, 'heldout_videos': 1, 'rl_tasks': 4, 'heldout_tasks': 2, 'videos_per_archive': 2}
  )
  config.world.corpus.sft_rows.update(dict.fromkeys(config.world.corpus.sft_rows, 2))
  config.world.workers = 0
  return config


def test_the_corpus_is_written_once_and_its_tasks_point_at_real_videos(small, tmp_path, capsys):
  recipe = typed(small)
  files = corpus.rl_corpus(recipe)
  found = corpus.rl_questions(recipe, files, tmp_path)
  train, held = found.train, found.heldout
  assert (len(train), len(held), found.metrics()) == (4, 2, {})
  assert {pathlib.Path(task.video).is_file() for task in train + held} == {True}
  assert not {task.video for task in train} & {task.video for task in held}
  assert 'world: videos' in capsys.readouterr().err
  written = files.train[0].stat().st_mtime_ns
  assert corpus.rl_corpus(recipe).train[0].stat().st_mtime_ns == written
  assert (
    corpus.make_world(recipe.cold_start.world)[0].folder == files.train[0].parent
  )  # the cold start learns from the same world
  assert capsys.readouterr().err == ''  # nothing is written, so no bar shows


def test_sft_sources_take_their_weights_and_first_and_last_steps_from_the_recipe(small):
  recipe = typed(small.cold_start).replace(
    sources={'trace': (3.0, 100, None), 'lookup1': (0.5, 0, 200)}
  )
  found = {source.name: source for source in sft_data.sources(recipe)}
  assert found.keys() == set(small.world.corpus.sft_rows)
  of = lambda name: (
    found[name].weight,
    *(getattr(found[name], field) for field in list(type(found[name]).__dataclass_fields__)[3:5]),
  )
  assert (of('trace'), of('lookup1'), of('subagent')) == (
    (3.0, 100, None),
    (0.5, 0, 200),
    (1.0, 0, None),
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'train': ()}, r'--config.data.train is empty: wanted parquet files'),
    (
      {'train': ('none.parquet',)},
      r'--config.data.train: none.parquet does not exist; check the path',
    ),
  ],
)
def test_files_of_ones_own_must_exist(change, message):
  config = para_grpo.get_config('8b')
  config.data.update(change)
  with pytest.raises((ConfigError, DataError), match=message):
    corpus.rl_corpus(typed(config))
  config = sft.get_config('8b')
  config.data.update(change)
  with pytest.raises((ConfigError, DataError), match=message):
    sft_data.sources(typed(config))


@pytest.fixture
def own(tmp_path):
  """The 8B recipe over files of one's own: 6 training rows (3 of each of two sources), the last
  without its video, and 2 held out.
  """
  root = tmp_path / 'media' / 'selfqa'
  root.mkdir(parents=True)
  (root / 'a.mp4').touch()
  row = lambda i, source, video='a': {
    'prompt': [{'role': 'user', 'content': '<video>What?'}],
    'videos': [{'video': f'selfqa/{video}.mp4'}],
    'data_source': source,
    'extra_info': json.dumps({'answer': 'x', 'question_type': 'oe', 'id': f'{source}{i}'}),
  }
  rows = [row(i, source) for i in range(3) for source in ('hacs', 'ego')]
  rows[-1] = row(9, 'ego', 'absent')
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / 'train.parquet')
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist([row(i, 'held') for i in range(2)]), tmp_path / 'held.parquet'
  )
  config = para_grpo.get_config('8b')
  config.data.update(
    {
      'train': (str(tmp_path / 'train.parquet'),),
      'eval': (str(tmp_path / 'held.parquet'),),
      'media_root': str(tmp_path / 'media'),
      'skip_bad_rows': True,
      'max_bad_share': 0.2,
    }
  )
  (tmp_path / 'run').mkdir()
  return config


def questions(config, tmp_path):
  """The rows of a recipe whose run folder is tmp_path/run."""
  recipe = typed(config)
  return corpus.rl_questions(recipe, corpus.rl_corpus(recipe), tmp_path / 'run')


def test_rows_without_their_media_are_counted_in_a_line_and_listed_in_the_run_folder(
  own, tmp_path, capsys
):
  found = questions(own, tmp_path)
  assert ([task.id for task in found.train], len(found.heldout)) == (
    ['hacs0', 'ego0', 'hacs1', 'ego1', 'hacs2'],
    2,
  )
  assert found.metrics() == {'data/skipped/reason=missing_media': 1.0}
  assert names.lookup(*found.metrics()).unit == 'rows'
  said = capsys.readouterr().err
  assert (
    said == 'data: left out 1 broken rows (missing_media 1), listed in '
    f'{tmp_path}/run/skipped_rows.txt\n'
  )
  (line,) = (tmp_path / 'run' / 'skipped_rows.txt').read_text().splitlines()
  assert line.startswith(
    f'{tmp_path}/train.parquet:5\tmissing_media\tvideos: no file at '
    f'{tmp_path}/media/selfqa/absent.mp4'
  )


def test_above_the_share_the_run_is_refused_and_the_rows_are_listed_all_the_same(own, tmp_path):
  own.data.max_bad_share = 0.1
  with pytest.raises(
    DataError, match=r'1 of 6 rows are broken \(missing_media 1\), wanted a share of at most 0.1'
  ):
    questions(own, tmp_path)
  assert 'absent.mp4' in (tmp_path / 'run' / 'skipped_rows.txt').read_text()


def test_filters_choose_training_rows_and_leave_the_measure_alone(own, tmp_path):
  own.data.update(
    {'skip_bad_rows': False, 'sources': ('hacs',), 'max_rows': 2}
  )  # the broken row is not asked for
  own.eval.questions = 1
  (tmp_path / 'run' / 'skipped_rows.txt').write_text('of an earlier start')
  found = questions(own, tmp_path)
  assert len(found.train) == 2 and {task.source for task in found.train} == {'hacs'}
  assert [task.id for task in found.heldout] == ['held0'] and not (
    tmp_path / 'run' / 'skipped_rows.txt'
  ).exists()
  own.data.update({'sources': (), 'question_types': ('mcq',)})
  with pytest.raises(DataError, match=r"of 6, data.question_types=\('mcq',\) 6 were removed"):
    questions(own, tmp_path)


def test_without_held_out_files_there_is_no_evaluation_and_no_complaint(tmp_path):
  (tmp_path / 'a.parquet').touch()
  config = para_grpo.get_config('8b')
  config.data.train = (str(tmp_path / 'a.parquet'),)
  assert corpus.rl_corpus(typed(config)).heldout == ()
