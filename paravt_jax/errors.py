"""The errors that this project raises on purpose.

A message says where, what it got, what it wanted, and how to fix it.
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
  """A message cannot be tokenized as the chat template requires, or the tokenizer is unsuitable."""


class RolloutError(ParavtError):
  """A server refused a request or answered something that breaks the protocol."""


class SyncError(ParavtError):
  """Learner and server have different weights, or a weight version cannot be read."""


class CheckpointError(ParavtError):
  """A checkpoint is missing, incomplete, or its shapes differ from the model's."""


class AlarmError(ParavtError):
  """An alarm of the recipe (`watch.*`) with action 'stop' has ended the run."""
