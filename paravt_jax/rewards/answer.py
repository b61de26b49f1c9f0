"""What the answer of a turn is, and how right it is: letters, time windows, short texts. Pure, and never an exception."""

import collections
import math
import re
import string
import unicodedata

from paravt_jax.chat import tags, toolcalls

LETTERS = 'ABCDEFGHIJ'
_CONTROL = re.compile(r'<\|[A-Za-z_]+\|>')
_RESPONSE = re.compile(r'<tool_response>.*?(?:</tool_response>|\Z)', re.DOTALL)


def extract_answer(text: str) -> str:
  """The answer in one turn's text, stripped.

  The last `<answer>` block after the last `</think>` (an unclosed one runs to the end); without one, what follows the last
  `</think>` minus tool blocks and special tokens; without a `</think>` either, ''.
  """
  tail = text[tags.after_think(text):]
  _, opened, rest = tail.rpartition(tags.ANSWER_OPEN)
  if opened:
    body, closed, _ = rest.partition(tags.ANSWER_CLOSE)
    return (body if closed else _CONTROL.sub('', body)).strip()
  if tags.THINK_CLOSE not in text:
    return ''
  return said(tail)


def said(text: str) -> str:
  """What a text says in words: without tool blocks, tool responses and special tokens, stripped."""
  return _CONTROL.sub('', _RESPONSE.sub('', toolcalls.without_blocks(text))).strip()


# Multiple choice. A word's edges are anything but letters and digits, so that **B**, _B_ and $B$ hold a B.
_EDGE, _EDGE_AFTER = r"(?<![^\W_])(?<![^\W_]['’])", r"(?![^\W_])(?!['’][^\W_])"
_UPPER = re.compile(rf'{_EDGE}([A-J]){_EDGE_AFTER}')
# What follows A or I when they are words: a lower-case word, though not the "or" of "A or B".
_ARTICLE = re.compile(r'(?:[ \t]+|-)(?!(?:or|and)\W+[A-J](?![^\W_]))[^\W\d_A-Z]')
_WHOLE = re.compile(r'\s*([a-j])\s*')
_BRACKETED = re.compile(r'(?<![^\W_])[(\[{]\s*([a-j])\s*[)\]}]')
_FIRST = re.compile(r'\s*([a-j])\s*(?:[):]|\.(?![^\W_]))')
_STATEMENT = re.compile(r'\b(?:answer\s+is|answer\s*:|options?)(?![^\W_])', re.IGNORECASE)
_NAMED = re.compile(rf'[\W_]{{0,9}}?{_EDGE}([A-J]){_EDGE_AFTER}')
_JOINED = re.compile(
    r'[\s)\]}*_."\']*(?:,|/|&|-|\b(?:or|and)\b)(?:[\s,(\[{*_"\']|\bor\b|\band\b|\boptions?\b)*([A-Ja-j])' + _EDGE_AFTER)


def choice_accuracy(prediction: str, gold: str, num_options: int) -> float:
  """1.0 when the letter that `prediction` chooses is `gold` and one of the first `num_options` letters of A..J, else 0.0."""
  chosen = chosen_letter(prediction)
  right = gold.strip(' \n()[].:').upper()
  return float(chosen is not None and chosen == right and chosen in LETTERS[:max(num_options, 0)])


def chosen_letter(text: str) -> str | None:
  """The letter A..J that a text chooses, upper case; None when it names none, or several without deciding.

  The last statement ("answer is", "answer:", "option" and a letter) wins, unless it joins two letters. Without a statement,
  upper-case letters count as whole words (A and I not before a lower-case word), lower-case ones only as the whole text,
  bracketed, or first before `.`, `)` or `:`.
  """
  stated = None
  for statement in _STATEMENT.finditer(text):
    named = _named(text, statement)
    if named is not None:
      stated = named
  if stated is not None:
    letter, end = stated
    joined = _JOINED.match(text, end)
    return None if joined and _is_letter(text, joined) and joined.group(1).upper() != letter else letter
  letters = {letter for letter, _ in _letters(text)}
  return letters.pop() if len(letters) == 1 else None


def _named(text: str, statement: re.Match[str]) -> tuple[str, int] | None:
  """(letter, index behind it) that a statement names right after itself, None when it names none."""
  at = statement.end()
  upper = _NAMED.match(text, at)
  if upper:
    # "Answer: A man walks" speaks of a man, "the answer is A because" of option A; I is a pronoun.
    noun = upper.group(1) == 'I' or (statement.group()[0] in 'aA' and ':' in text[statement.start():upper.start(1)])
    if not (noun and upper.group(1) in 'AI' and _ARTICLE.match(text, upper.end())):
      return upper.group(1), upper.end()
  line = text[at:].partition('\n')[0]
  lead = len(line) - len(line.lstrip(' \t:*_"\''))
  lower = _WHOLE.fullmatch(line, lead) or _FIRST.match(line, lead) or _BRACKETED.match(line, lead)
  return (lower.group(1).upper(), at + lower.end()) if lower else None


def _letters(text: str) -> list[tuple[str, int]]:
  """(letter, index) of every mention that counts without a statement."""
  found = [(m.group(1), m.start()) for m in _UPPER.finditer(text)
           if not (m.group(1) in 'AI' and _ARTICLE.match(text, m.end()))]
  lower = [_WHOLE.fullmatch(text), _FIRST.match(text), *_BRACKETED.finditer(text)]
  return found + [(m.group(1).upper(), m.start(1)) for m in lower if m]


