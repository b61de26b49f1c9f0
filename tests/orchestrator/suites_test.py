"""The questions of an evaluation: what is read and what is missing, shards and their order, the line of
a finished sample.
"""

import dataclasses
import json
import shutil

import pytest

from configs import eval as recipe
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.eval import protocols
from paravt_jax.eval.run import Record
from paravt_jax.eval.sample import Sample
from paravt_jax.orchestrator import suites
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.types import Scored, Task
from tests import recipes
from tests.eval import fixtures
from tests.eval.stage import perform
from tests.experiments import small_job


def sample(name, video):
  return Sample(
    'mlvu', Task(name, (video,), f'{name}?', 'mcq', 'A', ('x', 'y')), {'task_type': 'count'}
  )


def suite(samples, budgets=(64,)):
  return suites.Suite('mlvu', samples, budgets, 'accuracy', None, None, None, '')


# What is read


@pytest.mark.parametrize('names', ['zebra', '', 'mlvu,mlvu'])
def test_unknown_or_repeated_benchmarks_are_refused_with_the_known_ones(names):
  config = recipe.get_config()
  config.benchmarks = names
  with pytest.raises(
    ConfigError, match=r'wanted different names, separated by commas, of videomme, .*, world'
  ):
    suites.suites(recipes.typed(config))


def test_a_benchmark_that_is_misspelt_is_refused_with_the_nearest_name():
  config = recipe.get_config()
  config.benchmarks = 'videome,mlvu,charade'
  with pytest.raises(ConfigError) as caught:
    suites.suites(recipes.typed(config))
  assert str(caught.value).startswith(
    "--config.benchmarks=videome,mlvu,charade: 'videome': did you mean videomme? "
    "'charade': did you mean charades? wanted different names"
  )


def test_one_message_names_all_that_is_missing(tmp_path):
  config = recipe.get_config()
  config.benchmarks, config.data.root, config.data.cache = (
    'mlvu, charades',
    str(tmp_path),
    str(tmp_path / 'cache'),
  )
  config.paths.charades = str(tmp_path / 'elsewhere')
  with pytest.raises(DataError) as caught:
    suites.suites(recipes.typed(config))
  assert (
    'sy1998/MLVU_dev' in str(caught.value)
    and 'elsewhere' in str(caught.value)
    and 'configs/eval.py' in str(caught.value)
  )
  first, *others = str(caught.value).splitlines()
  assert first.endswith(':') and [line.split(':')[0] for line in others] == [
    '  mlvu',
    '  charades',
  ]
  assert suites.also_refused(recipes.typed(config)) == str(caught.value)


def test_subtitle_files_that_were_guessed_or_gave_nothing_are_told_at_the_start(tmp_path, capsys):
  root = fixtures.snapshot(tmp_path, 'videomme_wsub')
  (root / 'subtitle').mkdir()
  (root / 'subtitle/fFjv93ACGo8.srt').write_bytes(b'no cue')
  (root / 'subtitle/N1cdUjctpG8.srt').write_bytes('00:01,0 --> 00:02,0\ncafé'.encode('cp1252'))
  config = recipe.get_config()
  config.benchmarks, config.paths.videomme_wsub, config.data.cache = (
    'videomme_wsub',
    str(root),
    str(tmp_path / 'cache'),
  )
  assert len(suites.suites(recipes.typed(config))[0].samples) == 3
  assert (
    'videomme_wsub: subtitle files: 1 are no clean Unicode and were read as cp1252 (1); 1 '
    'give no cue, and their questions are '
    'errors\n'
  ) in capsys.readouterr().err


def test_some_missing_videos_end_the_run_unless_their_questions_may_be_errors(tmp_path, capsys):
  root = fixtures.snapshot(tmp_path, 'mmvu')
  shutil.rmtree(root / 'videos/Art')
  config = recipe.get_config()
  config.benchmarks, config.paths.mmvu, config.data.cache = (
    'mmvu',
    str(root),
    str(tmp_path / 'cache'),
  )
  with pytest.raises(
    DataError, match=r'(?s)--config.eval.skip_missing_videos=True.*1 of 2 videos missing'
  ):
    suites.suites(recipes.typed(config))
  config.eval.skip_missing_videos = True
  assert len(suites.suites(recipes.typed(config))[0].samples) == 2
  assert '1 of 2 videos missing' in capsys.readouterr().err
  shutil.rmtree(root / 'videos')
  with pytest.raises(DataError, match='2 of 2 videos missing'):  # there is nothing to continue with
    suites.suites(recipes.typed(config))


