"""A reward of your own: `python -m experiments.tutorials.write_a_reward [--model=DIR] [--steps=1]`.

A reward is an async function of an episode that returns the number and its parts. The parts are
logged and shown by name. This one pays right answers and takes a little for each second of video
that was looked at, so that short crops pay; the loop is that of rl_loop.py.
"""

import asyncio
import pathlib
import tempfile

from absl import flags

from configs import para_grpo
from experiments import launch
from experiments.tutorials import MODEL, rl_loop
from paravt_jax.options import require
from paravt_jax.orchestrator import corpus, parts
from paravt_jax.orchestrator.recipes import RLRecipe
from paravt_jax.rewards.total import RewardOptions, score
from paravt_jax.types import Episode

PRICE = 0.01  # of a second that a sub-agent looked at


def seconds_seen(episode: Episode) -> float:
  """Seconds of video in the crops that ran."""
  windows = [result.window for result in episode.results if result.window is not None]
  return sum(window.end - window.start for window in windows)


class ThriftyReward:
  """The recipe's reward minus the price of the seconds that were looked at."""

  def __init__(self, options: RewardOptions, price: float):
    require(price, 'at least 0', price >= 0, 'price')
    self._options, self._price = options, price

  async def __call__(self, episode: Episode) -> tuple[float, dict[str, float]]:
    """(reward, its parts by name)."""
    total, found = score(episode, self._options)
    paid = self._price * seconds_seen(episode)
    return total - paid, {**found, 'total': total - paid}


def main(argv: list[str]) -> None:
  """Trains with it for some steps."""
  del argv
  recipe = launch.typed(RLRecipe, para_grpo.get_config())
  model = pathlib.Path(MODEL.value or parts.tiny_model(recipe.seed))
  reward = ThriftyReward(recipe.reward, PRICE)
  with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    tasks = corpus.rl_questions(recipe, corpus.rl_corpus(recipe), folder).train
    asyncio.run(rl_loop.train(recipe, model, folder, tasks, flags.FLAGS.steps, reward))


if __name__ == '__main__':
  launch.run_script(main)
