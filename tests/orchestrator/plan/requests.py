"""Requests for plans of the recipes of configs/."""

from configs import base
from configs import eval as evaluation
from paravt_jax.orchestrator.plan import accelerators, job, shapes
from paravt_jax.orchestrator.plan.rules import Request
from tests.recipes import typed

MAKE = {'rl': base.rl, 'sft': base.sft, 'eval': evaluation.get_config}


def recipe(name, **changes):
  """The typed recipe 'rl:8b' with values of knobs, '__' for dots."""
  kind, _, scale = name.partition(':')
  config = MAKE[kind](scale)
  config.unlock()
  return typed(config, **changes)


def request(name, target='', model='', shape='', **changes):
  """A request for 'rl:8b' on a target, by default its scale's own."""
  made = recipe(name, **changes)
  sizes, source = job.model_of(made, model)
  place = accelerators.parse_target(target or accelerators.SCALES[made.scale])
  return Request(made, place, sizes, source, shapes.shape_of(made, shape))
