"""The tool reward R_tool.

Whether a tool ran is read from the results, and whether a call parses is read from the turn texts.
Forced turns earn nothing. Calls that are not well-formed run, but earn nothing.
"""

from paravt_jax.chat import toolcalls
from paravt_jax.types import Episode, ResultStatus


def parseable(episode: Episode) -> bool:
  """Returns whether an unforced turn has a well-formed call, to a known or an unknown tool."""
  return any(
    toolcalls.is_well_formed(item)
    for turn in episode.turns
    if not turn.forced
    for item in toolcalls.parse(turn.text)
  )


def executed(episode: Episode) -> bool:
  """Returns whether a sub-agent answered a well-formed call of an unforced turn."""
  return any(
    result.status is ResultStatus.EXECUTED and toolcalls.is_well_formed(result.call)
    for turn in episode.turns
    if not turn.forced
    for result in turn.results
  )


def tool_reward(episode: Episode, accuracy: float, *, threshold: float, bonus: str) -> float:
  """Returns R_tool: .1 for a parseable call, or .3 for an executed call, plus the bonus.

  The bonus is .5 if accuracy > threshold and the bonus condition holds.

  Args:
    episode: the finished rollout.
    accuracy: R_acc of the episode.
    threshold: the accuracy that the bonus requires, exclusive.
    bonus: 'call' (a parseable call is enough) or 'executed'.
  """
  ran = executed(episode)
  called = ran or parseable(episode)
  earned = 0.3 if ran else 0.1 * called
  return earned + 0.5 * (accuracy > threshold and (ran if bonus == 'executed' else called))
