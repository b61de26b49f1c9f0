"""The timeline of a run: spans by lane, in a file that every kill leaves readable."""

import errno
import json
import threading
import time

from paravt_jax import timeline


def events(path):
  """The events as Chrome's viewer reads them: an array whose closing bracket may be missing."""
  return json.loads(path.read_text().rstrip().rstrip(',') + ']')


def test_the_file_is_an_array_of_trace_events_with_named_lanes(tmp_path):
  path, begun = tmp_path / 'timeline.json', time.time()
  with timeline.Timeline(path) as made:
    now = time.monotonic()
    made.span('learner', 'learn', now, now + 2, step=3)
    made.span('learner', 'blink', now, now + 1e-5)
    made.span('server a', 'busy', now + 1, now + 3)
  found = events(path)
  names = {e['tid']: e['args']['name'] for e in found if e['ph'] == 'M'}
  spans = [(names[e['tid']], e['name'], e['dur'], e['args']) for e in found if e['ph'] == 'X']
  assert spans == [
    ('learner', 'learn', 2_000_000, {'step': 3}),
    ('server a', 'busy', 2_000_000, {}),
  ]
  (learn,) = timeline.read(path)['learner']
  assert learn[0] == 'learn' and abs(learn[1] - begun) < 5 and 1.99 < learn[2] - learn[1] < 2.01


def test_uses_that_overlap_are_one_span_with_the_most_at_once(tmp_path):
  path = tmp_path / 'timeline.json'
  with timeline.Timeline(path) as made:
    barrier = threading.Barrier(3)

    def use():
      with made.busy('decoder'):
        barrier.wait()
        time.sleep(0.01)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    with made.busy('decoder'):
      time.sleep(0.01)
  spans = [event for event in events(path) if event['ph'] == 'X']
  assert [one['args']['most_at_once'] for one in spans] == [3, 1]


def test_a_use_that_fails_ends_its_span_too(tmp_path):
  with timeline.Timeline(tmp_path / 'timeline.json') as made:
    try:
      with made.busy('decoder'):
        time.sleep(0.002)
        raise ValueError
    except ValueError:
      pass
  assert len(timeline.read(tmp_path / 'timeline.json')['decoder']) == 1


def test_a_run_that_was_killed_goes_on_behind_its_last_whole_event(tmp_path):
  path = tmp_path / 'timeline.json'
  with timeline.Timeline(path) as made:
    made.span('learner', 'learn', 1, 2)
  whole = path.read_bytes()
  path.write_bytes(whole + b'{"ph":"X","pid":1,"tid"')
  assert [name for name, *_ in timeline.read(path)['learner']] == ['learn']
  with timeline.Timeline(path) as made:
    made.span('learner', 'sync', 3, 4)
  assert path.read_bytes().startswith(whole)
  assert [name for name, *_ in timeline.read(path)['learner']] == ['learn', 'sync']
  events(path)


def test_without_a_path_nothing_is_kept():
  with timeline.Timeline(None) as made, made.busy('decoder'):
    made.span('learner', 'learn', 1, 2)
    made.flush()


def test_a_full_disk_is_one_warning_and_the_run_goes_on(tmp_path, caplog, monkeypatch):
  made = timeline.Timeline(tmp_path / 'timeline.json')

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(made._file, 'append', full)
  for _ in range(2):
    made.span('learner', 'learn', 1, 2)
    made.flush()
  assert [record.message for record in caplog.records] == [
    'timeline: cannot be written ([Errno 28] No space left on device); the run goes on without it'
  ]


def test_a_line_that_is_no_event_is_left_out(tmp_path):
  path = tmp_path / 'timeline.json'
  path.write_text('[\n7,\n{"ph":"X"},\n{"ph":"X","tid":1,"name":"n","ts":0,"dur":1000000},\n')
  assert timeline.read(path) == {'1': [('n', 0.0, 1.0)]}
