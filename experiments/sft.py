"""Cold-start SFT: `python -m experiments.sft --config=configs/sft.py[:scale] [--config.knob=value]`.

Trains on conversations (loss on assistant turns only), records, and ends with a Hugging Face folder
that RL starts from. The last line on standard output is that folder.
"""

import sys

from experiments import launch
from paravt_jax.orchestrator.cold_start import cold_start
from paravt_jax.orchestrator.recipes import SFTRecipe


def main(recipe: SFTRecipe) -> None:
  """Runs the recipe in its folder and prints the model's folder."""
  print(cold_start(recipe))


if __name__ == '__main__':
  sys.exit(launch.run(main, SFTRecipe))
