"""Finds the letter that a text chooses in a multiple-choice question.

The functions are pure and raise no exception. They look for four kinds of evidence in order, and
the first kind that is present decides: an answer statement ("the answer is B", "B is correct"; the
last one wins), a letter that leads the text or its last line ("B. The man"), mentions of options
("option B"), standalone letters. A letter that a text rejects ("not A", "option A is wrong") never
counts.
"""

import re
from collections.abc import Iterator

LETTERS = 'ABCDEFGHIJ'

# A letter's edges are anything but letters and digits, so that (B), $B$ and {B} hold a B. Chinese
# and Japanese put no space between words: their characters are edges too ("答案是B").
_CJK = r'\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff'
_WORD = rf'[^\W_{_CJK}]'
_EDGE, _EDGE_AFTER = rf"(?<!{_WORD})(?<!{_WORD}['’])", rf"(?!{_WORD})(?!['’]{_WORD})"
_LETTER = rf'{_EDGE}[A-J]{_EDGE_AFTER}'
_UPPER = re.compile(_LETTER)
# What follows A or I when they are words: a lower-case word, though not the "or" of "A or B".
_ARTICLE = re.compile(rf'(?:[ \t]+|-)(?!(?:or|and)\W+[A-J](?!{_WORD}))[^\W\d_A-Z{_CJK}]')
_WHOLE = re.compile(r'\s*([a-j])\s*')
_BRACKETED = re.compile(rf'(?<!{_WORD})[(\[{{（【]\s*([a-j])\s*[)\]}}）】]')
_FIRST = re.compile(rf'\s*([a-j])\s*(?:[):）：、．]|\.(?!{_WORD}))')
_EMPHASIS = re.compile(r'[*`]+|(?<![^\W_])_+|_+(?![^\W_])')
_SPACES = re.compile(r'\s+')
_LEADING = re.compile(
  r'[\s(\[{（【"“$\\>#•-]{0,9}([A-J])["”)\]}）】$]{0,3}[ '
  rf'\t]*(?:(?<=[)\]}}）】])|[):：、．]|\.(?!{_WORD})|\n|\Z)'
)

_OPTIONS = r'(?:options?|choices?|answers?|letters?)'
_ITEM = rf'[(\["\']{{0,2}}{_LETTER}[)\]"\']{{0,2}}'
_COMMAS = rf'(?>{_ITEM}(?:\s?(?:,(?:\s?(?:and|or)\b)?|/|&|\band\b|\bor\b)\s?(?:{_OPTIONS}\s)?{_ITEM}){{0,9}})'
_OR = rf'{_ITEM}(?:(?:\s?,\s?{_ITEM}){{0,9}}\s?(?:,\s?)?(?:\bor\b|\bnor\b|\band\b|/|&)\s?(?:{_OPTIONS}\s)?{_ITEM})?'

# Rejected letters: by the words before the letter, by the name of a group of options ("the
# others"), or by the words after the letter.
_NOT = (
  r'(?:\b(?:not|nor|neither|never|over|(?<!other '
  r')than|instead\s+of|as\s+opposed\s+to|unlike(?:ly\s+to)?|except(?:\s+for)?|excluding|'
  r'versus|vs\.?|cannot|'
  r"eliminat\w{1,4}|rul(?:e|es|ed|ing)\s+out|reject\w{0,3}|discard\w{0,3}|exclud\w{1,3})|n['’]t)"
)
_FALSE = (
  r'(?:not|wrong|incorrect|false|invalid|unsupported|inaccurate|irrelevant|implausible|unlikely|inconsistent|mistaken|'
  r'misleading|eliminated|ruled\s+out|excluded|rejected|discarded|contradicted)\b'
)
_VERB = r'(?:is|are|was|were|seems?|looks?|appears?|can|could|must|should|may|might|would|do|does|did|has|have|had)'
_DENIED = rf"""\s*(?:\([^()\n]{{0,80}}\)\s*)?(?:\b{_VERB}(?:\s+(?:to\s+)?be|\s+both|\s+all|\s+also|\s+\w{{2,12}}ly){{0,2}}\s+{_FALSE}
  |\b(?:is|are|was|were|do|does|did|ca|could|would|has|have)n['’]t\b|\bcannot\b|\bwon['’]t\b|\bcontradicts?\b|\bfails?\b)"""
