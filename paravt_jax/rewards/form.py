"""Format rewards R_base, R_anchor and R_fmt, and format compliance, which uses no weights.

A turn's text includes the pinned prefix. A positive term is earned when any turn earns it, and a
sequence such as think -> answer may span turns. The penalty and the tag balance consider every
turn. Only well-formed calls count. A place is (turn, index in its text).
"""

import dataclasses
from collections.abc import Sequence

from paravt_jax.chat import tags, toolcalls
from paravt_jax.types import Episode, Turn

SUBSTANTIVE = 10  # characters of a thought, stripped
_BALANCED = ('think', 'tool_call', 'tool_code', 'answer')
Place = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Form:
  """The structural elements in the turns of an episode."""

  thoughts: tuple[Place, ...]  # starts of substantive thinks
  closed: tuple[Place, ...]  # ends of the substantive thinks that are closed
  open_think: bool  # at least one think is not closed
  answered: bool  # an <answer> with non-blank text, closed or not
  answers: tuple[Place, ...]  # starts of closed, non-blank answers
  calls: tuple[Place, ...]  # well-formed calls, except in forced turns
  balanced: bool  # tags balance, and every tool block is a well-formed call


def read(turns: Sequence[Turn]) -> Form:
  """Returns the form of an episode's turns."""
  thinks = [(turn, think) for turn, text in _texts(turns) for think in tags.thinks(text)]
  solid = [(turn, think) for turn, think in thinks if len(think.body.strip()) >= SUBSTANTIVE]
  answers = [
    (turn, answer)
    for turn, text in _texts(turns)
    for answer in tags.answers(text)
    if answer.body.strip()
  ]
  return Form(
    thoughts=tuple((turn, think.start) for turn, think in solid),
    closed=tuple((turn, think.end) for turn, think in solid if think.closed),
    open_think=any(not think.closed for _, think in thinks),
    answered=bool(answers),
    answers=tuple((turn, answer.start) for turn, answer in answers if answer.closed),
    calls=tuple(
      (index, block.start)
      for index, turn in enumerate(turns)
      if not turn.forced
      for block in toolcalls.blocks(turn.text)
      if any(map(toolcalls.is_well_formed, block.items))
    ),
    balanced=all(tags.balanced(text, name) for _, text in _texts(turns) for name in _BALANCED)
    and all(
      toolcalls.is_well_formed(item) for _, text in _texts(turns) for item in toolcalls.parse(text)
    ),
  )


def anchor(form: Form, *, unclosed_penalty: float) -> float:
  """Returns R_anchor.

  It is .4 if a substantive think is closed, plus .3 if a closed non-blank answer follows it, minus
  `unclosed_penalty` (.3 in the method) if any think is not closed.
  """
  return (
    0.4 * bool(form.closed)
    + 0.3 * _precedes(form.closed, form.answers)
    - unclosed_penalty * form.open_think
  )


def base(form: Form, *, answer_suffix: bool) -> float:
  """Returns R_base.

  It rewards a substantive think, a non-blank answer, a closed answer, a think before a call, and
  balanced tags.
  """
  think, answer, closing = (0.2, 0.3, 0.2) if answer_suffix else (0.3, 0.2, 0.1)
  earned = think * bool(form.thoughts) + answer * form.answered + closing * bool(form.answers)
  earned += 0.3 * _precedes(form.thoughts, form.calls)
  return earned + 0.1 * (earned > 0 and form.balanced)


def form_reward(
  form: Form, *, answer_suffix: bool, anchor_weight: float, unclosed_penalty: float
) -> float:
  """Returns R_fmt = min(1, R_base + anchor_weight * R_anchor); may be negative."""
  return min(
    1.0,
    base(form, answer_suffix=answer_suffix)
    + anchor_weight * anchor(form, unclosed_penalty=unclosed_penalty),
  )


def compliant(episode: Episode) -> bool:
  """Returns whether every turn is a closed think followed by calls or by one answer only.

  The calls must be well-formed and the answer non-blank. An episode without turns gives False.
  """
  return bool(episode.turns) and all(turn_compliant(turn.text) for turn in episode.turns)


def turn_compliant(text: str) -> bool:
  """Returns `compliant` for the text of one turn, pinned prefix included."""
  thinks = tags.thinks(text)
  if len(thinks) != 1 or not thinks[0].closed or text[: thinks[0].start].strip():
    return False
  rest = text[thinks[0].end :]
  if tags.THINK_CLOSE in rest:
    return False
  items, left = toolcalls.parse(rest), toolcalls.without_blocks(rest).strip()
  if items:
    return not left and all(map(toolcalls.is_well_formed, items))
  answers = tags.answers(left)
  if len(answers) != 1 or not answers[0].closed:
    return False
  body = answers[0].body
  return (
    left == f'{tags.ANSWER_OPEN}{body}{tags.ANSWER_CLOSE}'
    and bool(body.strip())
    and not tags.ANY_TAG.search(body)
  )


def _texts(turns: Sequence[Turn]) -> list[tuple[int, str]]:
  return [(index, turn.text) for index, turn in enumerate(turns)]


def _precedes(earlier: Sequence[Place], later: Sequence[Place]) -> bool:
  """Returns whether any place in `earlier` is before or at any place in `later`."""
  return bool(earlier) and bool(later) and min(earlier) <= max(later)