def _is_letter(text: str, joined: re.Match[str]) -> bool:
  """Whether the second letter of a pair is meant as one: "A or a dog" and "B, A man walks" join nothing."""
  letter = joined.group(1)
  if letter.islower():
    return _WHOLE.fullmatch(text[joined.start(1):]) is not None or text[joined.end():joined.end() + 1] in tuple(')]}')
  return not (letter in 'AI' and _ARTICLE.match(text, joined.end()))


# Temporal grounding.
_CLOCK = r'[0-9]+:[0-5][0-9](?::[0-5][0-9])?(?:\.[0-9]+)?'
_UNIT = r'(?:s|secs?|seconds?|mins?|minutes?|hrs?|hours?)'


def _time(name: str) -> str:
  """A pattern for one time: groups `name` (the number or clock) and `name_unit`. What surrounds it makes it whole."""
  return rf'(?P<{name}>{_CLOCK}|[0-9]+(?:\.[0-9]+)?)(?:\s*(?P<{name}_unit>{_UNIT}))?'


_JOIN = r'\s*(?:[-–]|\bto\b|\band\b)\s*'
_BRACKET_PAIR = re.compile(rf'[\[({{]\s*{_time("a")}(?:\s*,\s*|{_JOIN}){_time("b")}\s*[\])}}]', re.IGNORECASE)
_RANGE = re.compile(
    rf'(?<![\w.–-])(?<![0-9][:,]){_time("a")}{_JOIN}{_time("b")}(?![\w%])(?![.:,–-][0-9])', re.IGNORECASE)
_PAIR = re.compile(rf'\s*{_time("a")}\s*,\s*{_time("b")}\s*', re.IGNORECASE)
_FACTORS = {'m': 60.0, 'h': 3600.0, 's': 1.0}


def temporal_iou(prediction: str, gold: str | tuple[float, float] | list[float]) -> float:
  """Intersection over union, 0..1, of the window that `prediction` names and `gold` ('a,b', '[a, b]' or two numbers, seconds).

  Malformed, fewer than two times, or end <= start on either side: 0.0.
  """
  given, wanted = time_window(prediction), _gold_window(gold)
  if given is None or wanted is None:
    return 0.0
  shared = min(given[1], wanted[1]) - max(given[0], wanted[0])
  return max(shared, 0.0) / (max(given[1], wanted[1]) - min(given[0], wanted[0]))


def time_window(text: str) -> tuple[float, float] | None:
  """(start, end) in seconds of the last bracketed pair; without one of the last range with a unit, else of the last range.

  None when there is none, or that one does not end after it starts.
  """
  ranges = list(_RANGE.finditer(text))
  kinds = (list(_BRACKET_PAIR.finditer(text)), [m for m in ranges if m['a_unit'] or m['b_unit']], ranges)
  for found in kinds:
    if found:
      return _window(found[-1])
  return None


def _gold_window(gold: str | tuple[float, float] | list[float]) -> tuple[float, float] | None:
  """A gold window as (start, end), None when it is none."""
  if isinstance(gold, str):
    pair = _PAIR.fullmatch(gold)
    return _window(pair) if pair else time_window(gold)
  if not hasattr(gold, '__len__') or len(gold) != 2:
    return None
  return _ordered(*(toolcalls.seconds(end.item() if hasattr(end, 'item') else end) for end in gold))


def _window(match: re.Match[str]) -> tuple[float, float] | None:
  """The window of two matched times; a unit on the second also holds for a first that has none."""
  unit = match['b_unit'] or 's'
  return _ordered(_seconds(match['a'], match['a_unit'] or unit), _seconds(match['b'], unit))


def _seconds(number: str, unit: str) -> float:
  """Seconds of a clock (its unit says nothing) or of a number with a unit."""
  parts = [float(part) for part in number.split(':')]
  if len(parts) == 1:
    return parts[0] * _FACTORS[unit[0].lower()]
  return sum(part * 60.0**place for place, part in enumerate(reversed(parts)))


def _ordered(start: float | None, end: float | None) -> tuple[float, float] | None:
  """(start, end) when both are finite and start < end."""
  if start is None or end is None or not (math.isfinite(start) and math.isfinite(end) and start < end):
    return None
  return start, end


# Open-ended.
_ARTICLES = frozenset({'a', 'an', 'the'})
_POINT = re.compile(r'(?<=[0-9])\.(?=[0-9])')


def normalise(text: str) -> list[str]:
  """Tokens: lower case, punctuation deleted (points inside decimals kept), articles dropped."""
  kept = _POINT.sub('\0', text.replace('\0', ' ').lower())
  kept = ''.join(c for c in kept if c not in string.punctuation and not unicodedata.category(c).startswith('P'))
  return [token for token in kept.replace('\0', '.').split() if token not in _ARTICLES]


def token_f1(prediction: str, gold: str) -> float:
  """F1 over multisets of normalised tokens, 0..1; 0.0 when either side has no token left (Rajpurkar et al. 2016)."""
  given, wanted = normalise(prediction), normalise(gold)
  shared = sum((collections.Counter(given) & collections.Counter(wanted)).values())
  return 2.0 * shared / (len(given) + len(wanted)) if shared else 0.0


def exact_match(prediction: str, gold: str) -> float:
  """1.0 when both sides have the same normalised tokens in the same order, and at least one; else 0.0."""
  given = normalise(prediction)
  return float(bool(given) and given == normalise(gold))
