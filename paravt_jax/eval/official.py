"""How the published drivers read an answer and score it, apart from our own rule, so that their
rows can be compared with ours.

Letters and times as in the released ParaVT driver (arXiv 2605.20342), LongVideo-Reason as in its
own script (arXiv 2507.07966). Every quirk is meant: do not fix them here,
`paravt_jax.rewards.answer` is where an answer is read as it should be.
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
  """The option that the driver reads: the single letter in the first `<answer>`, else the first
  stand-alone A..J inside it; else the whole text if it is one letter, else the one after "answer
  is" or "answer:", else the first stand-alone A..J, else the first character. An empty
  text gives ''.
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
  """(start, end) in seconds that the driver reads, not always in order; None when the text holds
  fewer than two numbers.

  In a `<time>` tag first, then in the whole text: the first `mm:ss` range that ends after it starts
  and within an hour, else the first `a - b` that does. Else the numbers after start and end words,
  else the first two numbers.
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
  """Intersection over the hull of two windows, 0..1; the same as over the union wherever they
  meet.
  """
  shared = max(0.0, min(given[1], gold[1]) - max(given[0], gold[0]))
  hull = max(given[1], gold[1]) - min(given[0], gold[0])
  return shared / hull if hull > 0 else 0.0


def follows_format(text: str) -> bool:
  """LongVideo-Reason's format: the response begins with `<think>...</think>` and then
  `<answer>...</answer>`.
  """
  return _FORMAT.match(text) is not None


def recalls(overlap: float) -> dict[str, float]:
  """{'iou', 'r@0.3', 'r@0.5', 'r@0.7'} of one sample; a threshold that is just reached counts."""
  return {
    'iou': overlap,
    **{f'r@{threshold:g}': float(overlap >= threshold) for threshold in RECALLS},
  }


def score_letter(sample: Sample, text: str) -> dict[str, float]:
  """{'accuracy'}. The driver reads a letter from open-ended rows too, and so nearly always finds
  them wrong; so does this. Of a gold text that stands twice it knows the first letter only; where
  the gold is nowhere, nothing is right.
  """
  return {'accuracy': float(not sample.unanswerable and letter(text) == sample.task.answer)}


def score_mmvu(sample: Sample, text: str) -> dict[str, float]:
  """{'accuracy'} as `score_letter` gives it, and of a multiple-choice row the same as
  'accuracy_mcq': what the driver's rule comes to where it applies.
  """
  found = score_letter(sample, text)
  return (
    {**found, 'accuracy_mcq': found['accuracy']} if sample.task.question_type == 'mcq' else found
  )


def score_times(sample: Sample, text: str) -> dict[str, float]:
  """{'iou', 'r@0.3', 'r@0.5', 'r@0.7'} against the gold 'start,end'."""
  if sample.unanswerable:
    return recalls(0.0)
  given, (start, end) = times(text), sample.task.answer.split(',')
  return recalls(iou(given, (float(start), float(end))) if given else 0.0)


def score_longvideo_reason(sample: Sample, text: str) -> dict[str, float]:
  """{'accuracy', 'format'}: the text of the first `<answer>`, or all of it, must be the gold letter
  and nothing else.
  """
  pattern = _THEREFORE_ANSWER if _THEREFORE in text else _ANSWER
  tagged = pattern.search(text)
  given = (tagged[1] if tagged else text).strip()
  return {
    'accuracy': float(not sample.unanswerable and given == sample.task.answer),
    'format': float(follows_format(text)),
  }
