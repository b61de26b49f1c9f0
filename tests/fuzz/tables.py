"""Targets over data sets: rows of RL, SFT and benchmarks, and the parquet files that hold them."""

import collections
import contextlib
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

from paravt_jax.data import conversations, rows
from paravt_jax.data.fields import Broken, RowOptions
from paravt_jax.data.table import Table
from paravt_jax.errors import DataError
from paravt_jax.eval import snapshots
from paravt_jax.eval.benchmark_table import BENCHMARKS
from paravt_jax.rewards.answer import LETTERS
from tests.fuzz import mutate
from tests.fuzz.driver import Target
from tests.fuzz.mutate import Rng

_ROWS = RowOptions(skip_bad_rows=False, require_media=False)
RL = {
  'prompt': [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': '<video>What is red?\nA. a car\nB. a dog\nC. a cat'},
  ],
  'videos': [{'video': 'world/a.mp4'}],
  'extra_info': {
    'id': 'q1',
    'question_type': 'mcq',
    'answer': 'B',
    'options': ['a car', 'a dog', 'a cat'],
    'facts': {'start': 1.5},
  },
  'data_source': 'world',
}
TVG = {
  **RL,
  'prompt': [{'role': 'user', 'content': '<video>When?'}],
  'extra_info': {'question_type': 'tvg', 'answer': [3, 5.5]},
}
_VALUES = (
  *('mcq', 'tvg', 'oe', 'A', 'K', '<video>', '<video><video>', 'A. x\nB. y', '[3, 5]', '3-5', ''),
  *('user', 'tool', 'assistant', '../../a.mp4', '/etc/passwd', 'file:///a', 'file://x/../../a'),
  *([], {}, None, True, ['a'] * 12, [5, 3], {'video': 'a'}, [['a']], '٣', '\\ud800', 'N/A', 0.1),
)
SFT = [
  {'role': 'system', 'content': 'Be brief.'},
  {
    'role': 'user',
    'content': [
      {'type': 'video_url', 'video_url': {'url': 'world/a.mp4', 'nframes': 4}},
      {'type': 'text', 'text': 'What?'},
    ],
  },
  {
    'role': 'assistant',
    'content': 'I look.',
    'tool_calls': [
      {
        'id': 'c1',
        'type': 'function',
        'function': {'name': 'crop_video', 'arguments': {'start_time': 1, 'end_time': 2}},
      }
    ],
  },
  {'role': 'tool', 'tool_call_id': 'c1', 'content': 'red'},
  {'role': 'assistant', 'content': '<answer>red</answer>', 'loss': True},
]
_SFT_VALUES = (
  *('text', 'image_url', 'video_url', 'video', 'image', 'tool', 'user', 'assistant', 'system'),
  *('c1', '<tool_call>', 'crop_video', '{"start_time": 1}', '{', '../a.mp4', '/a.mp4', 'file:///a'),
  *([], {}, None, False, 0, -1, 1e9, {'url': 'a.mp4'}, {'type': 'text', 'text': 'x'}, 'NaN'),
)
_FILLED = {
  'options': ['A. red', 'B. blue', 'C. green', 'D. none'],
  'candidates': ['red', 'blue', 'green', 'none'],
  'choices': {'A': 'red', 'B': 'blue', 'C': 'green', 'D': 'none', 'E': ''},
  'question': 'What?\n(A) red\n(B) blue\n(C) green\n(D) none',
  'problem': 'What?\nA. red\nB. blue\nC. green\nD. none',
  'videos': ['a.mp4'],
  'answer': 'A',
  'correct_choice': 0,
  'timestamp': [1.0, 5.0],
  'timestamps': [1.0, 5.0],
  'question_type': 'multiple-choice',
}


def _row(rng: Rng) -> bytes:
  value = mutate.pick(rng, (RL, TVG))
  for _ in range(int(rng.integers(4))):
    name = mutate.pick(rng, list(value))
    value = {**value, name: mutate.change_json(rng, value[name], _VALUES)}
  return json.dumps(value).encode()


def _column(value) -> pa.Array:
  """Returns one value as a column: typed where Arrow can, else as JSON text."""
  try:
    return pa.array([value])
  except (pa.ArrowException, UnicodeError, OverflowError, ValueError):
    return pa.array([json.dumps(value)])


def _write(row: dict, path: pathlib.Path) -> None:
  columns = {name: _column(value) for name, value in row.items() if '\ud800' not in name}
  extra = columns.get('extra_info')
  if extra is not None and not pa.types.is_string(extra.type):
    columns['extra_info'] = pa.array([json.dumps(row['extra_info'])])
  try:
    pq.write_table(pa.table(columns), path)
  except (pa.ArrowException, UnicodeError):  # an empty struct, which parquet does not have
    texts = {name: pa.array([json.dumps(value)]) for name, value in row.items()}
    pq.write_table(pa.table({n: v for n, v in texts.items() if '\ud800' not in n}), path)


