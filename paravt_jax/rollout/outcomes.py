"""How a request to a model, or what is made of its reply, may fail. Values, counted by reason."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rejected:
  """A final verdict on an item: its input or the reply was no good. Kept, counted by `reason`, and
  not tried again.
  """

  reason: str
  detail: str
  reply: str = ''


@dataclasses.dataclass(frozen=True)
class Failed:
  """An item that could not be done this time (a server was lost, a deadline passed). Counted, and
  tried by the next run.
  """

  reason: str
  detail: str