@pytest.mark.parametrize(
  'folder',
  [
    'lmms-lab/Video-MME',
    'lmms-eval/Video-MME',
    'datasets--lmms-lab--Video-MME',
    'datasets--lmms-eval--Video-MME',
  ],
)
def test_a_benchmark_is_found_under_each_of_its_names_on_the_hub(tmp_path, folder):
  config = recipe.get_config()
  config.data.root = str(tmp_path)
  assert (
    suites.folder(recipes.typed(config), 'videomme') == tmp_path / 'lmms-lab/Video-MME'
  )  # where it is expected
  (tmp_path / folder).mkdir(parents=True)
  assert suites.folder(recipes.typed(config), 'videomme') == tmp_path / folder


# Shards and order


def test_samples_of_a_video_stand_together_and_go_to_one_shard():
  some = suites.by_video(
    [sample('a1', 'a'), sample('b1', 'b'), sample('a2', 'a'), sample('c1', 'c')]
  )
  assert [one.task.id for one in some] == ['a1', 'a2', 'b1', 'c1']
  asked = lambda *shard: [(one.task.id, k) for one, k in suite(some, (4, 16)).questions(shard)]
  assert asked(1, 2) == [('a1', 4), ('a2', 4), ('a1', 16), ('a2', 16), ('c1', 4), ('c1', 16)]
  assert asked(2, 2) == [('b1', 4), ('b1', 16)]
  assert sorted(asked(1, 1)) == sorted(asked(1, 2) + asked(2, 2))


def test_shards_of_one_evaluation_have_one_fingerprint_and_other_questions_another():
  some = [sample('a', 'v'), sample('b', 'w')]
  about = suite(some).about((1, 1))
  assert suite(some).about((2, 2))['parts'] == about['parts'] and suite(some).about((2, 2))[
    'keys'
  ] == ['mlvu/b/k=64']
  changed = dataclasses.replace(some[0], task=dataclasses.replace(some[0].task, answer='B'))
  moved = dataclasses.replace(
    some[0], task=dataclasses.replace(some[0].task, videos=('/elsewhere/v',))
  )
  assert suite([changed, some[1]]).about((1, 1))['parts'] != about['parts']
  assert (
    suite([moved, some[1]]).about((1, 1))['parts'] == about['parts']
  )  # a snapshot may lie anywhere


def test_worlds_that_differ_in_their_pictures_alone_are_told_apart(tmp_path, monkeypatch):
  """Their questions are the same, word for word."""
  monkeypatch.chdir(tmp_path)
  config = recipe.get_config()
  config.update_from_flattened_dict(
    {**small_job.WORLD, 'world.corpus.videos': 2, 'world.workers': 1}
  )
  (plain,) = suites.suites(recipes.typed(config))
  config.world.scene.noise += 1.0
  (noisy,) = suites.suites(recipes.typed(config))
  parts, others = plain.about((1, 1))['parts'], noisy.about((1, 1))['parts']
  assert parts['questions'] == others['questions'] and parts['rule'] != others['rule']


# Finished samples


def test_an_error_keeps_its_reason_and_has_no_score():
  record = Record(
    sample('a', 'v').task, 64, None, 'media_missing', 'v: no such file', {'wall': 0.25}
  )
  got = suites.outcome(suite([]), sample('a', 'v'), record, protocols.PROTOCOLS['tools'])
  assert (got.key, got.status, got.reason, got.error) == (
    'mlvu/a/k=64',
    'error',
    'media_missing',
    'v: no such file',
  )
  assert (got.score, got.official, got.episode, got.gold) == (None, None, None, 'A')
  assert got.question == 'a?'
  assert got.fields == {'question_type': 'mcq', 'task_type': 'count'} and got.seconds == {
    'wall': 0.25
  }


