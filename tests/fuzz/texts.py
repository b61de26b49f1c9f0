"""Targets over what a model writes: calls, JSON, answers, replies in pieces, and the template."""

import json
import math
import pathlib
import re

import numpy as np

from paravt_jax.chat import lenient, spans, tags, template, toolcalls
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import DataError
from paravt_jax.eval import subtitles
from paravt_jax.longvideo_reason import parse as teacher
from paravt_jax.rewards import answer, letters, windows, words
from paravt_jax.serving.embedded.openai_reply import Writer, last_chunks
from paravt_jax.testing import tiny
from paravt_jax.types import ParseFailure, ToolCall, Window
from tests.chat.calls import GOOD, OBJECT, XML, block
from tests.fuzz import mutate
from tests.fuzz.driver import Target
from tests.fuzz.mutate import Rng, text_from, utf8
from tests.longvideo_reason import parse_test as teacher_test

TOK = ChatTokenizer(json.loads(tiny.make_tokenizer([], []).to_str()), 'fuzz')
_CONTROL = tuple(
  TOK.token_to_id(f'<|{name}|>')
  for name in ('im_start', 'im_end', 'endoftext', 'vision_start', 'vision_end', 'image_pad')
)
_TAG = re.compile(r'</?[A-Za-z_]+>')

CALLS = (
  GOOD,
  block(f'[{OBJECT}, {OBJECT}]'),
  block(XML),
  XML,
  block(f'```json\n{OBJECT}\n```'),
  block(OBJECT.replace('"', "'")),
  block(OBJECT.replace('1', '"1m10s"').replace('2', '1e9')),
  block('{"name": "crop_video", "arguments": {"start_time": NaN, "end_time": Infinity}}'),
  block('{"name": "../../bin/sh", "arguments": {"video_path": "../../etc/passwd"}}'),
  '<tool_code>crop_video("v", 1, 2)</tool_code>',
)
PIECES = (
  *('<tool_call>', '</tool_call>', '<tool_code>', '</tool_code>', '<think>', '</think>'),
  *('<answer>', '</answer>', '<tool_response>', '</tool_response>', '<function=a>', '</function>'),
  *('<parameter=start_time>', '</parameter>', '<|im_end|>', '<|im_start|>', '<|image_pad|>'),
  *('{', '}', '[', ']', '"', "'", '\\', ':', ',', '#', '/*', '//', '=', '(', ')', ';', '```'),
  *('"name"', '"arguments"', '"crop_video"', 'crop_video(', 'print(', 'start_time=', '\\ud83d'),
  *('NaN', 'Infinity', '-', '1', '1e9', '1e999', '1:30', 'true', 'None', '0x1', '\\u0041'),
  *('\n', ' ', '\0', '\ud800', '🚗', '\u202e', '\N{REPLACEMENT CHARACTER}', 'x' * 100),
)
ANSWERS = (
  *(
    'The answer is ',
    '(B)',
    'B',
    'A.',
    '**C**',
    'not ',
    'option ',
    ' or ',
    ', ',
    'neither',
    'both',
  ),
  *('from ', ' to ', '12.5', '41 seconds', '1:30', '-', '[3, 5]', '00:01:10', '3-5s', '1e309'),
  *('red car', 'the', 'twelve', '1,000', '٣', '²', '½', "can't", '\\boxed{B}', '$', '%', 'I', 'a '),
  *('<answer>', '</answer>', '<think>', '</think>', '\n', ' ', '\0', '\ud800', '9' * 400, '. '),
)
_TEACHER = (
  *(
    'Question: ',
    'Options:',
    'A. red',
    'B. blue',
    'C. green',
    'D. none',
    'Answer: B',
    'Reasoning:',
  ),
  *(
    '[1.0 - 5.0] ',
    '(0:01-0:05)',
    '<think>',
    '</think>',
    '\n',
    '- ',
    '**',
    'because',
    'nan',
    '1e9',
  ),
)
CUES = (
  *(
    'WEBVTT\n',
    '1\n',
    '00:00:01,000 --> 00:00:02,500\n',
    '00:03.5 --> 00:04\n',
    'Hello <i>you</i>\n',
  ),
  *(
    'NOTE a\n',
    'STYLE\n',
    '\n',
    '\r',
    '{\\an8}',
    '-->',
    '&lt;',
    '99:99:99 --> 0:0\n',
    '\ufeff',
    '\0',
  ),
  *('你好\n', 'é', '1' * 5000, ' ' * 500, '<' * 200, '٣', '：', '→', '&#99999999999;', '<c.a>'),
)
_ENCODINGS = ('utf-8', 'utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32', 'gb18030', 'cp1252', 'latin-1')


def _turn(rng: Rng) -> bytes:
  whole = ''.join(mutate.pick(rng, CALLS) for _ in range(int(rng.integers(4))))
  text = mutate.pick(rng, (whole, f'I look.</think>\n{whole}', mutate.text_of(rng, PIECES)))
  return utf8(mutate.change_text(rng, text, PIECES))


