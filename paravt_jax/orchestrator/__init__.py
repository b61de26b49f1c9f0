"""A training run as a library. `experiments` and your own experiments can start it.

Components, and what each owns:

      recipes          the typed recipe: all settings of a run
      run_folder       the run's folder: its lock, its settings, which phases are done
      main_job         the main job, from its recipe to its report
      corpus           the RL rows and the synthetic world; sft_data: the SFT batches
      learner          `Trainer`: parameters and optimizer on the mesh, and the records on disk;
                       SFT (`SFTTrainer`, run by cold_start) and RL (`Learner`) share it
      servers          the processes of rollout servers that the run starts
      rollouts         the client, the fleet that watches the servers, and the agents that use both
      weight_delivery  converts a published version to the folder that servers load
      rollout_queue    groups on their way to the learner, and how far they may be ahead of it
      training         the RL loop; alarms: what ends it early; step_log: what each step did
      hosts            the other processes of a run, and what they tell each other: host_queue,
                       host_journal, step_facts; native_errors says in one line that one has died
      put, suites      the evaluation: before training, after training, and offline

One step of RL:

1. The queue starts groups (a prompt and its rollouts) as far ahead as `rollout.staleness` allows.
   It hands out the next batch of finished groups, in the order of the data.
2. The learner turns rewards into advantages, packs the episodes into rows, and makes one update.
   With staleness above 0 the next batch is collected and packed while the update runs.
3. If a server still lacks the weights of the step before, the queue waits for it.
4. The learner predicts the canary's tokens with the new weights and starts to write them.
5. The fleet delivers them to each server. A server's replies count once it has reproduced the
   canary. With staleness above 0 the next groups run meanwhile.
6. Metrics, episodes and a line of what the step did (`step_log`) are written. Process 0 looks at
   the alarms of the recipe's `watch` (`alarms`) and tells all processes if one of them ends the run.
   By default that is the gap between the log-probs of learner and server, above
   `rollout.gap_limit` and the allowance for rounding.
7. Every `run.checkpoint_every` steps one atomic record stores trained parameters, optimizer, the
   position in the data, the queue's counters, and the version. It is written while the next steps
   run. Frozen parameters stay in the model folder, which the record names.

With several processes, one for each host, every process does this together with the others. It runs
the groups of its share of the prompts, packs their rows, and delivers weights to its own servers.
Process 0 alone writes metrics, episodes, and what belongs to the whole run.

"Version" is the number of finished updates. A run begins with weights of version 0. The update of
step n makes version n + 1. Each sampled token carries the version that sampled it.
"""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = [
  'AgentSetup',
  'EvalRecipe',
  'Host',
  'Learner',
  'RLRecipe',
  'RunFolder',
  'SFTRecipe',
  'Trainer',
]

if TYPE_CHECKING:
  from paravt_jax.orchestrator.host import Host
  from paravt_jax.orchestrator.learner import Learner, Trainer
  from paravt_jax.orchestrator.recipes import EvalRecipe, RLRecipe, SFTRecipe
  from paravt_jax.orchestrator.run_folder import RunFolder
  from paravt_jax.orchestrator.setup import AgentSetup
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    host=('Host',),
    learner=('Learner', 'Trainer'),
    recipes=('EvalRecipe', 'RLRecipe', 'SFTRecipe'),
    run_folder=('RunFolder',),
    setup=('AgentSetup',),
  )
