"""Ablations: which part of PARA-GRPO does what. Named sets of overrides over one recipe, each run
with every seed.

python -m experiments.ablate --config=configs/ablations.py                                    # nine sets, three seeds, the tiny scale
python -m experiments.ablate --config=configs/ablations.py --config.sets=grpo,para_grpo --config.seeds=0,1
python -m experiments.ablate --config=configs/ablations.py --config.sets=para_grpo,asynchronous  # staleness 0 against 2
python -m experiments.ablate --config=configs/ablations.py --config.common="('rollout.steps=40', 'rollout.prompts=4')"

An override is written as behind --config. on the command line. A copy of this file with other sets
is another grid.
"""

from ml_collections import ConfigDict

# GRPO as in configs/grpo.py, taken apart: anchoring is the pinned opening, the answer suffix and
# the anchor's weight.
NO_ANCHORING = ('agent.think_prefix=', 'reward.answer_suffix=False', 'reward.anchor_weight=0.0')
NO_GATING = ('frames.gating=False',)


def get_config() -> ConfigDict:
  """The grid, locked."""
  return ConfigDict(
    {
      'recipe': 'configs/para_grpo.py:tiny',
      # a run folder per set and seed, the table, the page and its curves
      'folder': 'runs/ablations',
      # some of `overrides`, by commas, in the order of the table
      'sets': 'sft_only,grpo,grpo_anchoring,grpo_gating,para_grpo,no_tool_reward,no_unclosed_penalty,sequential,subagent_credit_off',
      'seeds': (0, 1, 2),  # of the runs; the cold start is one for all
      'jobs': 1,  # runs at once; where a run uses an accelerator: 1
      'cores': (),  # CPU cores, dealt out to the jobs; () is all that this process may use
      'common': (),  # overrides of every run, before those of its set
      'overrides': {
        'sft_only': (
          'rollout.steps=1',
          'optimizer.learning_rate=0.0',
        ),  # one step that changes nothing
        'grpo': (*NO_ANCHORING, *NO_GATING),
        'grpo_anchoring': NO_GATING,
        'grpo_gating': NO_ANCHORING,
        'para_grpo': (),
        'no_tool_reward': ('reward.tool=False',),
        'no_unclosed_penalty': ('reward.unclosed_penalty=0.0',),
        'sequential': (
          'agent.max_parallel=1',
          'agent.max_turns=15',
        ),  # a call a round, as many rounds as calls were allowed
        'subagent_credit_off': ('rollout.subagent_credit=off',),
        # not a part of PARA-GRPO: what rollouts of older weights cost or gain
        'asynchronous': ('rollout.staleness=2',),
      },
      'reference': 'para_grpo',  # the set that others are set against, seed by seed
      # which sets share a drawing
      'drawings': {
        'parts': ('sft_only', 'grpo', 'grpo_anchoring', 'grpo_gating', 'para_grpo'),
        'taken_away': (
          'para_grpo',
          'no_tool_reward',
          'no_unclosed_penalty',
          'sequential',
          'subagent_credit_off',
        ),
      },
    }
  ).lock()
