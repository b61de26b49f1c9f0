"""Step 5: parses a model's reply into a question, or gives the reason for rejecting it. Pure and
strict: a reply that differs from the requested format is rejected with a reason.

QUESTION: ...            each header once and in this order, alone on its line or with its text after it
OPTIONS:
A. ...                   A to D, each once and in order
ANSWER: B                the letter; what follows it must be that option
REASONS:
[10 to 20] ...           one or more blocks, each opened by a line that begins with the window it cites
"""

import re

from paravt_jax.longvideo_reason.items import Question, Rejected, Step

LETTERS = 'ABCD'
SECTIONS = ('QUESTION', 'OPTIONS', 'ANSWER', 'REASONS')
# what markdown puts around a line; taken off first, so that every pattern below is quick on any
# text
_MARKS = ' \t\r\f\v#>*_`'
_HEADER = re.compile(rf'({"|".join(SECTIONS)})[*_ ]*:(.*)')
_OPTION = re.compile(r'\(?([A-Za-z]) ?[.):](.*)')
_ANSWER = re.compile(r'\(?([A-Z])(?![A-Za-z0-9])[.):,]*')
_NUMBER = re.compile(r'(?:step )?\d{1,4} ?[.:)]', re.IGNORECASE)
_CLOCK = re.compile(r'(?:(\d+):)?(?:(\d+):)?(\d+(?:\.\d+)?)\s*(?:s|sec|seconds)?', re.IGNORECASE)
_TO = re.compile(r'\s+to\s+', re.IGNORECASE)
_DASH = re.compile(r'\s*[-–]\s*')
_BULLET = re.compile(r'(?:[-•]|\d{1,4}[.)]) ')
_LONGEST = 60  # characters inside the brackets of a window
MARKUP = re.compile(
  r'</?(?:think|answer|tool_call|tool_code|tool_response|tools|video|image)>|<\|[^|<>]*\|>',
  re.IGNORECASE,
)
_VERDICT = re.compile(
  r'\b(?:answer|option|choice)\b(?:\s+(?:is|would be|must be))?\s*:?\s*\(?\b([A-D])\b(?!\s+[a-z])'
)
_SLACK = 1.0  # seconds by which a window may overstep the video's end; it is cut there


def without_think(text: str) -> str | Rejected:
  """Returns the reply without the model's own thoughts: the text after its last `</think>`. An
  unclosed think hides the reply.
  """
  before, closed, after = text.rpartition('</think>')
  if '<think>' in after:
    return Rejected('unclosed_think', 'the reply ends inside <think>', text)
  return after if closed else text


def parse(reply: str, duration: float) -> Question | Rejected:
  """Returns the question of a reply, or a Rejected with one of these reasons.

  'unclosed_think', 'markup' (tags or special tokens of ours), 'no_question', 'no_options',
  'no_answer', 'no_reasons', 'repeated_section', 'wrong_order', 'options_in_question',
  'bad_options', 'same_options', 'bad_answer', 'answer_mismatch', 'no_window', 'bad_window',
  'window_outside', 'empty_reason', 'contradiction'.

  Args:
    reply: the model's text.
    duration: of the video, seconds; cited windows lie inside it.
  """
  text = without_think(reply)
  if isinstance(text, Rejected):
    return text
  try:
    return _parse(text, duration)
  except _Bad as bad:
    return Rejected(bad.reason, bad.detail, reply)


class _Bad(Exception):
  """Carries the fault of a reply out of `parse`."""

  def __init__(self, reason: str, detail: str):
    super().__init__(reason)
    self.reason, self.detail = reason, detail[:200]


def _parse(text: str, duration: float) -> Question:
  if found := MARKUP.search(text):
    raise _Bad('markup', f'the reply holds {found.group()}')
  sections = _sections(text)
  question = ' '.join(sections['QUESTION'].split())
  if any(
    (found := _option(line)) and found[0] in LETTERS for line in sections['QUESTION'].split('\n')
  ):
    raise _Bad('options_in_question', question)
  options = _options(sections['OPTIONS'])
  answer = _answer(sections['ANSWER'], options)
  steps = _steps(sections['REASONS'], duration)
  letter = last_letter(' '.join(reason for step in steps for reason in step.reasons))
  if letter not in (None, answer):
    raise _Bad('contradiction', f'the answer is {answer}, the reasons end with {letter}')
  return Question(question, options, answer, steps)


def last_letter(text: str) -> str | None:
  """Returns the letter that a reasoning names last as the answer ('the answer is B', 'option B'),
  or None if it names no letter.
  """
  named = _VERDICT.findall(' '.join(text.split()))
  return named[-1] if named else None


