"""The contract of a rollout server, its streams. For the embedded server and for real SGLang."""

import dataclasses
import http.client
import json
import socket

import numpy as np
import pytest

from paravt_jax.serving.protocol import GenerateReply
from tests import patience
from tests.serving.contract.drive import (
  KEY,
  banned,
  frame,
  long_requests,
  request,
)


def streamed(served, sent, after=lambda body: None):
  """The events of a streamed request, as objects. after: hears each as it arrives."""
  connection = http.client.HTTPConnection(
    '127.0.0.1', int(served.process.url.rsplit(':', 1)[1]), timeout=patience.seconds(60)
  )
  headers = {'Authorization': f'Bearer {KEY}', 'Content-Type': 'application/json'}
  connection.request('POST', '/generate', json.dumps({**sent.to_json(), 'stream': True}), headers)
  reply = connection.getresponse()
  assert reply.status == 200 and reply.headers['Content-Type'].startswith('text/event-stream')
  events = []
  while (line := reply.readline()) and line.strip() != b'data: [DONE]':
    if line.startswith(b'data: '):
      events.append(json.loads(line.removeprefix(b'data: ')))
      after(events[-1])
  connection.close()
  assert line.strip() == b'data: [DONE]'
  return events


def test_a_stream_tells_all_ids_so_far_and_ends_as_the_plain_reply(served):
  sent = request(
    served.with_image(20, 5, 91),
    (frame(91),),
    temperature=0.0,
    max_new_tokens=60,
    banned_ids=banned(served),
  )
  plain = served.generate(dataclasses.replace(sent, rid=sent.rid + '-plain'))
  events = streamed(served, sent)
  assert [event['meta_info']['finish_reason'] for event in events[:-1]] == [None] * (
    len(events) - 1
  ) and len(events) > 2
  whole = GenerateReply.from_json(events[-1])
  assert (whole.output_ids, whole.finish) == (plain.output_ids, 'length')
  np.testing.assert_allclose(
    whole.logprobs, plain.logprobs, atol=0 if served.kind == 'embedded' else 1e-4
  )
  lengths = [len(event['output_ids']) for event in events]
  assert (
    lengths == sorted(lengths) and 0 < lengths[0] < 60
  )  # the first is there before the last token is
  assert all(
    event['output_ids'] == whole.output_ids[:length] for event, length in zip(events, lengths)
  )


def test_a_stream_whose_reader_goes_away_is_aborted_and_frees_its_place(served):
  aborted = lambda: (
    served.call('/get_server_info')[1]['counts']['aborted'] if served.kind == 'embedded' else None
  )
  before = aborted()
  for _ in range(20):
    body = json.dumps({**long_requests(served, 1)[0].to_json(), 'stream': True}).encode()
    port = int(served.process.url.rsplit(':', 1)[1])
    with socket.create_connection(('127.0.0.1', port), patience.seconds(120)) as raw:
      raw.sendall(
        b'POST /generate HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer %s\r\nContent-Type: '
        b'application/json\r\n'
        b'Content-Length: %d\r\n\r\n%s' % (KEY.encode(), len(body), body)
      )
      came = b''
      while b'data: ' not in came:
        came += raw.recv(4096)
    patience.until(lambda: served.running() == 0, 'the place of a reader that went away')
    if b'[DONE]' not in came and (before is None or aborted() > before):
      return
  pytest.fail(
    '20 times a request of 200 tokens was done before its reader could go away, or went on '
    'without it'
  )


def test_a_wrong_stream_is_refused_like_any_request(served):
  body = {'input_ids': [1, 2], 'sampling_params': {'temperature': -1}, 'stream': True}
  status, reply = served.call('/generate', body)
  assert status == 400 or (
    status == 200 and '"error"' in reply
  )  # SGLang may have opened its stream by then
