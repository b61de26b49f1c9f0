"""The tutorials run as written, on the tiny model."""

import asyncio
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import eval as evaluation
from configs import para_grpo
from experiments import launch
from experiments.tutorials import (
  add_a_benchmark,
  add_a_tool,
  ask_a_model,
  look_at_an_episode,
  rl_loop,
  write_a_reward,
)
from paravt_jax.orchestrator import corpus, parts
from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe
from paravt_jax.types import ParseFailure, ToolCall
from tests import patience
from tests.experiments import small_job
from tests.report import made_run

LINES = 200
FOLDER = pathlib.Path(rl_loop.__file__).parent


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """A folder to run in, with a small world: (folder, recipe, model folder)."""
  folder = tmp_path_factory.mktemp('tutorials')
  config = para_grpo.get_config()
  small = {'videos': 4, 'heldout_videos': 1, 'rl_tasks': 8, 'heldout_tasks': 2}
  config.world.corpus.update(small)
  config.rollout.update({'prompts': 2, 'group_size': 2})
  config.frames.update({'budgets': (4,), 'frames': 4})
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    recipe = launch.typed(RLRecipe, config)
    yield folder, recipe, parts.tiny_model(0)


def tasks_of(recipe, folder):
  return corpus.rl_questions(recipe, corpus.rl_corpus(recipe), folder).train


def test_a_tutorial_is_a_page_or_two():
  lengths = {path.name: len(path.read_text().splitlines()) for path in FOLDER.glob('*.py')}
  assert lengths['rl_loop.py'] <= LINES
  assert all(lines <= 130 for name, lines in lengths.items() if name != 'rl_loop.py'), lengths


def test_the_tool_of_one_s_own_runs_as_a_crop_and_a_bad_time_is_a_value():
  call = '<tool_call>{"name": "look_at", "arguments": {"time": %s}}</tool_call>'
  assert add_a_tool.parse(call % 26) == (
    ToolCall('crop_video', {'start_time': 24.0, 'end_time': 28.0}, True),
  )
  assert add_a_tool.parse(call % 1)[0].arguments == {'start_time': 0.0, 'end_time': 3.0}
  assert add_a_tool.parse(call % '"soon"') == (ParseFailure('bad_time', "{'time': 'soon'}"),)


@pytest.mark.slow
def test_the_loop_trains_publishes_and_reports_each_step(place):
  folder, recipe, model = place
  history = asyncio.run(rl_loop.train(recipe, model, folder, tasks_of(recipe, folder), 2))
  assert len(history) == 2
  assert all(abs(metrics['gap']) < 1e-4 for metrics in history)  # the server holds these weights
  assert (folder / 'weights').is_dir()


@pytest.mark.slow
def test_a_reward_of_one_s_own_takes_the_price_of_what_was_looked_at(place):
  folder, recipe, model = place
  reward = write_a_reward.ThriftyReward(recipe.reward, 0.5)
  seen = []

  async def watched(episode):
    total, found = await reward(episode)
    paid, _ = await write_a_reward.ThriftyReward(recipe.reward, 0.0)(episode)
    seen.append((paid - total, write_a_reward.seconds_seen(episode)))
    return total, found

  asyncio.run(rl_loop.train(recipe, model, folder, tasks_of(recipe, folder), 1, watched))
  assert len(seen) == 4
  assert all(abs(taken - 0.5 * seconds) < 1e-6 for taken, seconds in seen)


@pytest.mark.slow
def test_a_model_is_asked_with_and_without_a_tool_of_one_s_own(place):
  folder, recipe, model = place
  (video,) = tasks_of(recipe, folder)[0].videos
  for ask in (ask_a_model.ask_model, add_a_tool.ask_with_tool):
    episode = asyncio.run(ask(model, video, 'What appears at 26?'))
    assert episode.turns and episode.task.question == 'What appears at 26?'


@pytest.mark.slow
def test_a_benchmark_of_one_s_own_is_a_results_folder_that_goes_on(place, tmp_path):
  folder, recipe, model = place
  (video,) = tasks_of(recipe, folder)[0].videos
  rows = [
    {'id': str(n), 'video': video, 'question': f'What appears at {n}?', 'answer': 'red'}
    for n in (3, 26)
  ]
  questions = tmp_path / 'questions.jsonl'
  questions.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  recipe = launch.typed(EvalRecipe, evaluation.get_config())
  recipe = recipe.replace(model=recipe.model.replace(folder=str(model)))
  samples, out = add_a_benchmark.load(questions), tmp_path / 'out'
  table = asyncio.run(add_a_benchmark.evaluate(recipe, samples, out))
  assert '| mine | holds_gold |' in table and '| 4 |' in table
  written = (out / 'results.jsonl').read_bytes()
  assert written.count(b'\n') == 4  # two questions at two budgets
  asyncio.run(add_a_benchmark.evaluate(recipe, samples, out))
  assert (out / 'results.jsonl').read_bytes() == written


def test_an_episode_is_told_in_a_few_lines():
  scored = made_run.episode(made_run.task(2), 4, 1.0, 3, np.random.default_rng(1))
  lines = look_at_an_episode.describe(scored).split('\n')
  assert lines[0].startswith(scored.episode.task.question)
  assert lines[1].startswith(f'  reward {scored.reward:.2f}: ')
  assert f'{len(scored.episode.turns)} turns' in lines[2]


@pytest.mark.parametrize(
  ('command', 'says'),
  [
    (['ask_a_model', 'video.mp4'], 'wanted a video file and a question'),
    (['look_at_an_episode', 'runs/nothing'], 'runs/nothing/episodes/train.jsonl has no step 0'),
    (['add_a_benchmark', 'none.jsonl', 'out'], 'none.jsonl: No such file or directory'),
    (['rl_loop', '--step=1'], "Unknown command line flag 'step'. Did you mean: steps"),
  ],
)
def test_a_wrong_input_is_one_line(place, command, says):
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.tutorials.{command[0]}', *command[1:]],
    capture_output=True,
    text=True,
    cwd=place[0],
    timeout=patience.seconds(120),
    env={**small_job.environment(), 'PYTHONPATH': str(small_job.ROOT)},
  )
  assert done.returncode == 2 and done.stderr.startswith(f'error: {says}')
  assert done.stderr.count('\n') == 1 and done.stdout == ''
