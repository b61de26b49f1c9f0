"""R_tool of spec section 4. That a tool ran is read from results; that a call parses, from texts;
forced turns earn nothing.

Calls that are not well-formed run, and earn nothing either.
"""

from paravt_jax.chat import toolcalls
from paravt_jax.types import Episode, ResultStatus


def parseable(episode: Episode) -> bool:
  """Whether a turn that is not forced holds a well-formed call, of a known tool or not."""
  return any(
    toolcalls.is_well_formed(item)
    for turn in episode.turns
    if not turn.forced
    for item in toolcalls.parse(turn.text)
  )


def executed(episode: Episode) -> bool:
  """Whether the sub-agent of at least one well-formed call answered, in a turn that is not
  forced.
  """
  return any(
    result.status is ResultStatus.EXECUTED and toolcalls.is_well_formed(result.call)
    for turn in episode.turns
    if not turn.forced
    for result in turn.results
  )


def tool_reward(episode: Episode, accuracy: float, *, threshold: float, bonus: str) -> float:
  """.1 for a parseable call, .3 instead for an executed one; +.5 when accuracy > threshold and the
  bonus' condition holds.

  Args:
    episode: the finished rollout.
    accuracy: its R_acc.
    threshold: what accuracy must exceed.
    bonus: 'call' (a parseable call is enough) or 'executed'.
  """
  ran = executed(episode)
  called = ran or parseable(episode)
  earned = 0.3 if ran else 0.1 * called
  return earned + 0.5 * (accuracy > threshold and (ran if bonus == 'executed' else called))
