"""Nothing that a policy writes raises, and every text is read in linear time."""

import itertools
import time

import pytest

from paravt_jax import seeds
from paravt_jax.chat import toolcalls
from paravt_jax.types import ParseFailure, ToolCall, Window
from tests.chat.calls import GOOD, OBJECT, XML, block

_PIECES = [
  '<tool_call>',
  '</tool_call>',
  '<tool_code>',
  '</tool_code>',
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  GOOD,
  '{',
  '}',
  '"',
  '"name"',
  ':',
  '"crop_video"',
  ',',
  '"arguments"',
  'crop_video(',
  ')',
  'print(',
  '1',
  "'",
  '\\',
  '\n',
  '\0',
  '\ud800',
  'NaN',
  '-',
  '[',
  ']',
  '🚗',
  'start_time=',
  '1:30',
  '=',
  '#',
  ';',
]


@pytest.mark.parametrize(
  'text',
  [
    '<tool_call>' * 90_000,
    '<tool_call>{"a</tool_call>' * 10_000,
    block('{' * 10**6),
    '{' * 10**6,
    '<tool_call>"' * 10_000,
    ('<tool_call>' + ' ' * 80) * 10_000,
    block('{' * 19_000) * 50,
    block('[' * 19_000) * 50,
    block('{"a": 1, "b": ' * 1400) * 50,
    block('{"a":' + '" ' * 9000) * 50,
    block('{} ' * 6000) * 50,
    '<function=a>' * 80_000,
    '<function=a>x</function>' * 10_000,
    '<' * 10**6,
    '<   ' * 250_000,
    block('{' + '/*' * 9000) * 50,
    block('{"a": 1,' + '# ' * 9000) * 50,
    (GOOD + '\n') * 10_000,
    '<tool_call>' + '</tool_code>' * 80_000,
    '<tool_code>' + 'f(' * 500_000 + '</tool_code>',
    block("{'a': '" + 'x' * 10**6),
    block(
      '{"name": "crop_video", "arguments": {"start_time": "' + '1' * 10**6 + 's", "end_time": 2}}'
    ),
  ],
)
def test_a_megabyte_of_blocks_is_read_in_linear_time(text):
  start = time.process_time()
  for item in toolcalls.parse(text):
    if isinstance(item, ToolCall):
      toolcalls.resolve_window(item, 100.0)
  assert time.process_time() - start < 5  # a second or less alone; quadratic readers need minutes


def test_mutations_of_every_form_never_raise_and_windows_are_finite():
  rng = seeds.rng(1, 'toolcalls mutations')
  forms = [
    GOOD,
    block(f'[{OBJECT}]'),
    block(XML),
    XML,
    block(f'```json\n{OBJECT}\n```'),
    block(OBJECT.replace('"', "'")),
    block(OBJECT.replace('1', '"1m10s"')),
    '<tool_code>crop_video("v", 1, 2)</tool_code>',
  ]
  for _ in range(10_000):
    text = ''.join(forms[i] for i in rng.integers(len(forms), size=rng.integers(1, 3)))
    for _ in range(rng.integers(1, 5)):
      at, piece = int(rng.integers(len(text) + 1)), _PIECES[rng.integers(len(_PIECES))]
      text = text[:at] + piece + text[at + int(rng.integers(0, 4)) :]
    for item in toolcalls.parse(text):
      window = toolcalls.resolve_window(item, 100.0) if isinstance(item, ToolCall) else None
      if isinstance(window, Window):
        assert 0 <= window.start < window.end <= 100


def test_random_text_never_raises_and_the_pieces_cover_each_other():
  rng = seeds.rng(0, 'toolcalls fuzz')
  for _ in range(20_000):
    text = ''.join(_PIECES[i] for i in rng.integers(len(_PIECES), size=rng.integers(0, 14)))
    found = toolcalls.blocks(text)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    for item in toolcalls.parse(text):
      if isinstance(item, ParseFailure):
        assert item.text in text
      else:
        toolcalls.resolve_window(item, 10.0)