# "I don't think the answer is A", "I would not choose A": what is denied there is the verb.
_DENIED_VERB = (
  r'(?:(?:think|believe|say|feel)\s+(?:that\s+)?(?:(?:it|this|that|(?:the\s+)?(?:correct\s+|right\s+)?(?:answer|option|choice))'
  r"\s*(?:is|was|['’]s|(?:would|should|could|can)\s+be)\s+)?|choose\s+|select\s+|pick\s+|go\s+with\s+|opt\s+for\s+)?"
)
_SET_ASIDE = (
  re.compile(
    rf'{_NOT}\s+{_DENIED_VERB}(?:(?:be|the|either|any\s+of|quite|necessarily)\s+){{0,3}}'
    rf'(?:(?:other\s+)?{_OPTIONS}\s*)?{_OR}',
    re.IGNORECASE,
  ),
  re.compile(
    rf'(?:不是|不选|不应选|而非|并非|排除)\s?(?:选项|答案)?\s?{_ITEM}|{_ITEM}\s?(?:选项|项)?\s?是?(?:不正确|不对|错误|错的|不符)'
  ),
  re.compile(
    rf'\b(?:option|choice)\s{_ITEM},\s[^,.:;?!\n]{{1,80}},{_DENIED}', re.IGNORECASE | re.VERBOSE
  ),
  re.compile(
    rf'\b(?:others|(?:other|remaining)\s+(?:options|choices|answers|ones|letters)|'
    rf'(?:wrong|incorrect|false)\s+(?:{_OPTIONS}|ones?))\W{{0,3}}(?:(?:is|are|like|such\s+as)\b\W{{0,3}})?{_COMMAS}',
    re.IGNORECASE,
  ),
  re.compile(
    rf'(?<!is\s)(?<!:\s){_COMMAS}(?=\s*(?:\([^()\n]{{0,80}}\)\s*)?(?:are|were|do|have|can|could)\b){_DENIED}',
    re.IGNORECASE | re.VERBOSE,
  ),
  re.compile(rf'{_ITEM}{_DENIED}', re.IGNORECASE | re.VERBOSE),
)

# Answer statements. Only a few signs and words such as "option" may separate one from its letter.
_IS = r'(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be)(?![^\W_])'
_SUBJECT = (
  r"(?:\b(?:I|we|one|let\s+us|so|thus|therefore)|\b(?:I|we)['’](?:d|ll|m|ve|re)|\blet['’]s)"
)
_STATEMENT = re.compile(
  rf"""\b(?:\w{{2,9}}\s+)?(?:answer|choice|selection|option)\b(?!\s(?:choices|options)\b)(?:[^.:;?!\n]{{0,60}}?\b{_IS}\s*:?|\s*(?::|=|->|→))
  |\b(?:final|correct|right|best|my)[ ](?:answer|option|choice)\b
  |答案(?:应该|应|就)?[是为选]?\s*[:：]?|(?<![不可])(?:选择|应选|选)(?!项)
  |{_SUBJECT}\s+(?:(?:would|will|must|should|have\s+to|can|shall|therefore|also|am|are|have|then)\s+){{0,2}}
   (?:choose|chose|choosing|chosen|select(?:ed|ing)?|pick(?:ed|ing)?|go(?:ing)?\s+with|went\s+with|opt(?:ed|ing)?\s+for|
   conclude|answer|say)\b(?:\s+that)?
  |\\boxed""",
  re.IGNORECASE | re.VERBOSE,
)
_NAMED = re.compile(
  rf'(?:(?:[^\w.?!]|_){{0,9}}?\b(?i:the|option|choice|letter|answer|text)\b){{0,3}}(?:[^\w.?!]|_){{0,9}}?{_EDGE}([A-J]){_EDGE_AFTER}'
)
_CORRECT = re.compile(
  rf"""(?P<items>{_COMMAS})\s*(?:\([^()\n]{{0,80}}\)\s*)?(?!\b(?:are|were)\b)(?:\b(?:{_IS}|(?:seems?|looks?|appears?)(?:\s+to\s+be)?)|['’]s)
  \s+(?:(?:the|clearly|definitely|indeed|therefore|thus|also|most|more|only|likely|probably|single|very)\s+){{0,4}}
  (?:correct|right|true|accurate|best|answer|appropriate|plausible|likely)\b(?!\s+about)""",
  re.VERBOSE,
)
_JOINED = re.compile(
  r'[\s)\]}."\']*(?:,|/|&|-|\+|\(?\b(?:or|and)\b)(?:[\s,(\[{"\'/]|\b(?:or|and|options?|possibly|maybe|perhaps|even)\b)*([A-Ja-j])'
  + _EDGE_AFTER
)
_MENTION = re.compile(rf'\b(?i:options?|choices?|letters?)(?:\s|[:(\["\']){{1,3}}({_COMMAS})')


def choice_accuracy(prediction: str, gold: str, num_options: int) -> float:
  """Returns 1.0 if `prediction` chooses the letter `gold`, else 0.0.

  The letter must also be one of the first `num_options` letters of A..J.
  """
  chosen = chosen_letter(prediction)
  right = gold.strip(' \n()[].:').upper()
  return float(chosen is not None and chosen == right and chosen in LETTERS[: max(num_options, 0)])


