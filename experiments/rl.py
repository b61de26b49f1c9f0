"""The main job: `python -m experiments.rl --config=configs/para_grpo.py[:scale] [--config.knob=value]`.

corpus -> cold start (made if it does not exist) -> rollout server -> evaluation -> PARA-GRPO ->
evaluation -> report. The same command resumes. The last line on standard output is the
run folder.
"""

import sys

from experiments import launch
from paravt_jax.orchestrator import hosts, main_job
from paravt_jax.orchestrator.recipes import RLRecipe


def main(recipe: RLRecipe) -> None:
  """Runs the recipe to its report, from the last recorded step of its folder."""
  folder = main_job.run(recipe, launch.host())
  if hosts.current().is_first:
    print(folder)


if __name__ == '__main__':
  sys.exit(launch.run(main, RLRecipe))
