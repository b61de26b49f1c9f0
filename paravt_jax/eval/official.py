"""Reads and scores answers by the rules of the published drivers, to compare with their numbers.

Letters and times follow the released ParaVT driver (arXiv 2605.20342). LongVideo-Reason follows its
own script (arXiv 2507.07966). All quirks are deliberate: do not fix them here.
`paravt_jax.rewards.answer` reads answers without these quirks.
"""

import re
from collections.abc import Sequence

from paravt_jax.eval.sample import Sample

LETTERS = 'ABCDEFGHIJ'
RECALLS = (0.3, 0.5, 0.7)
_ANSWER = re.compile(r'<answer>(.*?)</answer>', re.DOTALL)
_ALONE = re.compile(r'\b([A-J])\b')
_STATED = re.compile(r'[aA]nswer\s*(?:is|:)\s*([A-J])')
_TIME_TAG = re.compile(r'<time>([^<]+)</time>')
_CLOCKS = re.compile(r'(\d+):(\d+(?:\.\d+)?)\s*[-–—]\s*(\d+):(\d+(?:\.\d+)?)')
_SECONDS = re.compile(r'(\d+\.?\d*)\s*[-–—]\s*(\d+\.?\d*)')
_START = re.compile(r'(?:start(?:ing)?|begin(?:ning)?)\s*(?:time)?[:\s]*(\d+\.?\d*)', re.IGNORECASE)
_END = re.compile(r'(?:end(?:ing)?|finish(?:ing)?)\s*(?:time)?[:\s]*(\d+\.?\d*)', re.IGNORECASE)
_NUMBER = re.compile(r'\d+\.?\d*')
_FORMAT = re.compile(r'<think>.*?</think>\s*<answer>.*?</answer>', re.DOTALL)
_THEREFORE = 'Therefore the final answer is:'
_THEREFORE_ANSWER = re.compile(rf'<answer>{_THEREFORE} (.*?)</answer>', re.DOTALL)


def letter(text: str) -> str:
  """Returns the option that the driver reads.

  The first match in this order is used:
    1. The first `<answer>`: its text if that is one letter, or its first separate A..J.
    2. The whole text, if it is one letter.
    3. The letter after "answer is" or "answer:".
    4. The first separate A..J.
    5. The first character. An empty text gives ''.
  """
  text = text.strip()
  tagged = _ANSWER.search(text)
  if tagged:
    inner = tagged[1].strip()
    if len(inner) == 1 and inner in LETTERS:
      return inner
    alone = _ALONE.search(inner)
    if alone:
      return alone[1]
  if len(text) == 1 and text in LETTERS:
    return text
  found = _STATED.search(text) or _ALONE.search(text)
  return found[1] if found else text[:1]


def times(text: str) -> tuple[float, float] | None:
  """Returns the (start, end) in seconds that the driver reads, or None.

  The pair is not always sorted. The first match in this order is used:
    1. A range with start < end in a `<time>` tag: `mm:ss - mm:ss` below one hour, or `a - b`.
    2. Such a range in the whole text. In both, only the first range of each form is read.
    3. The numbers after a start word and an end word.
    4. The first two numbers. Fewer than two numbers give None.
  """
  tag = _TIME_TAG.search(text)
  for target in ([tag[1]] if tag else []) + [text]:
    clocks = _CLOCKS.search(target)
    if clocks:
      start, end = int(clocks[1]) * 60 + float(clocks[2]), int(clocks[3]) * 60 + float(clocks[4])
      if start < end < 3600:
        return start, end
    plain = _SECONDS.search(target)
    if plain and float(plain[1]) < float(plain[2]):
      return float(plain[1]), float(plain[2])
  first, last = _START.search(text), _END.search(text)
  if first and last:
    return float(first[1]), float(last[1])
  numbers = _NUMBER.findall(text)
  return (float(numbers[0]), float(numbers[1])) if len(numbers) >= 2 else None


def iou(given: Sequence[float], gold: Sequence[float]) -> float:
  """Returns the intersection of two windows divided by their hull, in 0..1.

  For windows that overlap or touch, this is the usual IoU.
  """
  shared = max(0.0, min(given[1], gold[1]) - max(given[0], gold[0]))
  hull = max(given[1], gold[1]) - min(given[0], gold[0])
  return shared / hull if hull > 0 else 0.0


def follows_format(text: str) -> bool:
  """Whether a response has LongVideo-Reason's format.

  It must begin with `<think>...</think>` and then `<answer>...</answer>`.
  """
  return _FORMAT.match(text) is not None


def recalls(overlap: float) -> dict[str, float]:
  """Returns {'iou', 'r@0.3', 'r@0.5', 'r@0.7'} of one sample. A recall is 1 if IoU >= threshold."""
  return {
    'iou': overlap,
    **{f'r@{threshold:g}': float(overlap >= threshold) for threshold in RECALLS},
  }


def score_letter(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy'}.

  Like the driver, this function also reads a letter from open-ended rows, so almost all of them are
  wrong. If two options equal the gold text, only the first letter is right. If no option equals it,
  no answer is right.
  """
  return {'accuracy': float(not sample.unanswerable and letter(text) == sample.task.answer)}


def score_mmvu(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy'} as `score_letter` does.

  A multiple-choice row repeats the value as 'accuracy_mcq'.
  """
  found = score_letter(sample, text)
  return (
    {**found, 'accuracy_mcq': found['accuracy']} if sample.task.question_type == 'mcq' else found
  )


def score_times(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'iou', 'r@0.3', 'r@0.5', 'r@0.7'} against the gold 'start,end'."""
  if sample.unanswerable:
    return recalls(0.0)
  given, (start, end) = times(text), sample.task.answer.split(',')
  return recalls(iou(given, (float(start), float(end))) if given else 0.0)


def score_longvideo_reason(sample: Sample, text: str) -> dict[str, float]:
  """Returns {'accuracy', 'format'}.

  The text of the first `<answer>` must be exactly the gold letter. Without an `<answer>`, the whole
  text must be that letter.
  """
  pattern = _THEREFORE_ANSWER if _THEREFORE in text else _ANSWER
  tagged = pattern.search(text)
  given = (tagged[1] if tagged else text).strip()
  return {
    'accuracy': float(not sample.unanswerable and given == sample.task.answer),
    'format': float(follows_format(text)),
  }
