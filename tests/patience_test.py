"""Limits are for hangs, not for slow machines."""

import asyncio

import pytest

from tests import patience


@pytest.fixture
def slow(monkeypatch):
  """A machine that takes four times as long as a quiet one."""
  patience._measured.cache_clear()
  monkeypatch.setattr(patience, 'unit', lambda: 4 * patience.QUIET_S)
  yield
  patience._measured.cache_clear()


def test_a_limit_grows_with_the_machines_slowness_and_never_shrinks(slow, monkeypatch):
  assert patience.seconds(30.0) == pytest.approx(120.0)
  patience._measured.cache_clear()
  monkeypatch.setattr(patience, 'unit', lambda: patience.QUIET_S / 3)
  assert patience.seconds(30.0) == 30.0


def test_it_is_measured_once_a_minute(slow, monkeypatch):
  taken = []
  monkeypatch.setattr(patience, 'unit', lambda: taken.append(1) or 1.0)
  monkeypatch.setattr(patience.time, 'monotonic', lambda: 1000.0)
  assert len({patience.seconds(1.0) for _ in range(5)}) == 1 and len(taken) == 1
  monkeypatch.setattr(patience.time, 'monotonic', lambda: 1100.0)
  patience.seconds(1.0)
  assert len(taken) == 2


def test_what_did_not_come_is_said(slow):
  with pytest.raises(
    AssertionError, match=r'for the server: it did not come \(the machine is 4.0 times slower'
  ):
    patience.until(lambda: False, 'the server', 0.01)
  with pytest.raises(AssertionError, match='for the reply: it did not come'):
    asyncio.run(patience.seen(lambda: False, 'the reply', 0.01))
  nobody = []
  with pytest.raises(
    AssertionError, match=r'for patience.until\(lambda: nobody, quiet=0.01\): it did not'
  ):
    patience.until(lambda: nobody, quiet=0.01)


def test_what_comes_late_is_waited_for(slow):
  left = iter([False] * 4 + [True])
  patience.until(
    lambda: next(left), 'the fifth look', quiet=0.01, step=0.006
  )  # 24 ms: in time by four times 10 ms


def test_the_unit_is_real_work():
  assert 0.01 < patience.unit() < 60.0