def _sections(text: str) -> dict[str, str]:
  """Section name -> its text, stripped."""
  found: dict[str, list[str]] = {}
  current: list[str] | None = None
  for line in text.split('\n'):
    header = _HEADER.match(line.strip(_MARKS))
    if header and header[1] in found:
      raise _Bad('repeated_section', f'{header[1]} stands twice')
    if header:
      current = found[header[1]] = [header[2].strip(_MARKS)]
    elif current is not None:
      current.append(line)
  for name in SECTIONS:
    if not '\n'.join(found.get(name, ())).strip():
      raise _Bad(f'no_{name.lower()}', f'no {name} in the reply, or nothing in it')
  if tuple(found) != SECTIONS:
    raise _Bad('wrong_order', f'sections come as {", ".join(found)}')
  return {name: '\n'.join(lines).strip() for name, lines in found.items()}


def _options(text: str) -> tuple[str, ...]:
  """Returns the texts of the four options. A line without a letter continues the option before
  it.
  """
  letters, texts = [], []
  for line in filter(str.strip, text.split('\n')):
    option = _option(line)
    if option:
      letters.append(option[0])
      texts.append(option[1])
    elif texts:
      texts[-1] = f'{texts[-1]} {line.strip()}'
    else:
      raise _Bad('bad_options', f'a line before A: {line!r}')
  if ''.join(letters) != LETTERS or not all(map(str.strip, texts)):
    raise _Bad('bad_options', f'letters {"".join(letters)!r}, wanted {LETTERS} with a text each')
  if len({_normalize(option) for option in texts}) < len(texts):
    raise _Bad('same_options', ' | '.join(texts))
  return tuple(' '.join(option.split()) for option in texts)


def _option(line: str) -> tuple[str, str] | None:
  """(letter, text) of a line such as '- **B.** For his hat'."""
  found = _OPTION.match(line.strip(_MARKS).lstrip(f'{_MARKS}-•'))
  return (found[1], found[2].strip(_MARKS)) if found else None


def _answer(text: str, options: tuple[str, ...]) -> str:
  found = _ANSWER.match(text.strip(_MARKS))
  if not found or found[1] not in LETTERS:
    raise _Bad('bad_answer', f'{text!r:.80}, wanted one letter of {LETTERS}')
  rest = text.strip(_MARKS)[found.end() :].strip(_MARKS)
  if rest and _normalize(rest) != _normalize(options[LETTERS.index(found[1])]):
    raise _Bad(
      'answer_mismatch', f'{text!r:.80}, but {found[1]} is {options[LETTERS.index(found[1])]!r}'
    )
  return found[1]


def _steps(text: str, duration: float) -> tuple[Step, ...]:
  steps: list[tuple[float, float, list[str]]] = []
  for line in filter(str.strip, text.split('\n')):
    block = _block(line)
    if block:
      steps.append((*_window(block[0], block[1], duration), [block[2]]))
    elif steps:
      steps[-1][2].append(line)
    else:
      raise _Bad('no_window', f'reasons begin with {line.strip()!r}, wanted [start to end]')
  found = tuple(
    Step(start, end, tuple(sentence for line in lines if (sentence := _sentence(line))))
    for start, end, lines in steps
  )
  if not all(step.reasons for step in found):
    raise _Bad('empty_reason', 'a window without a word about it')
  return found


def _block(line: str) -> tuple[str, str, str] | None:
  """(start, end, what follows) of a line that begins with a window: '[10 to 20] ...', '##### From
  [10 to 20]:', '2. [10 - 20] ...'.
  """
  text = line.lstrip(f'{_MARKS}-•')
  if number := _NUMBER.match(text):
    text = text[number.end() :].lstrip(_MARKS)
  if text[:5].lower() in ('from ', 'from['):
    text = text[4:].lstrip(_MARKS)
  inside, closed, rest = text[1:].partition(']')
  if not text.startswith('[') or not closed or len(inside) > _LONGEST:
    return None
  ends = _TO.split(inside.strip())
  ends = ends if len(ends) > 1 else _DASH.split(inside.strip())
  return (ends[0], ends[1], rest.lstrip(f'{_MARKS}:')) if len(ends) == 2 else None


def _window(first: str, last: str, duration: float) -> tuple[float, float]:
  start, end = time(first), time(last)
  if start is None or end is None or not start < end:
    raise _Bad('bad_window', f'[{first} to {last}], wanted start < end, in seconds')
  if end > duration + _SLACK or start >= duration:
    raise _Bad('window_outside', f'[{first} to {last}] of a video of {duration:.1f} s')
  return start, min(end, duration)


def time(text: str) -> float | None:
  """Seconds, MM:SS or HH:MM:SS, optionally with a unit; None for anything else."""
  found = _CLOCK.fullmatch(text) if len(text) <= 24 else None
  if not found:
    return None
  hours, minutes = (found[1], found[2]) if found[2] is not None else (None, found[1])
  return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(found[3])


def _sentence(line: str) -> str:
  return ' '.join(_BULLET.sub('', line.strip(_MARKS), count=1).strip(_MARKS).split())


def _normalize(text: str) -> str:
  return re.sub(r'[\W_]+', ' ', text).casefold().strip() or text
