"""A tool of your own: `python -m experiments.tutorials.add_a_tool VIDEO QUESTION [--model=DIR]`.

How an agent speaks is a record: what its system text says, and how a turn's calls are read. Here
the model may also write {"name": "look_at", "arguments": {"time": 26}}, which runs as a crop of two
seconds around that time. Limits, deadlines, sub-agents and the turn loop stay as they are.
"""

import asyncio
import dataclasses
import pathlib
import tempfile

from absl import app

from configs import ask
from experiments import launch
from experiments.tutorials import MODEL
from paravt_jax.chat import prompts, toolcalls
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.orchestrator import parts, rollouts
from paravt_jax.orchestrator.recipes import AskRecipe
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rollout.agent import TRAINING_FORMAT, Agent
from paravt_jax.rollout.sampler import Address
from paravt_jax.rollout.subagent import Subagents
from paravt_jax.types import Episode, ParseFailure, Task, ToolCall

REACH = 2.0  # seconds on either side of the time
PROMPT = '\n\nYou may also call look_at with one argument, time (seconds): it shows that moment.'


def system(task: Task) -> str:
  """The system text of training, and what the new tool does."""
  return prompts.system(task.facts.get('system')) + PROMPT


def parse(text: str) -> tuple[ToolCall | ParseFailure, ...]:
  """A turn's calls; one of look_at becomes the crop that answers it."""
  return tuple(map(_as_crop, toolcalls.parse(text)))


def _as_crop(item: ToolCall | ParseFailure) -> ToolCall | ParseFailure:
  if not isinstance(item, ToolCall) or item.name != 'look_at':
    return item
  time = item.arguments.get('time')
  if not isinstance(time, int | float) or isinstance(time, bool):
    return ParseFailure('bad_time', str(item.arguments))  # model output is never an exception
  window = {'start_time': max(0.0, time - REACH), 'end_time': time + REACH}
  return ToolCall('crop_video', window, item.well_formed)


FORMAT = dataclasses.replace(TRAINING_FORMAT, system=system, parse=parse)


def main(argv: list[str]) -> None:
  """Asks with the tool and prints what came back."""
  if len(argv) != 3:
    raise app.UsageError('wanted a video file and a question')
  model = pathlib.Path(MODEL.value or parts.tiny_model(0))
  episode = asyncio.run(ask_with_tool(model, argv[1], argv[2]))
  for turn in episode.turns:
    print(turn.text.strip())
    for result in turn.results:
      print(f'  {result.status}: {result.text}')


async def ask_with_tool(model_folder: pathlib.Path, video: str, question: str) -> Episode:
  """The episode of one question."""
  recipe = launch.typed(AskRecipe, ask.get_config())
  tok = ChatTokenizer.load(model_folder)
  vocab = weights.load_hf(model_folder, only=())[0].text.vocab
  task = Task('mine', (str(pathlib.Path(video).absolute()),), question, 'oe', '')
  setup, host = AgentSetup.of(recipe), launch.host()
  with tempfile.TemporaryDirectory() as logs:
    folder = pathlib.Path(logs)
    async with rollouts.open_rollouts(
      setup, host, model_folder, tok, vocab, folder, None
    ) as server:
      sampler = server.samplers[1]  # greedy
      subagents = Subagents(sampler, server.frames, recipe.subagent)
      agent = Agent(sampler, subagents, server.frames, recipe.agent, FORMAT)
      opening = await agent.open(task, recipe.frames)
      return await agent.run(task, opening, Address(recipe.seed, task.id, 0, 0))


if __name__ == '__main__':
  launch.run_script(main)
