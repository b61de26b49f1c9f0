"""The evaluation's door: its recipe, what is refused, what results are a function of, and a run whose
server fails.
"""

import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from configs import eval as recipe
from configs import para_grpo
from experiments import eval as entry
from experiments import launch
from paravt_jax import options
from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.eval import benchmarks, protocols, results
from paravt_jax.orchestrator import evaluated_model, parts, results_folders, run_folder
from paravt_jax.orchestrator.recipes import EvalRecipe
from paravt_jax.testing import tiny
from tests import patience, recipes
from tests.eval import fixtures
from tests.experiments import small_job
from tests.longvideo_reason.chat_server import ChatServer, Raw

# The recipe


@pytest.mark.parametrize('scale', ['tiny', '2b', '8b'])
def test_the_recipe_is_the_trained_agent_decoding_greedily(scale):
  ours, trained = recipe.get_config(scale), para_grpo.get_config(scale).unlock()
  if scale == 'tiny':  # benchmarks hold longer texts than the world
    trained.sampling.context = 4096
    trained.server.embedded.lanes = (*trained.server.embedded.lanes, (4096, 8))
  assert ours.sampling.to_dict() == {**trained.sampling.to_dict(), 'temperature': 0.0}
  # at 2b the trainer's server shares its GPU with the learner; an evaluation has it to itself
  same = ('agent', 'subagent', 'reward', 'video', *(() if scale == '2b' else ('server',)))
  for section in same:
    assert ours[section].to_dict() == trained[section].to_dict()
  assert ours.is_locked and set(ours.paths) == set(benchmarks.BENCHMARKS)
  if scale != 'tiny':
    with pytest.raises(
      ConfigError,
      match=r"server.urls=\(\): wanted a server's address, or server.router, or server.kind=embedded or sglang",
    ):
      entry.check(recipes.typed(ours))
    ours.server.urls = ('http://h:1',)
  entry.check(recipes.typed(ours))


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
    entry.check(recipes.typed(config))
  assert message in str(caught.value)


def test_a_missing_server_and_missing_benchmarks_are_told_at_once(tmp_path):
  config = recipe.get_config()
  config.update_from_flattened_dict(
    {
      'server.kind': 'sglang',
      'server.sglang.python': str(tmp_path / 'python'),
      'benchmarks': 'mlvu,mmvu',
      'data.root': str(tmp_path),
    }
  )
  with pytest.raises(ConfigError) as caught:
    entry.main(recipes.typed(config))
  server, head, *missing = str(caught.value).splitlines()
  assert 'server.sglang.python' in server and 'make sglang' in server
  assert head.startswith('and files of benchmarks are missing (configs/eval.py says where')
  assert [line.split(':')[0] for line in missing] == ['  mlvu', '  mmvu']
  config.benchmarks = 'mlvus'
  with pytest.raises(ConfigError, match=r"make sglang.*\nand .*'mlvus': did you mean mlvu"):
    entry.main(recipes.typed(config))


def test_a_recipe_of_training_is_refused():
  with pytest.raises(ConfigError, match=r"no 'protocol', .* such as configs/eval.py"):
    launch.typed(EvalRecipe, para_grpo.get_config())


def test_a_recipe_with_a_key_writes_it_nowhere():
  made = recipes.typed(recipe.get_config(), chat_server__api_key='secret')
  assert 'secret' not in json.dumps(run_folder.to_json(made))


@pytest.mark.parametrize('command', entry.COMMANDS)
def test_a_command_is_told_apart_from_a_recipe(command):
  assert command not in ('--config',) and entry.command(command, []) == 2


# The model


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
      r'its width of 4096 and its \d+ tokens are not of scale :tiny; wanted --config=configs/eval.py:8b \(or :2b\)',
    ),
    (
      '8b',
      0,
      r'its width of 128 and its \d+ tokens are not of scale :8b; wanted --config=configs/eval.py',
    ),
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
    entry.main(recipes.typed(config))


