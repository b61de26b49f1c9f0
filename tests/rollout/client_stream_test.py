"""What a client hears of a streamed reply while it grows."""

import asyncio

import orjson
import pytest

from paravt_jax.errors import RolloutError
from paravt_jax.rollout.router import Router
from paravt_jax.testing.scripted import Garbage, Reply, ScriptedServer, turns
from tests.rollout.wire import REQUEST, WHOLE, generate, opened


def heard_of(server, **options):
  """(what came in the end, every list of ids that was heard)."""
  heard = []

  async def run():
    async with opened(Router((server.url,)), **options) as client:
      return await client.generate(REQUEST, on_tokens=heard.append)

  return asyncio.run(run()), heard


def test_a_stream_is_heard_token_by_token_and_comes_to_what_an_unheard_request_does():
  reply = Reply(ids=(7, 8, 2), logprobs=(-1, -2, -3), versions=((3, 0, 2), (4, 2, 3)))
  with ScriptedServer(turns(reply)) as server:
    got, heard = heard_of(server)
    plain, _ = generate(server)
    assert [request.body.get('stream') for request in server.requests] == [True, None]
  assert heard == [[7], [7, 8], [7, 8, 2]]
  assert (got.ids.tolist(), got.logprobs.tolist(), got.versions.tolist(), got.finish) == (
    plain.ids.tolist(),
    plain.logprobs.tolist(),
    plain.versions.tolist(),
    plain.finish,
  )


def test_a_stream_that_an_update_interrupts_is_heard_from_its_beginning_on():
  with ScriptedServer(turns(Reply(ids=(5, 6), finish='abort'), Reply(ids=(7, 2)))) as server:
    got, heard = heard_of(server)
  assert heard == [[5], [5, 6], [5, 6, 7], [5, 6, 7, 2]] and got.ids.tolist() == [5, 6, 7, 2]


def test_a_stream_that_breaks_is_a_lost_connection_and_begins_anew():
  with ScriptedServer(turns(Reply(ids=(5, 6, 2), broken_after=1), Reply(ids=(5, 6, 2)))) as server:
    got, heard = heard_of(server)
    assert len(server.requests) == 2 and server.requests[0].rid != server.requests[1].rid
  assert heard == [[5], [5], [5, 6], [5, 6, 2]] and got.ids.tolist() == [5, 6, 2]


@pytest.mark.parametrize(
  ('events', 'says'),
  [
    (b'data: {"error": {"message": "out of memory"}}\n\ndata: [DONE]\n\n', 'out of memory'),
    (b'data: {"output_ids": [5], "meta_info": {}}\n\ndata: [DONE]\n\n', 'server reply'),
    (b'data: nonsense\n\ndata: [DONE]\n\n', 'wanted JSON'),
    (b'data: [DONE]\n\n', 'wanted JSON'),
    (b'data: {"output_ids": [5]}\n\n', 'the stream ended before its last event'),
    (b'', 'the stream ended'),
  ],
)
def test_a_stream_of_anything_else_is_one_line(events, says):
  with (
    ScriptedServer(turns(Garbage(events, 'text/event-stream'))) as server,
    pytest.raises(RolloutError, match=says) as caught,
  ):
    heard_of(server, retries=0)
  assert '\n' not in str(caught.value)


def test_what_is_heard_may_come_in_any_pieces_and_never_breaks_a_request():
  """Ids beyond the vocabulary are not shown; the last event is checked like every reply."""
  odd = [
    b'data: {"output_ids": [5, 100]}\r\n\r\n',
    b': a comment\n',
    b'event: x\n',
    b'data: [1]\n\n',
    b'data: {"output_ids": "no"}\n\n',
  ]
  body = b''.join(odd) + b'data: ' + orjson.dumps(WHOLE) + b'\n\ndata: [DONE]\n\n'
  with ScriptedServer(turns(Garbage(body, 'text/event-stream'))) as server:
    got, heard = heard_of(server)
  assert heard == [[], [], [], [5, 2]] and got.ids.tolist() == [5, 2]
