"""A server in a thread of this process says what one in its own process says, on its own devices."""

import contextlib
import socket
import threading

import jax
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving.embedded import threads
from tests import patience
from tests.serving.contract.drive import Served, embedded_options, frame, request, together

# the learner would have those before
DEVICES = jax.devices()[4:6]


def launch(folder, log, devices=None, **changes):
  """A server on the first of DEVICES alone, or on `devices`."""
  devices = DEVICES[:1] if devices is None else devices
  return threads.launch(
    embedded_options(folder, tensor_parallel=len(devices), **changes),
    devices=devices,
    log=log,
    deadline_s=patience.seconds(300),
  )


def arrays():
  """{array: its devices} of all arrays of this process, by identity."""
  return {id(array): array.devices() for array in jax.live_arrays()}


def new_arrays(before):
  """The devices of those that were not there before."""
  found = arrays()
  return [where for name, where in found.items() if name not in before]


@pytest.fixture(scope='module')
def folder(embedded_server):
  return embedded_server.folder


@pytest.fixture(scope='module')
def thread(folder, tmp_path_factory):
  """(the server, what was live before it)."""
  before, scratch = arrays(), tmp_path_factory.mktemp('thread')
  started = launch(folder, scratch / 'server.log')
  config, params = weights.load_hf(folder)
  yield Served('embedded', started, folder, config, params, scratch), before
  started.stop(patience.seconds(60))


def requests(served):
  """Requests in a crowd: with pictures and without, sampled and greedy."""
  return [
    request(served.with_image(5 + 3 * n, 4, 20 + n), (frame(n),), seed=n, max_new_tokens=9 + n)
    if n % 2
    else request(served.words(20 + n, n), temperature=0.0 if n % 4 else 0.7, seed=n)
    for n in range(8)
  ]


def test_it_says_the_ids_and_log_probs_of_a_server_in_its_own_process(thread, embedded_server):
  served, _ = thread
  for mine, other in zip(
    together(served, requests(served)), together(embedded_server, requests(embedded_server))
  ):
    assert mine.output_ids == other.output_ids
    assert mine.logprobs == pytest.approx(other.logprobs, abs=1e-6)


def test_its_arrays_lie_on_its_devices_alone(thread):
  served, before = thread
  together(served, requests(served))
  found = new_arrays(before)
  assert len(found) > 50 and set(map(frozenset, found)) == {frozenset(DEVICES[:1])}


def test_new_weights_are_those_of_the_learner(thread):
  served, _ = thread
  changed = jax.tree.map(lambda x: x * 1.01, served.params)
  served.update(changed, 5)
  sent = request(served.with_image(9, 4, 60), (frame(60),), max_new_tokens=12)
  reply = served.generate(sent)
  assert reply.weight_versions == [(5, 0, 12)]
  assert served.gap(sent, reply, changed) < 1e-5
  served.update(None, 0)


def test_its_lines_go_to_its_own_log(thread):
  served, _ = thread
  said = served.process.log.read_text()
  assert 'loaded and compiled in' in said and f'listening on {served.process.url}' in said
  assert served.process.tail().splitlines()[-1].endswith(served.process.url)


def test_a_failed_engine_is_not_alive_and_another_one_takes_its_place(
  folder, tmp_path, thread, monkeypatch
):
  # that of pytest keeps the error, and with its frames the engine
  monkeypatch.setattr(threading, 'excepthook', threading.__excepthook__)
  before, (other, _) = arrays(), thread
  failing = launch(folder, tmp_path / 'server.log', DEVICES)
  served = Served('embedded', failing, folder, other.config, other.params, tmp_path)
  assert failing.alive and served.generate(request(served.words(9, 1))).output_ids
  gone = [one for one in jax.live_arrays() if id(one) not in before and one.ndim == 4]
  for one in gone:
    one.delete()  # as if the device were lost
  del gone
  with pytest.raises(OSError):  # the connection is closed in the middle of the request
    served.generate(request(served.words(9, 1)))
  patience.until(lambda: not failing.alive)
  assert 'deleted' in failing.tail() and other.process.alive
  failing.stop(5.0)
  assert new_arrays(before) == []
  with contextlib.ExitStack() as stack:
    again = launch(folder, tmp_path / 'server.log', DEVICES)
    stack.callback(again.stop, patience.seconds(60))
    served = Served('embedded', again, folder, other.config, other.params, tmp_path)
    assert served.generate(request(served.words(9, 1))).output_ids
  assert not again.alive and new_arrays(before) == []
  again.stop(0.0)  # no error


def test_what_cannot_start_is_one_line(folder, tmp_path):
  with contextlib.closing(socket.socket()) as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    with pytest.raises(RolloutError, match=f'cannot listen on 127.0.0.1:{port}') as caught:
      launch(folder, tmp_path / 'log', port=port)
  assert (
    '\n' not in str(caught.value)
    and 'error: server: cannot listen' in (tmp_path / 'log').read_text()
  )
  with pytest.raises(RolloutError, match=r'config\.json'):
    launch(tmp_path, tmp_path / 'log')
  with pytest.raises(RolloutError, match='this process has 1 devices'):
    threads.launch(
      embedded_options(folder, tensor_parallel=2),
      devices=DEVICES[:1],
      log=tmp_path / 'log',
      deadline_s=patience.seconds(300),
    )


def test_one_that_is_not_ready_in_time_ends_later(folder, tmp_path):
  before = arrays()
  started = threads.ServerThread(embedded_options(folder), DEVICES[:1], tmp_path / 'log')
  with pytest.raises(
    RolloutError, match=r'not ready within 0\.01 s, raise server\.ready_timeout_s'
  ):
    started.start(0.01)
  patience.until(lambda: not started.alive)
  started.stop(0.0)
  assert new_arrays(before) == []