def test_a_narrow_model_with_the_published_vocabulary_is_not_of_the_tiny_scale(tmp_path):
  tiny.build_model_folder(tmp_path, 0)
  said = json.loads((tmp_path / 'config.json').read_text())
  said['text_config']['vocab_size'] = 151_936
  (tmp_path / 'config.json').write_text(json.dumps(said))
  assert parts.model_of_scale(tmp_path, '8b', 'configs/eval.py').text.width == 128
  with pytest.raises(ConfigError, match='its 151936 tokens are not of scale :tiny'):
    parts.model_of_scale(tmp_path, 'tiny', 'configs/eval.py')


# What results are a function of


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
  'hosts.',
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
  'server.router',
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
  'server.embedded.attention',
  'server.embedded.dtype',
  'server.embedded.tensor_parallel',
  'server.sglang.dtype',
  'server.sglang.extra',
  'server.sglang.tensor_parallel',
)


def other(value):
  """Another value of the same type."""
  return {
    bool: lambda v: not v,
    int: lambda v: v + 1,
    float: lambda v: v + 0.5,
    str: lambda v: f'{v}x',
    tuple: lambda v: (*v, '--x'),
  }.get(type(value), lambda v: 1)(value)


def changed(made, knob, value):
  """A copy in which a knob has another value, whatever its rule says."""
  made = holder = copy.deepcopy(made)
  *path, name = knob.split('.')
  for part in path:
    holder = getattr(holder, part)
  if isinstance(holder, dict):
    holder[name] = value
  else:
    object.__setattr__(holder, name, value)
  return made


def bound(where, changes):
  """What a plan says of a recipe with these changes; `where` decides which server's knobs count."""
  made = recipes.typed(recipe.get_config(), **where)
  for knob, value in changes.items():
    made = changed(made, knob, value)
  model = evaluated_model.Model('m', {'files': 'abc'}, pathlib.Path('m'))
  protocol = protocols.PROTOCOLS.get(made.protocol.name, protocols.PROTOCOLS['direct'])
  return entry.settings(made, model, protocol)


def placed(knob):
  """The placement under which a knob is looked at."""
  section, _, rest = knob.partition('.')
  if section in ('chat', 'chat_server'):
    return {'model__url': 'http://h/v1'}
  kind = rest.partition('.')[0]
  return {'server__kind': kind} if section == 'server' and kind in ('embedded', 'sglang') else {}


KNOBS = dict(options.leaves(recipes.typed(recipe.get_config())))


@pytest.mark.parametrize(
  'knob', [name for name in KNOBS if not name.startswith((*FREE, *ELSEWHERE))] + list(BINDING)
)
def test_every_setting_that_scores_depend_on_is_in_the_fingerprint(knob):
  where = placed(knob)
  before, now = bound(where, {}), bound(where, {knob: other(KNOBS[knob])})
  assert results.differences(results.Plan(before, {}, (1, 1)), results.Plan(now, {}, (1, 1)))


@pytest.mark.parametrize(
  'knob',
  [name for name in KNOBS if name.startswith(FREE) and name not in (*BINDING, 'server.kind')],
)
def test_what_changes_no_score_binds_nothing(knob):
  where = placed(knob)
  assert bound(where, {knob: other(KNOBS[knob])}) == bound(where, {})


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
      r'continues',
    ):
      entry.main(recipes.typed(config))
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
    entry.main(recipes.typed(config))
    assert len(server.bodies) == 2
  found = json.loads((folder / 'summary.json').read_text())['videomme']
  assert (found['samples'], found['answered'], found['errors']) == (3, 3, 0)
  page = (folder / 'report.html').read_text()
  assert 'ParaVT-8B' in page and cards(page) == [
    'wrong',
    'wrong',
  ]  # published beside ours; right ones on demand
  config.eval.report_right = True
  made = recipes.typed(config)
  results_folders.report(made.video, made.eval, folder)
  assert sorted(cards((folder / 'report.html').read_text())) == ['right', 'wrong', 'wrong']


def cards(page):
  return re.findall(r'data-outcome="(\w+)"', page)
