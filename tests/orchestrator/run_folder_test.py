"""A run's folder: one process at a time, one recipe, phases that stay done."""

import json
import os
import signal

import pytest

from configs import para_grpo
from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import parts, run_folder
from tests.recipes import typed

RECIPE = {
  'name': 'x',
  'seed': 0,
  'agent': {'max_turns': 3, 'max_parallel': 5},
  'run': {'keep': 2},
  'server': {'port': 0},
}


def changed(section, **values):
  return {**RECIPE, section: {**RECIPE[section], **values}}


def closed(run):
  """Lets go of the lock, as the end of the process does."""
  run._lock.close()


def test_a_new_folder_holds_config_commit_and_a_place_for_episodes(tmp_path):
  run_folder.RunFolder(tmp_path / 'a', RECIPE)
  assert json.loads((tmp_path / 'a' / 'config.json').read_text()) == RECIPE
  assert (tmp_path / 'a' / 'git.txt').read_text().strip() and (tmp_path / 'a' / 'episodes').is_dir()


def test_two_processes_never_share_a_folder(tmp_path):
  first = run_folder.RunFolder(tmp_path, RECIPE)
  owner = rf'process {os.getpid()} on \S+, since 20\d\d-.*'
  for _ in range(2):  # who is refused does not take the owner's name away
    with pytest.raises(
      ConfigError,
      match=rf'is in use by another process \({owner}\); .*--config.run.folder=DIR',
    ):
      run_folder.RunFolder(tmp_path, RECIPE)
  closed(first)
  run_folder.RunFolder(tmp_path, RECIPE)


def test_who_goes_on_with_a_run_is_told_whose_it_was(tmp_path, capsys):
  closed(run_folder.RunFolder(tmp_path, RECIPE))
  closed(run_folder.RunFolder(tmp_path, RECIPE))
  assert capsys.readouterr().err == ''  # nothing was trained
  (tmp_path / 'metrics.jsonl').write_text('{}')
  (tmp_path / '.lock').write_text('process 7 on elsewhere, since yesterday')
  closed(run_folder.RunFolder(tmp_path, RECIPE))
  said = f'run folder {tmp_path} was last used by process 7 on elsewhere, since yesterday; '
  assert capsys.readouterr().err == said + 'that process has ended\n'
  (tmp_path / '.lock').write_bytes(b'\xff' * 5000)  # no name that can be read
  run_folder.RunFolder(tmp_path, RECIPE)
  assert len(capsys.readouterr().err) < 500


def test_a_folder_that_was_begun_with_other_settings_is_refused_and_the_knobs_are_named(tmp_path):
  """Deviation 20: the release continues with results that were made under other settings."""
  closed(run := run_folder.RunFolder(tmp_path, RECIPE))
  run.finish('before', {})
  with pytest.raises(
    ConfigError,
    match=r'begun with other settings \(agent.max_turns: 3 -> 2\); continue with the same, or choose',
  ):
    run_folder.RunFolder(tmp_path, changed('agent', max_turns=2))
  assert json.loads((tmp_path / 'config.json').read_text()) == RECIPE
  run_folder.RunFolder(tmp_path, RECIPE)


def test_what_does_not_change_the_results_may_differ_and_is_told_in_a_line(tmp_path, capsys):
  closed(run := run_folder.RunFolder(tmp_path, RECIPE))
  run.finish('before', {})
  assert capsys.readouterr().err == ''
  closed(
    run_folder.RunFolder(
      tmp_path, {**changed('run', keep=9), 'server': {'port': 5}, 'client': {'timeout_s': 9.0}}
    )
  )
  assert capsys.readouterr().err == (
    f'run folder {tmp_path} continues with client.timeout_s: None -> 9.0, run.keep: 2 -> 9, '
    'server.port: 0 -> 5\n'
  )
  many = {'server': {f'k{i}': i for i in range(11)}}
  closed(run_folder.RunFolder(tmp_path, {**RECIPE, **many}))
  assert capsys.readouterr().err.endswith('server.k4: None -> 4 and 6 more\n')


