"""Reads and scores answers by the rules of lmms-eval, for comparison with its published numbers.

The rules match its tasks as of August 2026. The letter rules match the May release, which ParaVT's
code includes. All quirks are deliberate: do not fix them here. Where lmms-eval draws a random
letter or asks a judge, the answer counts as wrong here.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence

from paravt_jax.eval import official
from paravt_jax.eval.sample import Sample

FOUR, FIVE = 'ABCD', 'ABCDE'
_THOUGHTS = (('<think>', '</think>'), ('<analysis>', '</analysis>'))
_EDGES = (',', '.', '!', '?', ';', ':', "'", '"')
_PHRASES = (
  *(
    f'{article}{what} is'
    for article in ('the ', '')
    for what in (
      'answer',
      'correct answer',
      'best answer',
      'correct option',
      'best option',
      'choice',
      'correct choice',
    )
  ),
  'my answer is',
  'my choice is',
  'i choose',
  'i select',
  'i pick',
  '옵션',
  '정답은',
  '답은',
  '답:',
  '答案是',
  '答案为',
  '选',
  '答えは',
)
_BEFORE_LETTERS = (
  'The best answer is',
  'The correct answer is',
  'The answer is',
  'The answer',
  'The best option is',
  'The correct option is',
  'Best answer:',
  'Best option:',
)
_EXAMPLE = 'a specific example is : 20.8 - 30.0 seconds'
_EVENT_WORDS = ('start', 'end', 'happen')
_NUMBER = r'\d+(?:\.\d+)?'
_CLOCK = r'\d{1,2}:\d{2}(?::\d{2})?'
_CLOCK_RANGE = re.compile(rf'\b({_CLOCK})\s*[–-]\s*({_CLOCK})\b')
_RANGE = re.compile(rf'({_NUMBER})\s*[–-]\s*({_NUMBER})')
_RANGE_IN_SECONDS = re.compile(rf'({_NUMBER})\s*s?\s*[–-]\s*({_NUMBER})\s*s?')
_ONE_CLOCK, _ONE_NUMBER = re.compile(rf'\b{_CLOCK}\b'), re.compile(rf'\b{_NUMBER}\b')
_POWERS = {power: f'^{digit}' for digit, power in enumerate('⁰¹²³⁴⁵⁶⁷⁸⁹')}
_ORDER = re.compile(r'o\s*\([^)]+\)')


def without_thoughts(text: str) -> str:
  """Returns the text without its closed thoughts.

  If a closing tag has no opening tag, the result is the text after the last closing tag.
  """
  for opened, closed in _THOUGHTS:
    while opened in text and closed in text:
      start = text.find(opened)
      end = text.find(closed, start)
      if end < 0:
        break
      text = text[:start] + text[end + len(closed) :]
    if closed in text and opened not in text:
      text = text.rpartition(closed)[2]
  return text.strip()


def letter(text: str, choices: str = FOUR) -> str:
  """Returns the letter of a multiple-choice answer (Video-MME, LVBench, MLVU), '' for none.

  The rules apply in this order:
    1. The text begins with a letter, or ends with one.
    2. A letter follows a phrase such as "answer is", at any distance, even within a word.
    3. The text contains `(B)`, `B.`, `B:`, `B)`, or `B` with a space, in that order.
    4. A letter is part of any word.
  Within rules 2 to 4, the last position wins. After a phrase, only the first occurrence of each
  letter counts.
  """
  text = text.strip()
  for mark in _EDGES:
    text = text.strip(mark)
  bare, text = text.strip(), f' {text} '
  if not bare:
    return ''
  found = [one for one in choices if bare.startswith(one) and not bare[1:2].isalpha()]
  found = found or [one for one in choices if bare.endswith(one) and not bare[-2:-1].isalpha()]
  if found:
    return found[0]
  lower = text.lower()
  behind = [
    text.find(one, lower.find(phrase) + len(phrase))
    for phrase in _PHRASES
    if phrase in lower
    for one in choices
  ]
  if max(behind, default=-1) >= 0:
    return text[max(behind)]
  for kind in ('({})', '{}.', '{}:', '{})', '{} ', '{}'):
    at = {text.rfind(kind.format(one)): one for one in choices}
    if max(at) >= 0:
      return at[max(at)]
  return ''


def first_letter(text: str) -> str:
  """Returns the first capital A..E after phrases such as "The answer is" are removed.

  This is the rule of LongVideoBench. The result is '' for no letter, where lmms-eval draws a random
  one.
  """
  for phrase in _BEFORE_LETTERS:
    text = text.replace(phrase, '')
  return next((one for one in text if one in FIVE), '')


def times(text: str) -> tuple[float, float] | None:
  """Returns the (start, end) of a grounding answer, in seconds and sorted, or None.

  The text is split into lines at !, ? and line ends. Only lines that contain "start", "end" or
  "happen" are read, or all lines if none contains one. The first match in this order is used: a
  range of clock times, a range `a - b` ("to" counts as a dash), the first two clock times, the
  first numbers of two lines.
  """
  text = text.lower().replace(_EXAMPLE, '').replace('to', '-')
  lines = re.split(r'[!?\n]', text)
  lines = [line for line in lines if any(word in line for word in _EVENT_WORDS)] or lines
  first = next(_windows(lines), None)
  return None if first is None else (min(first), max(first))


def _windows(lines: Sequence[str]) -> Iterator[tuple[float, float]]:
  """Yields the candidate (start, end) pairs in seconds, best first."""
  for pattern, number in ((_CLOCK_RANGE, _seconds), (_RANGE, float)):
    yield from (
      (number(match[1]), number(match[2])) for match in map(pattern.search, lines) if match
    )
  clocks = [_seconds(clock) for line in lines for clock in _ONE_CLOCK.findall(line)]
  numbers = [float(match[0]) for match in map(_ONE_NUMBER.search, lines) if match]
  yield from ((found[0], found[1]) for found in (clocks, numbers) if len(found) >= 2)
  yield from (
    (float(match[1]), float(match[2])) for match in map(_RANGE_IN_SECONDS.search, lines) if match
  )


def _seconds(clock: str) -> float:
  return sum(float(part) * 60**place for place, part in enumerate(reversed(clock.split(':'))))


def chooses(text: str, gold: str, option: str) -> bool:
  """Whether MMVU's rule accepts a multiple-choice answer.

  Any of these conditions is enough:
    - The gold letter is a separate word, in either case.
    - The text contains the gold option.
    - The text contains the gold letter and a word (three letters or more) of the gold option.
  """
  lower, option = text.lower(), option.strip().lower()
  if re.search(rf'\b{gold}\b', text, re.IGNORECASE):
    # this includes the harness's rule that the first separate A..E is the gold letter
    return True
  words = [word.strip(string.punctuation) for word in option.split()]
  return (option != '' and option in lower) or (
    gold.lower() in lower and any(word in lower for word in words if len(word) > 2)
  )


def says(text: str, gold: str) -> bool:
  """Whether MMVU's rule, without its judge, accepts an open-ended answer.

  Any of these conditions is enough:
    - One text contains the other.
    - The first numbers of both texts differ by less than 0.01.
    - The gold text has two to five words, and the answer has all of them (three letters or more).
    - Both texts contain the same order O(...).
  """
  text, gold = (_raised(one.strip().lower()) for one in (text, gold))
  given, wanted = ' '.join(text.split()), ' '.join(gold.split())
  if wanted in given or given in wanted:
    return True
  numbers = [float(found[0]) for one in (text, gold) if (found := re.search(r'\d+\.?\d*', one))]
  if len(numbers) == 2 and abs(numbers[0] - numbers[1]) < 0.01:
    return True
  words, there = (
    [word for word in (part.strip(string.punctuation) for part in one.split()) if word]
    for one in (wanted, given)
  )
  if 2 <= len(words) <= 5 and all(word in there for word in words if len(word) > 2):
    return True
  orders = [found[0] for one in (given, wanted) if (found := _ORDER.search(one))]
  return len(orders) == 2 and orders[0] == orders[1]


def _raised(text: str) -> str:
  return ''.join(_POWERS.get(one, one) for one in text)


# Score functions. Each takes a sample and the text of the last turn.


def score_letter(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy'} for Video-MME, LVBench and MLVU. Only the letters A..D are read."""
  return _chosen(sample, lambda gold: letter(without_thoughts(text)) == gold)


