"""One question on one video, from your own code: `python -m experiments.tutorials.ask_a_model VIDEO QUESTION [--model=DIR]`.

What `experiments.ask` does, without its command line: a server for the model, an agent that looks
at a few frames, crops windows in parallel, and answers. Without a model folder it takes the random
tiny model, whose answer is noise.
"""

import asyncio
import pathlib
import tempfile

from absl import app

from configs import ask
from experiments import launch
from experiments.tutorials import MODEL
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.orchestrator import parts, rollouts
from paravt_jax.orchestrator.recipes import AskRecipe
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rollout.sampler import Address
from paravt_jax.types import Episode, Task


def main(argv: list[str]) -> None:
  """Asks and prints every turn."""
  if len(argv) != 3:
    raise app.UsageError('wanted a video file and a question')
  model = pathlib.Path(MODEL.value or parts.tiny_model(0))
  episode = asyncio.run(ask_model(model, argv[1], argv[2]))
  for number, turn in enumerate(episode.turns, 1):
    print(f'turn {number}: {turn.text.strip()}')
    for result in turn.results:
      print(f'  a crop came back ({result.status}): {result.text}')


async def ask_model(model_folder: pathlib.Path, video: str, question: str) -> Episode:
  """The episode of one question."""
  # Frames, limits and sampling are those of configs/ask.py; change them like any dataclass.
  recipe = launch.typed(AskRecipe, ask.get_config())
  recipe = recipe.replace(agent=recipe.agent.replace(max_turns=2))
  tok = ChatTokenizer.load(model_folder)
  config, _ = weights.load_hf(model_folder, only=())  # the sizes alone
  setup, vocab = AgentSetup.of(recipe), config.text.vocab
  task = Task('mine', (str(pathlib.Path(video).absolute()),), question, 'oe', '')
  with tempfile.TemporaryDirectory() as logs:
    folder = pathlib.Path(logs)
    async with rollouts.open_rollouts(
      setup, launch.host(), model_folder, tok, vocab, folder, None
    ) as server:
      opening = await server.greedy.open(task, recipe.frames)
      return await server.greedy.run(task, opening, Address(recipe.seed, task.id, 0, 0))


if __name__ == '__main__':
  launch.run_script(main)