def _check_calls(data: bytes) -> str:
  text = text_from(data)
  found = toolcalls.blocks(text)
  ends = [0, *(block_.end for block_ in found)]
  assert all(end <= one.start < one.end for end, one in zip(ends, found, strict=False))
  items = toolcalls.parse(text)
  assert items == tuple(item for one in found for item in one.items)
  kept = ''.join(text[end : one.start] for end, one in zip(ends, found, strict=False))
  assert toolcalls.without_blocks(text) == kept + text[ends[-1] :]
  for item in items:
    if isinstance(item, ParseFailure):
      assert item.text in text
      continue
    window = toolcalls.resolve_window(item, 64.0)
    if isinstance(window, Window):
      assert 0 <= window.start < window.end <= 64.0
      assert window.num_frames is None or 2 <= window.num_frames <= 16
    json.dumps(item.arguments).encode()  # an episode's log can hold it
  assert tags.has_answer(text) in (True, False) and 0 <= tags.after_think(text) <= len(text)
  return 'calls' if any(isinstance(item, ToolCall) for item in items) else 'none'


def _json(rng: Rng) -> bytes:
  value = {'a': mutate.json_value(rng, 4)} if rng.random() < 0.5 else [mutate.json_value(rng, 4)]
  text = json.dumps(value, ensure_ascii=bool(rng.integers(2)), indent=mutate.pick(rng, (None, 1)))
  return utf8(text if rng.random() < 0.3 else mutate.change_text(rng, text, PIECES))


def _check_lenient(data: bytes) -> str:
  """Where strict JSON can be read, the lenient reader reads the same; else it may refuse."""
  text = text_from(data)
  try:
    value, end, whole = lenient.value(text, 0)
  except lenient.Unreadable:
    value, end, whole = None, 0, False
  assert 0 <= end <= len(text)
  try:
    strict = json.loads(text, parse_constant=lambda name: float('nan') / 0)
  except (ValueError, RecursionError, ZeroDivisionError):
    return 'read' if end else 'refused'
  if end and isinstance(strict, (dict, list)):
    assert whole and not text[end:].strip(), f'strict JSON ends at {len(text)}, lenient at {end}'
    wanted = json.loads(json.dumps(strict))
    assert _same(value, wanted), f'{value!r} is not {wanted!r}'
    return 'as strict'
  return 'refused strict' if isinstance(strict, (dict, list)) else 'refused'


def _same(one, other) -> bool:
  """Equality that takes a number's infinity (1e999) for itself, and NaN for NaN."""
  if isinstance(one, dict) and isinstance(other, dict):
    return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
  if isinstance(one, list) and isinstance(other, list):
    return len(one) == len(other) and all(map(_same, one, other))
  if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
    return math.isnan(other)
  return type(one) is type(other) and one == other


def _written(rng: Rng) -> bytes:
  calls = [
    (mutate.pick(rng, ('crop_video', 'zoom', 'a b', '<x>')), {'a': mutate.json_value(rng, 2)})
    for _ in range(int(rng.integers(1, 4)))
  ]
  return json.dumps(calls).encode()


def _check_written(data: bytes) -> str:
  """What the template prints, the parser reads: names, arguments, order."""
  calls = [(name, given) for name, given in json.loads(data)]
  text = template.assistant_text('I look.', '', calls)
  items = toolcalls.parse(text)
  if any(isinstance(item, ParseFailure) for item in items):
    # half a character cannot be trained on
    assert {item.reason for item in items if isinstance(item, ParseFailure)} == {'not_unicode'}
    return 'not Unicode'
  found = [(item.name, item.arguments) for item in items]
  assert _same([list(one) for one in found], [list(one) for one in calls]), (found, calls)
  return 'read'


def _answer(rng: Rng) -> bytes:
  return utf8(mutate.change_text(rng, mutate.text_of(rng, ANSWERS, 20), ANSWERS))


def _check_answers(data: bytes) -> str:
  text = text_from(data)
  said = answer.extract_answer(text)
  letter = letters.chosen_letter(said)
  assert letter is None or letter in answer.LETTERS
  window = windows.time_window(said)
  assert window is None or (0 <= window[0] <= window[1] < math.inf), window
  for score in (
    letters.choice_accuracy(said, 'B', 4),
    windows.temporal_iou(said, [3, 5]),
    words.token_f1(said, 'red car'),
    words.exact_match(said, 'red car'),
  ):
    assert 0.0 <= score <= 1.0
  tokens = words.normalise(said)
  assert words.exact_match(said, said) == float(bool(tokens))
  assert math.isclose(words.token_f1(said, said), float(bool(tokens)))
  assert words.token_f1(said, text) == words.token_f1(text, said)
  return 'letter' if letter else 'window' if window else 'text'