def begun(path, done=None, **values):
  """A folder as a run of 6 steps leaves it that has a record of step `done`."""
  recipe = {**RECIPE, 'steps': 6, **values}
  run_folder.write_json(path / 'config.json', recipe)
  (path / 'metrics.jsonl').write_text('{}\n')
  if done is not None:
    (path / 'checkpoints' / f'{done:08d}').mkdir(parents=True)
    (path / 'checkpoints' / f'{done:08d}' / 'host.json').write_text('{}')
  return recipe


def test_steps_may_grow_and_may_not_fall_below_what_was_done(tmp_path):
  recipe = begun(tmp_path, done=4)
  assert run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 12}) == ['steps: 6 -> 12']
  assert run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 4}) == ['steps: 6 -> 4']
  with pytest.raises(
    ConfigError,
    match=r'\(steps: 6 -> 3\) and has made 4 steps; ask for 4 or more, or choose a new one with',
  ):
    run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 3})


def test_a_finished_run_without_its_records_cannot_make_more_steps_and_says_the_way_out(tmp_path):
  recipe = begun(tmp_path)
  assert run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 12}) == [
    'steps: 6 -> 12'
  ]  # it begins at its first step again
  (tmp_path / 'hf').mkdir()
  with pytest.raises(
    ConfigError,
    match=r'no record to continue from \(steps: 6 -> 12\); .* --config.model.folder=.*/hf and '
    r'--config.run.folder',
  ):
    run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 12})
  with pytest.raises(ConfigError, match=r'\(steps: 6 -> 5\) and has made 6 steps'):
    run_folder.refuse_other_settings(tmp_path, {**recipe, 'steps': 5})
  assert run_folder.refuse_other_settings(tmp_path, recipe) == []


def test_a_phase_is_forgotten_for_good(tmp_path):
  closed(run := run_folder.RunFolder(tmp_path, RECIPE))
  run.finish('after', {'accuracy': 0.5})
  run.forget('after')
  run.forget('never')
  assert run_folder.RunFolder(tmp_path, RECIPE).result('after') is None


@pytest.mark.parametrize('trace', ['metrics.jsonl', 'checkpoints'])
def test_settings_bind_once_there_is_something_to_go_on_with(tmp_path, trace):
  """A command that was refused at the door leaves a folder; the mended command may use it."""
  closed(run_folder.RunFolder(tmp_path, RECIPE))
  closed(run_folder.RunFolder(tmp_path, changed('agent', max_turns=2)))
  (tmp_path / trace).mkdir()
  with pytest.raises(ConfigError, match='begun with other settings'):
    run_folder.RunFolder(tmp_path, RECIPE)


def test_minutes_add_up_over_restarts_also_of_a_phase_that_was_interrupted(tmp_path, monkeypatch):
  clock = iter([0.0, 60.0, 100.0, 220.0])
  monkeypatch.setattr(run_folder.time, 'monotonic', lambda: next(clock))
  run = run_folder.RunFolder(tmp_path, RECIPE)
  with pytest.raises(KeyboardInterrupt), run.phase('rl'):
    raise KeyboardInterrupt
  closed(run)
  run = run_folder.RunFolder(tmp_path, RECIPE)
  with run.phase('rl'):
    pass
  assert run.minutes == {'rl': 3.0}


def test_a_finished_phase_keeps_its_result_over_restarts(tmp_path):
  run = run_folder.RunFolder(tmp_path, RECIPE)
  assert run.result('before') is None
  run.finish('before', {'accuracy': 0.5})
  closed(run)
  assert run_folder.RunFolder(tmp_path, RECIPE).result('before') == {'accuracy': 0.5}


def test_a_folder_that_cannot_be_made_and_a_broken_file_are_one_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    ConfigError,
    match=r'run folder .*file/below: Not a directory; choose another with --config.run.folder=DIR',
  ):
    run_folder.RunFolder(tmp_path / 'file' / 'below', RECIPE)
  (tmp_path / 'progress.json').write_text('{"minutes"')
  with pytest.raises(ConfigError, match=r'progress.json: not JSON .*move the folder away'):
    run_folder.RunFolder(tmp_path, RECIPE)


