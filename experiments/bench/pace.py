"""The main job with a learner whose steps take a given time and no core.

python -m experiments.bench.pace --config=configs/para_grpo.py --step_seconds=3 [--config.any.knob=value]

On a real machine the learner has devices of its own, and its step leaves the servers theirs. Here
both share the cores, so a pause stands for the step of such a learner. The first step is real. The
later ones keep its parameters: batches are packed, versions published and proved as ever.
"""

import pathlib
import sys
import time
from collections.abc import Mapping

from absl import flags

from experiments import launch
from paravt_jax.orchestrator import main_job
from paravt_jax.orchestrator.learner import Learner, PreparedBatch
from paravt_jax.orchestrator.recipes import RLRecipe

_STEP = flags.DEFINE_float('step_seconds', 0.0, 'The pause of each step.', lower_bound=0.0)


class PacedLearner(Learner):
  """A learner that pauses in place of all steps but the first."""

  pause_s: float = 0.0  # of a step
  _first: Mapping[str, float] | None = None  # metrics of the real step

  def train_on(self, batch: PreparedBatch) -> dict[str, float]:
    """Makes the first step, and pauses in place of the others. See Learner.train_on."""
    if self._first is None:
      self._first = super().train_on(batch)
      return dict(self._first)
    time.sleep(self.pause_s)
    self.version += 1
    own = {**batch.statistics, **batch.packed, 'policy/version': float(self.version)}
    return {**self._first, **own}


def main(recipe: RLRecipe) -> None:
  """Runs the recipe to its report with a paced learner."""

  def make(recipe: RLRecipe, model_folder: pathlib.Path, folder: pathlib.Path) -> Learner:
    learner = PacedLearner(recipe, model_folder, folder)
    learner.pause_s = _STEP.value
    return learner

  main_job.run(recipe, launch.host(), make)


if __name__ == '__main__':
  sys.exit(launch.run(main, RLRecipe))
