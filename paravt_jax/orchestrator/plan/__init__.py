"""What a recipe will take, before a device is asked for: memory, FLOPs, bytes, seconds, disk.

`make_plan(request)` needs neither weights nor devices. It counts state from the shapes of the
parameters and the sharding table, so these parts are exact. It counts activations, bytes and
seconds by formulas for the program that the learner runs. Where a formula depends on how that
program is written, a named constant says so, and the constants stand together:

    job           what a learner runs: sizes of the recipe and of the model
    shapes        episodes and conversations of stated shapes, packed by the learner's own packer
    own_data      those of the recipe's own rows, where files and media are there
    state         weights, optimizer, gradients, reference: exact by shape and sharding
    activations   memory of one micro-batch; how the learner's program uses memory
    flops         multiplications of a step, those needed and those made
    traffic       bytes over HBM and links, and the range of seconds
    server        memory and seconds of rollout servers
    rules         recipes that cannot run, one line each with the way out
    advice        changes of a recipe that make it fit, found by planning again
    table         the plan as text and as JSON
    ahead         the compiler's own figures, for a target that is not there; gpu_spec describes it
    hlo           bytes of a compiled program, counted in its text
"""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['Accelerator', 'Plan', 'Target', 'find_refusals', 'make_plan', 'parse_target']

if TYPE_CHECKING:
  from paravt_jax.orchestrator.plan.accelerators import Accelerator, Target, parse_target
  from paravt_jax.orchestrator.plan.build import Plan, make_plan
  from paravt_jax.orchestrator.plan.rules import find_refusals
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    accelerators=('Accelerator', 'Target', 'parse_target'),
    build=('Plan', 'make_plan'),
    rules=('find_refusals',),
  )
