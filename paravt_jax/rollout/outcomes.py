"""How a request to a model, or what is made of its reply, may fail. Values, counted by reason."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rejected:
  """An item whose input or reply was no good. It is not tried again."""

  reason: str  # a short word that can be counted
  detail: str  # what was wrong, in one line
  reply: str = ''  # the text that was rejected, where there is one


@dataclasses.dataclass(frozen=True)
class Failed:
  """An item that failed because of a lost server or a deadline. The next run retries it."""

  reason: str  # a short word that can be counted
  detail: str  # what happened, in one line
