"""Every error this project raises on purpose. A message says where, what it got, what it wanted,
and the way out.
"""


class ParavtError(Exception):
  """Base of all; an entry point prints it as one line and exits with status 2."""


class ConfigError(ParavtError):
  """A knob is unknown, of the wrong type, or has a value that is not allowed."""


class DataError(ParavtError):
  """A row, an archive or a file of a data set breaks its schema or is missing."""


class MediaError(ParavtError):
  """A video or image cannot be read. `reason` is a short, countable word."""

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):
    return type(self), (str(self), self.reason)


class ChatError(ParavtError):
  """A tokenizer or a message cannot be turned into tokens as the template wants."""


class RolloutError(ParavtError):
  """A server refused a request or answered something that breaks the protocol."""


class SyncError(ParavtError):
  """Learner and server do not hold the same weights, or a weight version cannot be read."""


class CheckpointError(ParavtError):
  """A checkpoint is missing, half written, or of another shape than the model."""