def chosen_letter(text: str) -> str | None:
  """Returns the letter A..J that a text chooses, upper case.

  Returns None when the text names no letter, or several without a decision.

  Upper-case letters count as whole words (A and I not before a lower-case word), lower-case ones
  only as the whole text, bracketed, or first before `.`, `)` or `:`. Markdown emphasis is ignored.
  """
  text = _SPACES.sub(lambda run: '\n' if '\n' in run[0] else ' ', _EMPHASIS.sub('', text))
  text = _mask_rejected(text)
  for decide in (_stated_letters, _leading_letters, _option_letters, _standalone_letters):
    letters = decide(text)
    if letters:
      return letters.pop() if len(letters) == 1 else None
  return None


def _mask_rejected(text: str) -> str:
  """Replaces every letter that the text rejects with a dot."""
  dots = lambda match: _UPPER.sub('·', match[0])
  for pattern in _SET_ASIDE:
    text = pattern.sub(dots, text)
  return text


def _stated_letters(text: str) -> set[str]:
  """Returns the letters of the last answer statement; empty without a statement."""
  found = [
    named
    for statement in _STATEMENT.finditer(text)
    if (named := _statement_letters(text, statement))
  ]
  found += [
    (match.start('items'), _endorsed_letters(match['items'])) for match in _CORRECT.finditer(text)
  ]
  return max(found, key=lambda one: one[0])[1] if found else set()


def _endorsed_letters(items: str) -> set[str]:
  """Returns the letters that a phrase calls correct.

  For "Of A, B and C, B is" it is the last letter; for "A or B is" and "A, B is" both letters.
  """
  letters, last = _UPPER.findall(items), items.rpartition(',')[2]
  listed = len(letters) > 2 and not re.search(r'\b(?:or|and)\b|[/&]', last)
  return {letters[-1]} if listed else set(letters)


def _statement_letters(text: str, statement: re.Match[str]) -> tuple[int, set[str]] | None:
  """Returns (index, letters) that directly follow a statement; None without a letter."""
  at = statement.end()
  upper = _NAMED.match(text, at)
  if upper and not _is_word(text, statement, upper):
    return upper.start(1), {upper[1], *_iter_joined_letters(text, upper.end())}
  line = text[at : at + 200].partition('\n')[0]
  lead = len(line) - len(line.lstrip(' \t:"\''))
  lower = _WHOLE.fullmatch(line, lead) or _FIRST.match(line, lead) or _BRACKETED.match(line, lead)
  return (
    (at + lower.start(1), {lower[1].upper(), *_iter_joined_letters(text, at + lower.end())})
    if lower
    else None
  )


def _is_word(text: str, statement: re.Match[str], upper: re.Match[str]) -> bool:
  """Returns whether A or I is an English word here, not an option.

  "Answer: A man walks" has the article A; "the answer is A because" has option A. I may be the
  pronoun.
  """
  noun = upper[1] == 'I' or (
    upper[1] == 'A' and not re.search(rf'\b{_IS}\s*:?\Z', statement[0], re.IGNORECASE)
  )
  return noun and _ARTICLE.match(text, upper.end()) is not None


def _iter_joined_letters(text: str, end: int) -> Iterator[str]:
  """Yields the letter that is joined to the letter ending at `end`, as in "A or B".

  "A or a dog" and "B, A man walks" have no joined letter.
  """
  joined = _JOINED.match(text, end)
  if not joined:
    return
  letter = joined[1]
  if letter.islower():
    meant = (
      text[joined.end() : joined.end() + 1] in tuple(')]}')
      or _WHOLE.fullmatch(text, joined.start(1)) is not None
    )
  else:
    meant = not (letter in 'AI' and _ARTICLE.match(text, joined.end()))
  if meant:
    yield letter.upper()


def _leading_letters(text: str) -> set[str]:
  """Returns the letters at the start of the text and of its last line."""
  whole = text.strip()
  return {
    (match[1]).upper()
    for line in (whole, whole.rpartition('\n')[2])
    if (
      match := _LEADING.match(line)
      or _FIRST.match(line)
      or _BRACKETED.match(line)
      or _WHOLE.fullmatch(line)
    )
  }


def _option_letters(text: str) -> set[str]:
  """Returns the letters that the text calls options, as in "option B"."""
  return {
    letter[0]
    for match in _MENTION.finditer(text)
    for letter in _UPPER.finditer(match[1])
    if not (letter[0] == 'I' and _ARTICLE.match(text, match.start(1) + letter.end()))
  }


def _standalone_letters(text: str) -> set[str]:
  """Returns every standalone letter."""
  upper = {
    match[0]
    for match in _UPPER.finditer(text)
    if not (match[0] in 'AI' and _ARTICLE.match(text, match.end()))
  }
  return upper | {match[1].upper() for match in _BRACKETED.finditer(text)}
