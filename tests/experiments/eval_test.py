"""The evaluation's door and its two commands on finished results: what is refused, what is found,
what is written.
"""

import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import eval as recipe
from configs import para_grpo
from experiments import eval as entry
from experiments import eval_data, eval_models, eval_tools
from paravt_jax.errors import ConfigError, DataError, RolloutError
from paravt_jax.eval import benchmarks, protocols, results
from paravt_jax.eval.run import Record
from paravt_jax.eval.sample import Sample
from paravt_jax.rewards.total import PUBLISHED
from paravt_jax.testing import tiny
from paravt_jax.types import Scored, Task
from tests import patience
from tests.eval import fixtures
from tests.eval.results_test import outcome, plan
from tests.eval.stage import perform
from tests.experiments import small_job
from tests.longvideo_reason.chat_server import ChatServer, Raw

FILES = {
  'config.json': '{}',
  'model.safetensors': 'weights',
  'tokenizer.json': '{}',
  'README.md': 'about',
}


def sample(name, video):
  return Sample(
    'mlvu', Task(name, (video,), f'{name}?', 'mcq', 'A', ('x', 'y')), {'task_type': 'count'}
  )


def suite(samples, budgets=(64,)):
  return eval_data.Suite('mlvu', samples, budgets, 'accuracy', None, None, None, '')


def model_folder(folder, **changed):
  folder.mkdir(parents=True)
  for name, text in {**FILES, **changed}.items():
    (folder / name).write_text(text)
  return folder


def named(**section):
  config = recipe.get_config()
  config.model.update(section)
  return config


# The recipe


@pytest.mark.parametrize('scale', ['tiny', '2b', '8b'])
def test_the_recipe_is_the_trained_agent_decoding_greedily(scale):
  ours, trained = recipe.get_config(scale), para_grpo.get_config(scale).unlock()
  if scale == 'tiny':  # benchmarks hold longer texts than the world
    trained.sampling.context = 4096
    trained.server.embedded.lanes = (*trained.server.embedded.lanes, (4096, 8))
  assert ours.sampling.to_dict() == {**trained.sampling.to_dict(), 'temperature': 0.0}
  for section in ('agent', 'subagent', 'reward', 'video', 'server'):
    assert ours[section].to_dict() == trained[section].to_dict()
  assert ours.is_locked and set(ours.paths) == set(benchmarks.BENCHMARKS)
  if scale != 'tiny':
    with pytest.raises(
      ConfigError,
      match=r"server.urls=\(\): wanted a server's address, or server.kind=embedded or sglang",
    ):
      entry.check(ours)
    ours.server.urls = ('http://h:1',)
  entry.check(ours)


def test_the_published_protocol_is_64_frames_three_rounds_of_five_calls_and_2048_tokens():
  config = recipe.get_config('8b')
  assert (config.eval.budgets, config.sampling.temperature) == ((64,), 0.0)
  assert (config.agent.max_turns, config.agent.max_parallel, config.agent.max_new_tokens) == (
    3,
    5,
    2048,
  )


def test_the_tiny_world_is_asked_as_training_asks_it():
  ours, trained = recipe.get_config(), para_grpo.get_config()
  assert ours.world.to_dict() == trained.world.to_dict() and ours.seed == trained.seed
  assert (ours.eval.world_budgets, ours.eval.world_questions) == (
    trained.eval.budgets,
    trained.eval.questions,
  )
  assert ours.eval.grounding_threshold == trained.eval.grounding_threshold