def rl_target(folder: pathlib.Path) -> Target:
  """Returns the target of RL rows, each in a parquet file of its own."""
  path = folder / 'rl.parquet'

  def check(data: bytes) -> str:
    row = json.loads(data)
    _write(row, path)
    try:
      [task] = rows.rl_tasks([path], folder, _ROWS, collections.Counter())
    except DataError as error:
      assert str(path.name) in str(error)
      return 'refused'
    assert all(pathlib.Path(video).is_relative_to(folder) for video in task.videos)
    assert task.question_type in rows.TYPES and len(task.slots) in (0, len(task.videos))
    assert task.question_type != 'mcq' or task.answer in LETTERS[: len(task.options)]
    json.dumps(task.facts, allow_nan=False)
    return task.question_type

  return Target('rl_rows', _row, check)


def _messages(rng: Rng) -> bytes:
  value = SFT
  for _ in range(int(rng.integers(4))):
    value = mutate.change_json(rng, value, _SFT_VALUES)
  return json.dumps(value).encode()


def sft_target(folder: pathlib.Path) -> Target:
  """Returns the target of conversations, as a value and as JSON text."""

  def read(value, name='row') -> conversations.Conversation | None:
    try:
      return conversations.conversation(value, name, folder, _ROWS)
    except (Broken, DataError):
      return None

  def check(data: bytes) -> str:
    found, as_text = read(json.loads(data)), read(data.decode())
    assert (found is None) == (as_text is None) or '\\ud' in data.decode(), (found, as_text)
    if found is None:
      return 'refused'
    assert found.messages[-1].role == 'assistant'
    media = [part for one in found.messages for part in one.parts if not isinstance(part, str)]
    assert all(pathlib.Path(part.path).is_relative_to(folder) for part in media)
    return 'read'

  return Target('sft_rows', _messages, check)


def _question(rng: Rng) -> bytes:
  """A benchmark's name, then a json file with one of its rows."""
  name = mutate.pick(rng, list(BENCHMARKS))
  columns = (*BENCHMARKS[name].columns, *BENCHMARKS[name].optional)
  row = {column: _FILLED.get(column, 'x') for column in columns}
  for _ in range(int(rng.integers(5))):
    column = mutate.pick(rng, columns)
    row[column] = mutate.change_json(rng, row[column], _VALUES)
  data = json.dumps([row]).encode()
  return name.encode() + b'\n' + (data if rng.random() < 0.8 else mutate.change_bytes(rng, data))


def question_target(folder: pathlib.Path) -> Target:
  """Returns the target of benchmark rows in json files."""
  path = folder / 'rows.json'

  def check(data: bytes) -> str:
    name, _, content = data.partition(b'\n')
    benchmark = BENCHMARKS[name.decode()]
    path.write_bytes(content)
    kind = 'no row'
    try:
      for _, row in snapshots.rows(path, benchmark.columns, benchmark.optional):
        found = benchmark.read(row)
        kind = found.kind
        assert kind in ('mcq', 'tvg', 'oe') and (kind == 'mcq' or not found.options)
        assert isinstance(found.text, str) and found.video and isinstance(found.gold, str)
        assert all(gold in LETTERS[: len(found.options) or 4] for gold in found.golds)
        assert all(isinstance(value, str) for value in found.fields.values())
    except (Broken, DataError):
      return 'refused'
    return kind

  return Target('benchmark_rows', _question, check)


def _parquet(folder: pathlib.Path) -> bytes:
  path = folder / 'whole.parquet'
  pq.write_table(
    pa.table(
      {
        'messages': [json.dumps(SFT)] * 5,
        'prompt': [RL['prompt']] * 5,
        'videos': [RL['videos']] * 5,
        'extra_info': [json.dumps({**RL['extra_info'], 'id': str(number)}) for number in range(5)],
      }
    ),
    path,
    row_group_size=2,
  )
  return path.read_bytes()


def parquet_target(folder: pathlib.Path) -> Target:
  """Returns the target of damaged parquet files, for both of their readers."""
  whole = _parquet(folder)
  path, cache = folder / 'damaged.parquet', folder / 'cache'

  def check(data: bytes) -> str:
    path.write_bytes(data)
    outcome = 'read'
    try:
      rows.rl_tasks([path], folder, _ROWS, collections.Counter())
    except DataError:
      outcome = 'refused'
    with contextlib.suppress(DataError):
      collections.deque(snapshots.rows(path, ('messages',), ('prompt', 'videos')), maxlen=0)
    for where in (None, cache):
      try:
        table = Table([path], folder, _ROWS, where)
      except DataError:
        continue
      for number in range(min(len(table), 20)):
        try:
          table[number]
        except (Broken, DataError):
          continue
    for cached in cache.rglob('*'):
      assert not cached.is_file() or cached.suffix == '.arrow', f'a partial file: {cached}'
      if cached.is_file():
        cached.unlink()
    return outcome

  return Target('parquet', lambda rng: mutate.change_bytes(rng, whole, whole), check)


def targets(folder: pathlib.Path) -> list[Target]:
  """Returns the targets of this module; files go to `folder`."""
  return [
    rl_target(folder),
    sft_target(folder),
    question_target(folder),
    parquet_target(folder),
  ]
