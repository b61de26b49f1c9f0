"""What servers that call themselves OpenAI-compatible do differently: parameters they refuse,
errors and texts they wrap.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

# Phrases of refusals of an unknown parameter, or of any value but the default.
_UNKNOWN = re.compile(
  r'unsupported|n[o\']t support|unrecogni[sz]ed|unknown|not permitted|not allowed|not '
  r'accepted|extra_forbidden|extra (?:inputs|fields)|'
  r'extraneous|unexpected|deprecated|cannot (?:both )?be (?:set|specified|used)|invalid '
  r'(?:parameter|field|argument)|cannot find field|'
  r'only the default|only be set|strictly positive|must be (?:greater|>|positive)|does not exist',
  re.IGNORECASE,
)
# Phrases of refusals of one request that asks for too much; other requests may succeed.
_TOO_MUCH = re.compile(
  r'context|too (?:large|long|many|high)|exceed|at most|maximum', re.IGNORECASE
)
_INSTEAD = re.compile(r'unsupported|instead', re.IGNORECASE)
_LENGTHS = ('max_tokens', 'max_completion_tokens')


class Dialect:
  """The learned changes of our parameters for a server: another name, or omission."""

  def __init__(self):
    self._instead: dict[str, str | None] = {}

  def translate(self, own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our parameters under the server's names, without those that it refuses."""
    taken = {}
    for name, value in own.items():
      wire = self._instead.get(name, name)
      if wire is not None:
        taken[wire] = value
    return taken

  def learn(self, refusal: str, own: Collection[str], sent: Collection[str]) -> str:
    """What is done from now on, in words, if a refusal blames a parameter of ours that was sent; ''
    when it does not.

    own: our parameters that the user has not set. At most twice per parameter, since each step
    leaves a name behind.
    """
    for name in sorted(own):
      wire = self._instead.get(name, name)
      if wire is None or wire not in sent or not blames(refusal, wire, sent):
        continue
      self._instead[name] = 'max_completion_tokens' if wire == 'max_tokens' else None
      return (
        f'{wire} is sent as {self._instead[name]}'
        if self._instead[name]
        else f"{wire} is left out (the server's own acts)"
      )
    return ''


def blames(refusal: str, name: str, sent: Collection[str]) -> bool:
  """Whether a refusal says that the server does not take this parameter; of several that it names,
  the first is meant.
  """
  named = _param(refusal)
  if named is None:
    places = {
      other: found.start() for other in sent if (found := re.search(_mention(other), refusal))
    }
    named = min(places, key=lambda other: places[other]) if places else ''
  if name != named or not _UNKNOWN.search(refusal):
    return False
  return name not in _LENGTHS or not _TOO_MUCH.search(refusal) or bool(_INSTEAD.search(refusal))


def _mention(name: str) -> str:
  """A pattern for a parameter's name; one that is a word of every refusal counts in quotes only."""
  word = re.escape(name)
  return rf'[\'"`]{word}[\'"`]' if name in ('model', 'messages') else rf'(?<![\w.]){word}(?!\w)'


def _param(refusal: str) -> str | None:
  """OpenAI's `error.param`, None where a refusal has none."""
  try:
    found = orjson.loads(refusal)['error']['param']
  except (orjson.JSONDecodeError, KeyError, TypeError):
    return None
  return found if isinstance(found, str) and found else None


def error_in(content: bytes) -> int:
  """The status of an error that came with status 200, as gateways pass them on; 200 when there is
  none.
  """
  if b'"error"' not in content[:4096]:
    return 200
  try:
    body = orjson.loads(content)
  except orjson.JSONDecodeError:
    return 200
  if not isinstance(body, dict) or not body.get('error') or body.get('choices'):
    return 200
  code = body['error'].get('code') if isinstance(body['error'], dict) else body.get('code')
  code = int(code) if isinstance(code, str) and code.isdecimal() and len(code) == 3 else code
  return code if type(code) is int and 400 <= code < 600 else 500


def message_text(content: Any) -> Any:
  """The text of a message's content: as it is, or of a list of parts the texts joined, thoughts
  left out.
  """
  if not isinstance(content, list):
    return content
  parts = [
    part
    for part in content
    if not (isinstance(part, dict) and part.get('type') in ('thinking', 'reasoning'))
  ]
  if not all(isinstance(part, dict) and isinstance(part.get('text'), str) for part in parts):
    return content
  return ''.join(part['text'] for part in parts)
