"""The journal: whole lines only, whatever a kill left behind, and nothing is taken for done that
was made from something else.
"""

import json

from paravt_jax.longvideo_reason.items import Rejected
from paravt_jax.longvideo_reason.journal import Journal, json_bytes


def test_what_was_put_is_there_again_and_a_rejection_is_one(tmp_path):
  with Journal(tmp_path / 'a' / 'x.jsonl') as log:
    log.put('é', {'model': 'm', 'window': (0, 10)}, {'text': 'ü\n'})
    log.put('b', {'model': 'm'}, Rejected('short', '1', 'x'))
  with Journal(tmp_path / 'a' / 'x.jsonl') as log:
    assert log.current('é', {'model': 'm', 'window': [0, 10]}) == {'text': 'ü\n'}
    assert log.current('b', {'model': 'm'}) == Rejected('short', '1', 'x')
    assert log.current('c', {'model': 'm'}) is None and log.torn == 0


def test_an_item_made_from_something_else_is_not_current_and_says_what_changed(tmp_path):
  with Journal(tmp_path / 'x.jsonl') as log:
    log.put('a', {'model': 'm', 'prompt': 'p'}, 'old')
    assert log.current('a', {'model': 'n', 'prompt': 'p'}) is None
    assert (
      log.changed('a', {'model': 'n', 'prompt': 'p'}) == ['model']
      and log.changed('z', {'model': 'n'}) == []
    )
    log.put('a', {'model': 'n', 'prompt': 'p'}, 'new')
  with Journal(tmp_path / 'x.jsonl') as log:
    assert (
      log.current('a', {'model': 'n', 'prompt': 'p'}) == 'new' and log.last('a')['result'] == 'new'
    )


def test_every_prefix_that_a_kill_can_leave_opens_and_takes_new_lines(tmp_path):
  path = tmp_path / 'x.jsonl'
  with Journal(path) as log:
    log.put('a', {'v': 1}, 'first')
    log.put('b', {'v': 1}, 'second')
  content = path.read_bytes()
  first = content.index(b'\n') + 1
  for length in range(len(content) + 1):
    path.write_bytes(content[:length])
    with Journal(path) as log:
      assert log.current('a', {'v': 1}) == ('first' if length >= first else None)
      assert log.current('b', {'v': 1}) == ('second' if length == len(content) else None)
      log.put('c', {'v': 1}, 'third')
    lines = path.read_bytes().splitlines()
    assert [json.loads(line)['item'] for line in lines] == ['a'] * (length >= first) + ['b'] * (
      length == len(content)
    ) + ['c']


def test_a_line_of_garbage_in_the_middle_is_counted_and_passed_over(tmp_path):
  path = tmp_path / 'x.jsonl'
  with Journal(path) as log:
    log.put('a', {}, 1)
  path.write_bytes(b'\x00\x00garbage\n{"item": 3}\n' + path.read_bytes())
  with Journal(path) as log:
    assert log.torn == 2 and log.current('a', {}) == 1


def test_json_is_readable_and_texts_stay_as_they_are():
  assert json_bytes({'ä': 1}) == '{\n "ä": 1\n}\n'.encode()
