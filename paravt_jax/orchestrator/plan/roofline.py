"""A step's seconds at the peak rates of the devices, from the bytes of its compiled program."""

from collections.abc import Mapping
from typing import Any

from paravt_jax.orchestrator.plan.build import Plan
from paravt_jax.orchestrator.plan.traffic import Traffic, seconds_of


def of_compiled(plan: Plan, compiled: Mapping[str, Any]) -> dict[str, list[float]] | None:
  """Returns bounds of a step of the plan's data, all overlapped and nothing overlapped.

  The compiler counts the bytes of one micro-batch of the largest shape. The data's micro-batches
  have their share of it by tokens. FLOPs are the plan's: kernels have none in a program's text.

  Returns:
    seconds_per_step [low, high], and mfu [low, high]: the FLOPs that the data needs, over those
    that all devices could make in that time. None without figures of a program that fits.
  """
  learner = plan.learner
  if learner is None or compiled.get('hbm_tb') is None:
    return None
  accelerator, load = plan.request.target.accelerator, learner.load
  times = load.micro_batches * load.shape.row_tokens / learner.largest.row_tokens
  moved = Traffic(
    hbm=compiled['hbm_tb'] * 1e12 * times, links=compiled['collective_gb'] * 1e9 * times
  )
  found = seconds_of(learner.job, accelerator, learner.made.total, moved)
  peak = learner.job.devices * accelerator.flops(learner.job.train.dtype)
  return {
    'seconds_per_step': [found.low, found.high],
    'mfu': [learner.needed.total / peak / seconds for seconds in (found.high, found.low)],
  }