@pytest.mark.parametrize(
  ('file', 'text', 'says'),
  [
    ('progress.json', '[1]', 'got list, wanted an object'),
    ('progress.json', '{"minutes": 3, "done": {}}', 'minutes and done are no objects'),
    ('config.json', '"x"', 'got str, wanted an object'),
    ('config.json', '[' * 100_000, 'not JSON'),
  ],
)
def test_a_damaged_file_of_a_run_is_refused_and_left_as_it_is(tmp_path, file, text, says):
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / file).write_text(text)
  way_out = 'the run cannot continue: move the folder away and start again'
  with pytest.raises(ConfigError, match=f'{file}: {says}.*; {way_out}'):
    run_folder.RunFolder(tmp_path, RECIPE)
  assert (tmp_path / file).read_text() == text


def test_a_name_gives_the_folder_unless_the_recipe_does(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  recipe = typed(para_grpo.get_config())
  named = lambda folder: run_folder.RunFolder.named(recipe, folder=folder, default='x_tiny').path
  assert named('').as_posix() == 'runs/x_tiny'
  assert named('else').as_posix() == 'else'


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  run_folder.write_json(tmp_path / 'a.json', {'a': 1})

  def full(path, text):
    path.open('w').write(text[:3])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(run_folder.pathlib.Path, 'write_text', full)
  with pytest.raises(OSError):
    run_folder.write_json(tmp_path / 'a.json', {'a': 2})
  assert json.loads((tmp_path / 'a.json').read_text()) == {'a': 1}
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']


def test_a_fingerprint_is_a_function_of_the_values_and_not_of_their_order():
  assert (
    run_folder.fingerprint({'a': 1, 'b': (2, 3)})
    == run_folder.fingerprint({'b': [2, 3], 'a': 1})
    != run_folder.fingerprint({'a': 1, 'b': (2, 4)})
  )
  assert len(run_folder.fingerprint('x')) == 8


def test_the_first_ctrl_c_asks_and_the_second_ends_at_once(capsys):
  before = signal.getsignal(signal.SIGINT)
  with run_folder.Interrupts() as interrupts:
    interrupts.check()
    os.kill(os.getpid(), signal.SIGINT)
    assert interrupts.asked and 'ending at the next safe point' in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
      interrupts.check()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGTERM)
  assert signal.getsignal(signal.SIGINT) is before


def test_a_run_says_its_scale_and_how_to_choose_another(tmp_path, capsys):
  run_folder.announce('para_grpo', 'tiny', run_folder.RunFolder(tmp_path, RECIPE))
  said = capsys.readouterr().err
  assert (
    'at scale :tiny   (others: --config=configs/para_grpo.py:8b and so on; ' in said
    and str(tmp_path) in said
  )


def test_keys_of_servers_are_neither_written_to_the_run_folder_nor_sent_to_wandb(tmp_path):
  recipe = typed(
    para_grpo.get_config(),
    server__api_key='open sesame',
    judge__api_key='open barley',
    run__wandb_project='videos',
  )
  run_folder.RunFolder.named(recipe, folder=str(tmp_path / 'run'), default='')
  written = (tmp_path / 'run' / 'config.json').read_text()
  sent = str(parts.wandb_options(recipe, tmp_path))
  for key in ('open sesame', 'open barley'):
    assert key not in written and key not in sent
  assert written.count('"api_key": "(set)"') == 2
  assert recipe.server.api_key == 'open sesame'


def test_a_recipe_is_written_down_whole_and_as_json():
  values = run_folder.to_json(typed(para_grpo.get_config()))
  assert values == json.loads(json.dumps(values))
  assert values['agent'] == {
    'think_prefix': '<think>\n',
    'max_turns': 3,
    'max_parallel': 5,
    'max_new_tokens': 96,
  }
  assert values['frames']['budgets'] == [4, 8, 16, 32, 64]
  assert values['cold_start']['world'] == values['world']
  assert values['server']['api_key'] == '' and values['reward']['grounding_threshold'] is None
  assert not {'cold_start', 'world'} & run_folder.to_json(typed(para_grpo.get_config('8b'))).keys()
