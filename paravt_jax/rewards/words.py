"""Scores open-ended answers by comparing normalised tokens.

The functions are pure and raise no exception. Normalisation keeps signs that change the meaning: 5,
-5, 5% and 1/2 differ from each other and from 12, C from C++, A/B from AB, 3-5 from 35. It drops
punctuation that does not: "red-blue", "Red, blue!" and "the red blue" give the same tokens.
"""

import collections
import decimal
import re
import unicodedata

_ARTICLES = frozenset({'a', 'an', 'the'})
_KEPT = frozenset('/+#^<>=')  # never stripped
_KEPT_BY_NUMBERS = frozenset('%‰$')  # other currency signs and the degree sign are not punctuation
_QUOTES = re.compile('["\'`´‘’‚‛“”„‟«»‹›]')
_DASHES = re.compile('[\u2010-\u2015\u2212\ufe58\ufe63\uff0d]')
_SUPERSCRIPT = re.compile('[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+')
_PLAIN = str.maketrans('⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹', '+-0123456789')
_THOUSANDS = re.compile(r'(?<![\d.,])(\d{1,3}(?:,\d{3})+)(?![\d,]*\d)')
_DETACHED = re.compile(r'(?<=\d)\s+(?=[%‰°]|[$€£¥₩₹](?!\s*\d))')  # "5 %" is 5%, "5 €" is 5€
_DETACHED_SIGN = re.compile(r'([$€£¥₩₹])\s+(?=\d)')
_NUMBER = re.compile(r'([-+]?)([$€£¥₩₹]?)([-+]?)((?:[0-9]+\.?[0-9]*)|(?:\.[0-9]+))([%°$€£¥₩₹]?)')
_SEPARATORS = re.compile(r'[\s,]+')


def normalise(text: str) -> list[str]:
  """Returns the normalised tokens of a text, in order.

  Tokens are lower case. Articles are dropped unless no other token is left. Spaces, and commas and
  hyphens between words, separate tokens. Quotes and punctuation at a token's ends are removed,
  except / + # ^ < > =. A token with a digit keeps its sign, point, inner - and :, and its %, degree
  or currency sign. Plain numbers have one spelling (.5 is 0.5, 1,000 is 1000). A text of only
  punctuation is split at its spaces and not changed otherwise.
  """
  text = _SUPERSCRIPT.sub(
    lambda match: '^' + match[0].translate(_PLAIN), unicodedata.normalize('NFC', text)
  )
  text = _QUOTES.sub('', _DASHES.sub('-', text)).lower()
  text = _DETACHED_SIGN.sub(
    r'\1', _DETACHED.sub('', _THOUSANDS.sub(lambda match: match[1].replace(',', ''), text))
  )
  tokens = [token for word in _SEPARATORS.split(text) for token in _tokens(word) if token]
  if not tokens:
    return text.split()
  return [token for token in tokens if token not in _ARTICLES] or tokens


def _tokens(word: str) -> list[str]:
  """Splits a word without spaces and commas into tokens; some may be empty."""
  if any(char.isdigit() for char in word):
    return [_number(_strip_punctuation(word, numeric=True))]
  return [_strip_punctuation(part, numeric=False) for part in word.split('-')]


def _strip_punctuation(token: str, numeric: bool) -> str:
  """Removes the punctuation at a token's ends."""
  start, end = 0, len(token)
  while (
    start < end
    and _is_stripped(token[start], numeric)
    and not (numeric and _begins_number(token, start))
  ):
    start += 1
  while end > start and _is_stripped(token[end - 1], numeric):
    end -= 1
  return token[start:end]


def _is_stripped(char: str, numeric: bool) -> bool:
  """Returns whether a character is stripped from a token's ends."""
  if char in _KEPT or (numeric and char in _KEPT_BY_NUMBERS):
    return False
  return unicodedata.category(char).startswith('P') or char in '$|~^`'


def _begins_number(token: str, at: int) -> bool:
  """Returns whether the sign or point at `at` belongs to the number after it."""
  behind = token[at + 1 : at + 3]
  if token[at] == '.':
    return behind[:1].isdigit() and not token[at - 1 : at].isdigit()
  return token[at] == '-' and (
    behind[:1].isdigit()
    or unicodedata.category(behind[:1] or ' ') == 'Sc'
    or (behind[:1] == '.' and behind[1:].isdigit())
  )


def _number(token: str) -> str:
  """Returns a plain number with its sign and unit in the standard spelling.

  Any other token is returned unchanged.
  """
  match = _NUMBER.fullmatch(token)
  if not match or len(token) > 400:
    return token
  sign, before, inner, digits, behind = match.groups()
  value = decimal.Decimal(digits)
  plain = format(value, 'f')
  plain = plain.rstrip('0').rstrip('.') if '.' in plain else plain
  plain = plain.lstrip('0') or '0'
  plain = f'0{plain}' if plain.startswith('.') else plain
  minus = '-' if '-' in (sign + inner) and value else ''
  return f'{minus}{before}{plain}{behind}'


def token_f1(prediction: str, gold: str) -> float:
  """Returns F1 over multisets of normalised tokens, 0..1 (Rajpurkar et al. 2016).

  Returns 0.0 when either side has no token.
  """
  given, wanted = normalise(prediction), normalise(gold)
  shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  return 2.0 * shared / (len(given) + len(wanted)) if shared else 0.0


def exact_match(prediction: str, gold: str) -> float:
  """Returns 1.0 when both texts have the same normalised tokens in the same order, else 0.0.

  Returns 0.0 when there is no token.
  """
  given = normalise(prediction)
  return float(bool(given) and given == normalise(gold))