def _check_teacher(data: bytes) -> str:
  return type(teacher.parse(text_from(data), 60.0)).__name__


def _teacher(rng: Rng) -> bytes:
  text = mutate.pick(rng, (teacher_test.GOOD, mutate.text_of(rng, _TEACHER, 30)))
  return utf8(mutate.change_text(rng, text, (*_TEACHER, *ANSWERS)))


def _check_template(data: bytes) -> str:
  """Text never becomes control tokens or, untrusted, tags; and it comes back as it was."""
  text = text_from(data)
  clean = text.encode('utf-8', 'replace').decode()
  plain, trusted = TOK.encode(text, trusted=False), TOK.encode(text, trusted=True)
  assert TOK.decode(plain) == clean and TOK.decode(trusted) == clean
  for ids in (plain, trusted):
    assert not set(ids.tolist()) & set(_CONTROL)
  tags_of = {TOK.token_to_id(tag) for tag in _TAG.findall(clean)} - {None}
  assert not set(plain.tolist()) & tags_of
  segments = spans.conversation(
    TOK,
    [('system', [text]), ('user', [text]), ('assistant', [text]), ('user', [text])],
    '<think>\n',
  )
  ids = np.concatenate([segment.ids for segment in segments]).tolist()
  assert ids.count(TOK.im_start) == 4 and ids.count(TOK.im_end) == 4
  assert spans.sampled_mask(segments).shape == (len(ids),)
  again = template.continuation(
    TOK, closed=False, results=[text, text], request=text, think_prefix='<think>\n'
  )
  assert again.ids.tolist().count(TOK.im_start) == 4
  return 'valid'


def _reply(rng: Rng) -> bytes:
  """The ids of a reply: a turn's text, control tokens and bytes of broken characters."""
  ids = TOK.encode(text_from(_turn(rng)), trusted=True).tolist()[:400]
  for _ in range(int(rng.integers(4))):
    ids.insert(int(rng.integers(len(ids) + 1)), int(rng.integers(TOK.vocab_size + 3)))
  return np.asarray(ids, '<i4').tobytes()


def _check_reply(data: bytes) -> str:
  """What a stream sends in pieces is the whole reply, however the tokens arrive."""
  ids = np.frombuffer(data[: len(data) // 4 * 4], '<i4').tolist()
  ids = [abs(number) % (TOK.vocab_size + 3) for number in ids]
  for calls in (False, True):
    writer = Writer(TOK, '<think>\n', ('STOP', '\n\n\n'), (TOK.im_end,), calls)
    turn, sent = writer.turn(ids, False), ''
    step = max(1, len(ids) // 12)
    for end in range(0, len(ids), step):
      text, stopped = writer.text(ids[:end])
      if stopped:
        break
      settled = writer.settled(text)
      assert settled.startswith(sent) or sent.startswith(settled), (sent, settled)
      sent = max(sent, settled, key=len)
      assert turn.content.startswith(sent), (sent, turn.content)
    head = {'id': 'a', 'created': 0, 'model': 'm'}
    rest = [
      one['choices'][0]['delta'].get('content', '') for one in last_chunks(head, turn, sent, None)
    ]
    assert sent + ''.join(rest) == turn.content
  return 'calls' if turn.calls else 'text'


def _subtitle(rng: Rng) -> bytes:
  text = mutate.change_text(rng, mutate.text_of(rng, CUES, 40), CUES)
  data = text.encode(mutate.pick(rng, _ENCODINGS), 'replace')
  return data if rng.random() < 0.4 else mutate.change_bytes(rng, data)


def subtitle_target(folder: pathlib.Path) -> Target:
  """Returns the target of subtitle files, which are written to a folder."""
  path = folder / 'subtitles.srt'

  def check(data: bytes) -> str:
    path.write_bytes(data)
    try:
      found = subtitles.read(path, 200)
    except DataError:
      return 'refused'
    assert len(found.text.encode()) <= 200
    text, _, _ = subtitles.decode_text(data)
    for line in subtitles.subtitle_lines(text):
      start, arrow, rest = line.partition(' --> ')
      assert arrow and math.isfinite(float(start)) and math.isfinite(float(rest.split(' ', 1)[0]))
      assert '\n' not in line
    return 'read'

  return Target('subtitles', _subtitle, check)


def targets(folder: pathlib.Path) -> list[Target]:
  """Returns the targets of this module; files go to `folder`."""
  return [
    Target('tool_calls', _turn, _check_calls),
    Target('lenient_json', _json, _check_lenient),
    Target('written_calls', _written, _check_written),
    Target('answers', _answer, _check_answers),
    Target('teacher_replies', _teacher, _check_teacher),
    Target('template', _turn, _check_template),
    Target('streamed_replies', _reply, _check_reply),
    subtitle_target(folder),
  ]