@pytest.mark.parametrize(
  ('knob', 'value', 'message'),
  [
    ('eval.budgets', (0,), 'eval.budgets=(0,): wanted positive frame budgets'),
    ('eval.world_budgets', (), 'eval.world_budgets=(): wanted positive frame budgets'),
    ('eval.budgets', (4, 16, 4), 'wanted positive frame budgets, each once'),
    ('eval.limit', -1, 'eval.limit=-1: wanted at least 0'),
    ('eval.concurrent', 0, 'eval.concurrent=0: wanted at least 1'),
    ('eval.max_error_rate', 1.5, 'eval.max_error_rate=1.5: wanted a share, 0 to 1'),
    ('sampling.temperature', -1.0, 'sampling.temperature=-1.0: wanted at least 0'),
    ('shard', '4/3', "shard='4/3': wanted its number and how many there are, such as 3/16"),
    ('shard', 'half', "shard='half': wanted its number"),
    ('server.kind', 'embeded', "server.kind='embeded': wanted one of url, embedded, sglang"),
    ('eval.canary_tokens', -1, 'eval.canary_tokens=-1: wanted at least 0'),
    ('eval.report_pictures', -1, 'eval.report_pictures=-1: wanted at least 0'),
    ('chat.more', 'nonsense', "chat.more='nonsense': is no JSON"),
    ('chat.quality', 500, 'chat.quality=500: wanted 0 (PNG) to 95'),
    ('chat_server.retries', -1, 'chat_server.retries=-1: wanted at least 0'),
    ('chat_server.concurrency', 0, 'chat_server.concurrency=0: wanted at least 1'),
    ('chat_server.timeout_s', 0.0, 'chat_server.timeout_s=0.0: wanted above 0'),
  ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_made(knob, value, message):
  config = recipe.get_config()
  config.update_from_flattened_dict(
    {knob: value, **({'model.url': 'http://h/v1'} if 'chat' in knob else {})}
  )
  with pytest.raises(ConfigError) as caught:
    entry.check(config)
  assert message in str(caught.value)


def test_a_recipe_of_training_is_refused():
  with pytest.raises(ConfigError, match=r"no 'protocol', .* such as configs/eval.py"):
    entry.check(para_grpo.get_config())


@pytest.mark.parametrize('names', ['videome', '', 'mlvu,mlvu'])
def test_unknown_or_repeated_benchmarks_are_refused_with_the_known_ones(names):
  config = recipe.get_config()
  config.benchmarks = names
  with pytest.raises(
    ConfigError, match=r'wanted different names, separated by commas, of videomme, .*, world'
  ):
    eval_data.suites(config)


def test_one_message_names_all_that_is_missing(tmp_path):
  config = recipe.get_config()
  config.benchmarks, config.data.root, config.data.cache = (
    'mlvu, charades',
    str(tmp_path),
    str(tmp_path / 'cache'),
  )
  config.paths.charades = str(tmp_path / 'elsewhere')
  with pytest.raises(DataError) as caught:
    eval_data.suites(config)
  assert (
    'sy1998/MLVU_dev' in str(caught.value)
    and 'elsewhere' in str(caught.value)
    and 'configs/eval.py' in str(caught.value)
  )


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
  assert len(eval_data.suites(config)[0].samples) == 3
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
    DataError, match=r'1 of 2 videos missing .*--config.eval.skip_missing_videos=True'
  ):
    eval_data.suites(config)
  config.eval.skip_missing_videos = True
  assert len(eval_data.suites(config)[0].samples) == 2
  assert '1 of 2 videos missing' in capsys.readouterr().err
  shutil.rmtree(root / 'videos')
  with pytest.raises(DataError, match='2 of 2 videos missing'):  # there is nothing to go on with
    eval_data.suites(config)


# Shards and order


def test_samples_of_a_video_stand_together_and_go_to_one_shard():
  some = eval_data.by_video(
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


def test_an_error_keeps_its_reason_and_has_no_score():
  record = Record(
    sample('a', 'v').task, 64, None, 'media_missing', 'v: no such file', {'wall': 0.25}
  )
  got = eval_data.outcome(suite([]), sample('a', 'v'), record, protocols.PROTOCOLS['tools'])
  assert (got.key, got.status, got.reason, got.error) == (
    'mlvu/a/k=64',
    'error',
    'media_missing',
    'v: no such file',
  )
  assert (got.score, got.official, got.episode, got.gold) == (None, None, None, 'A')
  assert got.fields == {'question_type': 'mcq', 'task_type': 'count'} and got.seconds == {
    'wall': 0.25
  }


def said(suite, protocol, text, number=0):
  """The line of the suite's n-th sample after an episode whose only turn says `text`."""
  one = suite.samples[number]
  episode, _, _ = perform(
    protocols.PROTOCOLS[protocol], text, task=dataclasses.replace(one.task, videos=('a.mp4',))
  )
  return eval_data.outcome(
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
  (suite,) = eval_data.suites(config)
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
  suite = eval_data.Suite(
    'world',
    [Sample('world', task, {})],
    (64,),
    'accuracy',
    None,
    eval_data.world_metrics(options),
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


# Models


def test_a_model_is_named_by_its_files_wherever_they_lie(tmp_path):
  one = eval_models.identify(named(folder=str(model_folder(tmp_path / 'run' / 'hf'))))
  same = eval_models.identify(named(run=str(tmp_path / 'run')))
  other = eval_models.identify(
    named(folder=str(model_folder(tmp_path / 'b', **{'model.safetensors': 'other'})))
  )
  reworded = eval_models.identify(
    named(folder=str(model_folder(tmp_path / 'c', **{'README.md': 'more'})))
  )
  assert (one.name, other.name) == ('run', 'b') and one == same
  assert one.parts == reworded.parts != other.parts


@pytest.mark.parametrize(
  ('section', 'message'),
  [
    ({}, 'got nothing, wanted one of model.folder=DIR'),
    ({'folder': 'a', 'url': 'b'}, 'got folder, url, wanted one of'),
    ({'url': 'http://x/v1'}, 'wanted model.name and model.tokenizer'),
  ],
)
def test_not_exactly_one_model_is_refused(section, message):
  with pytest.raises(ConfigError, match=message):
    eval_models.identify(named(**section))


def test_a_models_folder_may_be_named_in_the_short_way(tmp_path):
  command = [
    sys.executable,
    '-m',
    'experiments.eval',
    f'--config={small_job.ROOT}/configs/eval.py',
    '--config.model=nowhere',
  ]
  done = subprocess.run(
    command,
    cwd=tmp_path,
    env=small_job.environment(),
    capture_output=True,
    text=True,
    timeout=patience.seconds(300),
  )
  assert (done.returncode, done.stdout) == (2, '') and list(tmp_path.iterdir()) == []
  assert done.stderr.splitlines()[-1].startswith(
    'error: --config.model.folder: nowhere/config.json does not exist'
  )


@pytest.mark.parametrize(
  ('scale', 'width', 'message'),
  [
    (
      'tiny',
      4096,
      r'its width of 4096 is not of scale :tiny; wanted --config=configs/eval.py:8b \(or :2b\)',
    ),
    ('8b', 0, r'its width of 128 is not of scale :8b; wanted --config=configs/eval.py'),
  ],
)
def test_a_model_of_another_scale_is_refused_before_it_sees_frames_of_the_wrong_size(
  tmp_path, scale, width, message
):
  tiny.build_model_folder(tmp_path, 0)
  if width:
    said = json.loads((tmp_path / 'config.json').read_text())
    said['text_config']['hidden_size'] = said['vision_config']['out_hidden_size'] = width
    (tmp_path / 'config.json').write_text(json.dumps(said))
  config = recipe.get_config(scale)
  config.model.folder, config.server.urls = str(tmp_path), ('http://h:1',)
  with pytest.raises(ConfigError, match=message):
    entry.main(config)


def test_folders_that_hold_no_model_are_refused(tmp_path):
  with pytest.raises(DataError, match=r'--config.model.folder: .*config.json does not exist'):
    eval_models.identify(named(folder=str(tmp_path)))
  with pytest.raises(
    DataError, match=r'--config.model.run: .* holds neither hf/ nor config.json with a record'
  ):
    eval_models.identify(named(run=str(tmp_path)))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(DataError, match=r'holds no \*.safetensors'):
    eval_models.identify(named(folder=str(tmp_path)))
  with pytest.raises(DataError, match=r'--config.model.tokenizer: .*tokenizer.json does not exist'):
    eval_models.identify(named(url='http://x/v1', name='m', tokenizer=str(tmp_path)))


# Knobs that results are not a function of, by prefix; or that a plan has elsewhere: in the model's
# files, the questions and their rule.
FREE = (
  'name',
  'scale',
  'benchmarks',
  'run.',
  'shard',
  'data.',
  'paths.',
  'client.',
  'chat_server.',
  'train.',
  'video.workers',
  'video.deadline_s',
  'video.cache',
  'server.kind',
  'server.urls',
  'server.count',
  'server.host',
  'server.ports',
  'server.api_key',
  'server.ready',
  'server.watch.',
  'server.embedded.',
  'server.sglang.',
  'eval.concurrent',
  'eval.max_error_rate',
  'eval.bootstrap',
  'eval.report_',
  'eval.canary_tokens',
)
ELSEWHERE = (
  'model.',
  'world.',
  'eval.budgets',
  'eval.world_',
  'eval.limit',
  'eval.grounding_threshold',
  'eval.skip_missing_videos',
  'protocol.prompt_file',
)
BINDING = (
  'server.embedded.dtype',
  'server.sglang.dtype',
  'server.sglang.extra',
  'server.sglang.tensor_parallel',
)


def leaves(config, prefix=''):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def other(value):
  """Another value of the same type."""
  return {
    bool: lambda v: not v,
    int: lambda v: v + 1,
    float: lambda v: v + 0.5,
    str: lambda v: f'{v}x',
    tuple: lambda v: (*v, '--x'),
  }.get(type(value), lambda v: 1)(value)


def bound(changes):
  """What a plan says of a recipe with these changes; the placement decides which server's knobs
  count.
  """
  config = recipe.get_config().unlock()
  for knob, value in changes.items():
    config.update_from_flattened_dict({knob: value})
  model = eval_models.Model('m', {'files': 'abc'}, pathlib.Path('m'))
  return entry.settings(
    config, model, protocols.PROTOCOLS.get(config.protocol.name, protocols.PROTOCOLS['direct'])
  )


def placed(knob):
  """The placement under which a knob is looked at."""
  section, _, rest = knob.partition('.')
  if section in ('chat', 'chat_server'):
    return {'model.url': 'http://h/v1'}
  kind = rest.partition('.')[0]
  return {'server.kind': kind} if section == 'server' and kind in ('embedded', 'sglang') else {}


KNOBS = dict(leaves(recipe.get_config()))


@pytest.mark.parametrize(
  'knob', [name for name in KNOBS if not name.startswith((*FREE, *ELSEWHERE))] + list(BINDING)
)
def test_every_setting_that_scores_depend_on_is_in_the_fingerprint(knob):
  where = placed(knob)
  before, now = bound(where), bound({**where, knob: other(KNOBS[knob])})
  assert results.differences(results.Plan(before, {}, (1, 1)), results.Plan(now, {}, (1, 1)))


@pytest.mark.parametrize(
  'knob',
  [name for name in KNOBS if name.startswith(FREE) and name not in (*BINDING, 'server.kind')],
)
def test_what_changes_no_score_binds_nothing(knob):
  where = placed(knob)
  assert bound({**where, knob: other(KNOBS[knob])}) == bound(where)


def test_worlds_that_differ_in_their_pictures_alone_are_told_apart(tmp_path, monkeypatch):
  """Their questions are the same, word for word."""
  monkeypatch.chdir(tmp_path)
  config = recipe.get_config()
  config.update_from_flattened_dict(
    {**small_job.WORLD, 'world.corpus.videos': 2, 'world.workers': 1}
  )
  (plain,) = eval_data.suites(config)
  config.world.scene.noise += 1.0
  (noisy,) = eval_data.suites(config)
  parts, others = plain.about((1, 1))['parts'], noisy.about((1, 1))['parts']
  assert parts['questions'] == others['questions'] and parts['rule'] != others['rule']


# A server by URL


def test_a_server_that_fails_again_and_again_ends_the_run_which_goes_on_when_it_is_mended(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  tiny.build_tokenizer(tmp_path / 'model')
  config = recipe.get_config()
  config.update_from_flattened_dict(
    {
      'benchmarks': 'videomme',
      'paths.videomme': str(fixtures.snapshot(tmp_path, 'videomme')),
      'data.cache': str(tmp_path / 'cache'),
      'model.name': 'seer',
      'model.tokenizer': 'model',
      'protocol.name': 'think',
      'run.folder': 'runs/e',
      'video.workers': 1,
      'eval.concurrent': 1,
      'eval.bootstrap': 50,
      'chat_server.retries': 0,
      'chat_server.max_failures': 2,
      'sampling.context': 4096,
    }
  )
  text = '<think>I look.</think><answer>C</answer>'
  with ChatServer(lambda body, number: text if number == 0 else Raw(503, b'busy')) as server:
    config.model.url = server.url
    with pytest.raises(
      RolloutError,
      match=r'2 requests in a row failed, the last with status .*run the same command again: it '
      r'goes on',
    ):
      entry.main(config)
    assert len(server.bodies) == 3
  folder = tmp_path / 'runs' / 'e'
  first = json.loads((folder / 'results.jsonl').read_text().splitlines()[0])
  assert (first['status'], first['answer']) == ('answered', 'C') and not (
    folder / 'summary.json'
  ).exists()
  shutil.copytree(
    folder, 'runs/f'
  )  # as another process would find it: this one may still hold the lock of the first
  folder, config.run.folder = tmp_path / 'runs' / 'f', 'runs/f'
  with ChatServer(lambda body, number: text) as server:
    config.model.url = server.url
    entry.main(config)
    assert len(server.bodies) == 2
  found = json.loads((folder / 'summary.json').read_text())['videomme']
  assert (found['samples'], found['answered'], found['errors']) == (3, 3, 0)
  page = (folder / 'report.html').read_text()
  assert 'ParaVT-8B' in page and cards(page) == [
    'wrong',
    'wrong',
  ]  # published beside ours; right ones on demand
  config.eval.report_right = True
  eval_tools.report(config, folder)
  assert sorted(cards((folder / 'report.html').read_text())) == ['right', 'wrong', 'wrong']


def cards(page):
  return re.findall(r'data-outcome="(\w+)"', page)


# Finished results


def finished(folder, made, outcomes):
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(
    json.dumps({'eval': {'bootstrap': 50, 'report_right': True}, 'seed': 0, 'shard': '1/2'})
  )
  results.write_plan(folder, made)
  with results.Journal(folder) as journal:
    for one in outcomes:
      journal.append(one)
  return str(folder)


def test_compare_prints_the_differences_and_keeps_every_flip(tmp_path, capsys):
  a = finished(tmp_path / 'a', plan('x', 'y'), [outcome('x', 0.0), outcome('y')])
  b = finished(tmp_path / 'b', plan('x', 'y', max_turns=1), [outcome('x'), outcome('y')])
  assert eval_tools.run('--compare', [a, b]) == 0
  said = capsys.readouterr().out
  assert (
    '| mlvu | accuracy | 50.0 | 100.0 | +50.0 [' in said
    and 'agent.max_turns: 3 -> 1' in said
    and '`mlvu/x/k=64`' in said
  )
  kept = json.loads((tmp_path / 'b' / 'compare_a.json').read_text())
  assert [flip['key'] for flip in kept['benchmarks']['mlvu']['won']] == ['mlvu/x/k=64']


@pytest.mark.parametrize('arguments', [[], ['a'], ['a', 'b', 'c'], ['a', '--b']])
def test_compare_wants_two_results_folders(arguments, capsys):
  assert eval_tools.run('--compare', arguments) == 2
  assert 'wanted two results folders' in capsys.readouterr().err


def test_folders_without_a_common_benchmark_or_without_results_are_refused_in_one_line(
  tmp_path, capsys
):
  a = finished(tmp_path / 'a', plan('x'), [])
  b = finished(tmp_path / 'b', plan('x', benchmark='lvbench'), [])
  assert (
    eval_tools.run('--compare', [a, b]) == 2
    and eval_tools.run('--compare', [a, str(tmp_path)]) == 2
  )
  first, second = capsys.readouterr().err.splitlines()
  assert 'wanted a benchmark in both' in first and 'wanted a results folder' in second


@pytest.mark.parametrize('command', eval_tools.COMMANDS)
def test_a_command_is_told_apart_from_a_recipe(command):
  assert command not in ('--config',) and eval_tools.run(command, []) == 2


def test_the_worst_benchmark_decides_the_error_rate():
  assert (
    eval_tools.error_rate(
      {
        'a': {'errors': 1, 'samples': 4},
        'b': {'errors': 1, 'samples': 100},
        'c': {'errors': 0, 'samples': 0},
      }
    )
    == 0.25
  )


def test_a_recipe_with_a_key_writes_it_nowhere():
  config = ConfigDict(recipe.get_config())
  config.chat_server.api_key = 'secret'
  assert 'secret' not in json.dumps(entry.runs.shown(config))


def test_what_a_server_says_of_its_load_becomes_a_mean_batch():
  load = entry.eval_speed.Load()
  reply = lambda tokens, calls: {
    'running': [2, 1],
    'waiting': 3,
    'options': {'decode_steps': 4},
    'counts': {'sampled_tokens': tokens, 'decode_calls': calls},
  }
  load.heard('u', reply(100, 10))
  load.heard('u', reply(340, 20))  # 240 tokens in 10 dispatches of 4 steps
  load.heard('sglang', {'version': '0.5.21'})
  assert (load.polls, load.running, load.waiting, load.batch) == (2, 6, 6, 6.0)
  assert entry.eval_speed.Load().batch is None


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
    eval_data.folder(config, 'videomme') == tmp_path / 'lmms-lab/Video-MME'
  )  # where it is expected
  (tmp_path / folder).mkdir(parents=True)
  assert eval_data.folder(config, 'videomme') == tmp_path / folder


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
  (suite,) = eval_data.suites(config)
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