def score_first_letter(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy'} for LongVideoBench."""
  return _chosen(sample, lambda gold: first_letter(without_thoughts(text)) == gold)


def score_mmvu(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy'} for MMVU, with the same value as 'accuracy_mcq' or 'accuracy_oe'."""
  task, bare = sample.task, without_thoughts(text)
  if task.question_type == 'oe':
    found = {'accuracy': float(not sample.unanswerable and says(bare, task.answer))}
  else:
    options = dict(zip(official.LETTERS, task.options))
    found = _chosen(sample, lambda gold: chooses(bare, gold, options.get(gold, '')))
  return {**found, f'accuracy_{task.question_type}': found['accuracy']}


def score_times(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'iou', 'r@0.3', 'r@0.5', 'r@0.7'} for Charades-STA."""
  given = times(without_thoughts(text))
  if given is None or sample.unanswerable:
    return official.recalls(0.0)
  start, end = sample.task.answer.split(',')
  return official.recalls(official.iou(given, (float(start), float(end))))


def _chosen(sample: Sample, right: Callable[[str], bool]) -> dict[str, float]:
  """Returns {'accuracy'}: 1.0 if `right` accepts any gold letter, 0.0 for an unanswerable row."""
  return {
    'accuracy': float(
      not sample.unanswerable and any(map(right, sample.golds or (sample.task.answer,)))
    )
  }