def said(suite, protocol, text, number=0):
  """The line of the suite's n-th sample after an episode whose only turn says `text`."""
  one = suite.samples[number]
  episode, _, _ = perform(
    protocols.PROTOCOLS[protocol], text, task=dataclasses.replace(one.task, videos=('a.mp4',))
  )
  return suites.outcome(
    suite,
    one,
    Record(one.task, 64, Scored(episode, 0.0, {}), seconds={}),
    protocols.PROTOCOLS[protocol],
  )


@pytest.mark.parametrize(
  ('protocol', 'text', 'answer', 'score', 'form', 'official'),
  [
    (
      'videozoomer',
      r'<think>It grows.</think><answer>\boxed{B}</answer>',
      'B',
      1.0,
      1.0,
      {'accuracy': 0.0, 'format': 1.0},
    ),
    (
      'videozoomer',
      r'It grows. <answer>\boxed{C}</answer>',
      'C',
      0.0,
      0.0,
      {'accuracy': 0.0, 'format': 0.0},
    ),
    ('direct', 'B', 'B', 1.0, 0.0, {'accuracy': 1.0, 'format': 0.0}),
    ('sage', '<json>{"final_answer": "B"}</json>', 'B', 1.0, 0.0, {'accuracy': 0.0, 'format': 0.0}),
    (
      'longvt',
      '<think>It grows.</think>\n<answer>B</answer>',
      'B',
      1.0,
      1.0,
      {'accuracy': 1.0, 'format': 1.0},
    ),
  ],
)
def test_a_protocol_reads_the_answer_but_formats_and_published_rules_see_what_was_written(
  tmp_path, protocol, text, answer, score, form, official
):
  config = recipe.get_config()
  config.benchmarks, config.data.cache = 'longvideo_reason', str(tmp_path / 'cache')
  config.paths.longvideo_reason = str(fixtures.snapshot(tmp_path, 'longvideo_reason'))
  (suite,) = suites.suites(recipes.typed(config))
  got = said(suite, protocol, text)
  assert (got.answer, got.score, got.metrics, got.official) == (
    answer,
    score,
    {'accuracy': score, 'format': form},
    official,
  )


def test_the_world_is_scored_by_the_answer_that_the_protocol_reads():
  task = Task('w', ('a.mp4',), 'What appears at 41?', 'oe', 'red')
  options = dataclasses.replace(PUBLISHED, open_ended='exact')
  suite = suites.Suite(
    'world',
    [Sample('world', task, {})],
    (64,),
    'accuracy',
    None,
    suites.accuracy_metrics(options),
    None,
    '',
  )
  assert [
    said(suite, name, text).score
    for name, text in (
      ('direct', 'red'),
      ('direct', 'blue'),
      ('think', 'red'),
      ('think', '<think>hm</think>red'),
    )
  ] == [1.0, 0.0, 0.0, 1.0]


def test_broken_rows_are_told_at_start_and_both_their_golds_stand_in_the_line(tmp_path, capsys):
  row = {
    'video_name': 'a.mp4',
    'question': 'Which?',
    'candidates': ['x', 'y', 'y'],
    'answer': 'y',
    'task_type': 'order',
  }
  (tmp_path / 'test.json').write_text(json.dumps([row]))
  (tmp_path / 'a.mp4').write_bytes(b'')
  config = recipe.get_config()
  config.benchmarks, config.data.cache, config.paths.mlvu = (
    'mlvu',
    str(tmp_path / 'cache'),
    str(tmp_path),
  )
  (suite,) = suites.suites(recipes.typed(config))
  assert capsys.readouterr().err == (
    'mlvu: of 1 rows, 1 row is broken as published: 1 gold twice; they are asked as they are '
    'and marked\n'
  )
  got = said(suite, 'tools', '<think>long enough</think>\n<answer>C</answer>')
  assert (got.gold, got.score, got.official, got.lmms_eval) == (
    'B or C',
    1.0,
    {'accuracy': 0.0},
    {'accuracy': 1.0},
  )
