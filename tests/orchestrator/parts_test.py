"""From a recipe to running parts, and the one clear error when a part is not there."""

import json
import pathlib

import pyarrow
import pyarrow.parquet
import pytest

from configs import para_grpo, sft
from experiments import runs, sft_data, wiring
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.metrics import names


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
  corpus = wiring.rl_corpus(small)
  found = wiring.rl_questions(small, corpus, tmp_path)
  train, held = found.train, found.heldout
  assert (len(train), len(held), found.metrics()) == (4, 2, {})
  assert {pathlib.Path(task.video).is_file() for task in train + held} == {True}
  assert not {task.video for task in train} & {task.video for task in held}
  written = corpus.train[0].stat().st_mtime_ns
  assert wiring.rl_corpus(small).train[0].stat().st_mtime_ns == written
  assert (
    wiring.make_world(small.cold_start)[0].folder == corpus.train[0].parent
  )  # the cold start learns from the same world
  assert 'world: videos' in capsys.readouterr().err


def test_sft_sources_take_their_weights_and_first_and_last_steps_from_the_recipe(small):
  small.cold_start.unlock()
  small.cold_start.sources = {'trace': (3.0, 100, None), 'lookup1': (0.5, 0, 200)}
  found = {source.name: source for source in sft_data.sources(small.cold_start)}
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
    wiring.rl_corpus(config)
  config = sft.get_config('8b')
  config.data.update(change)
  with pytest.raises((ConfigError, DataError), match=message):
    sft_data.sources(config)


def test_a_model_folder_that_is_missing_or_not_whole_is_one_clear_error(tmp_path):
  with pytest.raises(
    DataError,
    match=r'--config.model.folder: .*none does not exist; wanted a Hugging Face checkpoint folder',
  ):
    wiring.load_model(tmp_path / 'none')
  with pytest.raises(DataError, match=r'config\.json'):
    wiring.load_model(tmp_path)


def test_the_tiny_model_is_made_once_per_seed(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folder = wiring.tiny_model(0)
  stamp = (folder / 'model.safetensors').stat().st_mtime_ns
  assert (
    wiring.tiny_model(0) == folder and (folder / 'model.safetensors').stat().st_mtime_ns == stamp
  )


def test_a_mesh_takes_the_devices_it_needs_and_says_when_there_are_too_few():
  config = para_grpo.get_config()
  assert wiring.make_mesh(config).devices.size == 1
  config.mesh.update({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert wiring.make_mesh(config).devices.size == 8
  config.mesh.fsdp = 8
  with pytest.raises(
    ConfigError,
    match=r'data 2 x fsdp 8 x tensor 2 = 32 devices, but this process has 8 \(cpu\); lower '
    r'config.mesh',
  ):
    wiring.make_mesh(config)


def test_freeze_vision_keeps_the_tower_out_of_the_optimizer(tmp_path):
  from paravt_jax.testing import tiny

  config, model_config = para_grpo.get_config(), tiny.tiny_config(tiny.make_tokenizer())
  assert wiring.make_optimizer(config, model_config).frozen == ('visual',)
  config.train.freeze_vision = False
  assert wiring.make_optimizer(config, model_config).frozen == ()


def test_wandb_is_asked_for_by_naming_a_project(tmp_path):
  config = para_grpo.get_config()
  assert wiring.wandb_options(config, tmp_path) is None
  config.run.wandb_project, config.run.wandb_mode = 'videos', 'offline'
  found = wiring.wandb_options(config, tmp_path)
  assert (found['project'], found['entity'], found['mode'], found['dir']) == (
    'videos',
    None,
    'offline',
    str(tmp_path),
  )
  assert found['config']['agent']['max_turns'] == 3


def test_the_servers_key_is_neither_written_to_the_run_folder_nor_sent_to_wandb(tmp_path):
  config = para_grpo.get_config()
  config.server.api_key, config.run.wandb_project = 'open sesame', 'videos'
  runs.RunFolder.named(config, folder=str(tmp_path / 'run'), default='')
  assert 'open sesame' not in (tmp_path / 'run' / 'config.json').read_text()
  assert 'open sesame' not in str(wiring.wandb_options(config, tmp_path))
  assert config.server.api_key == 'open sesame'


def test_a_servers_threads_are_bounded_only_when_the_recipe_says_so():
  assert 'intra_op_parallelism_threads=2' in wiring.child_environment(2)['XLA_FLAGS']
  assert wiring.child_environment(2)['OMP_NUM_THREADS'] == '2'
  assert 'intra_op_parallelism_threads' not in wiring.child_environment(0).get('XLA_FLAGS', '')


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


def test_rows_without_their_media_are_counted_in_a_line_and_listed_in_the_run_folder(
  own, tmp_path, capsys
):
  found = wiring.rl_questions(own, wiring.rl_corpus(own), tmp_path / 'run')
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
    wiring.rl_questions(own, wiring.rl_corpus(own), tmp_path / 'run')
  assert 'absent.mp4' in (tmp_path / 'run' / 'skipped_rows.txt').read_text()


def test_filters_choose_training_rows_and_leave_the_measure_alone(own, tmp_path):
  own.data.update(
    {'skip_bad_rows': False, 'sources': ('hacs',), 'max_rows': 2}
  )  # the broken row is not asked for
  own.eval.questions = 1
  (tmp_path / 'run' / 'skipped_rows.txt').write_text('of an earlier start')
  found = wiring.rl_questions(own, wiring.rl_corpus(own), tmp_path / 'run')
  assert len(found.train) == 2 and {task.source for task in found.train} == {'hacs'}
  assert [task.id for task in found.heldout] == ['held0'] and not (
    tmp_path / 'run' / 'skipped_rows.txt'
  ).exists()
  own.data.update({'sources': (), 'question_types': ('mcq',)})
  with pytest.raises(DataError, match=r"of 6, data.question_types=\('mcq',\) 6 were removed"):
    wiring.rl_questions(own, wiring.rl_corpus(own), tmp_path / 'run')


def test_without_held_out_files_there_is_no_evaluation_and_no_complaint(tmp_path):
  (tmp_path / 'a.parquet').touch()
  config = para_grpo.get_config('8b')
  config.data.train = (str(tmp_path / 'a.parquet'),)
  corpus = wiring.rl_corpus(config)
  assert corpus.heldout == ()
