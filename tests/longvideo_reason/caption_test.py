"""Captions: what a server is shown of a clip, and what of its reply is kept."""

import asyncio
import base64
import io

import numpy as np
import pytest
from PIL import Image

from paravt_jax.longvideo_reason.caption import CaptionOptions, caption, merge_captions, read
from paravt_jax.longvideo_reason.items import Caption, Failed, Rejected
from paravt_jax.rollout.chat_server import Server, ServerOptions
from paravt_jax.testing import clips
from paravt_jax.video.decode import DecodePool
from tests import patience
from tests.longvideo_reason.chat_server import CAPTION, ChatServer

OPTIONS = CaptionOptions('Describe.', 'frames', 4, 1024, 4096, 95, 64, 0.0, 10)
SERVER = {
  'model': 'seer',
  'api_key': '',
  'timeout_s': patience.seconds(60.0),
  'retries': 0,
  'backoff_s': 0.1,
  'max_backoff_s': 0.1,
  'concurrency': 2,
  'max_reply_bytes': 10_000,
  'max_failures': 9,
}


def ask(path, options=OPTIONS):
  async def run(url, pool):
    async with Server(ServerOptions(url=url, **SERVER), 'x') as client:
      return await caption(client, pool, str(path), options, 0)

  with ChatServer() as server, DecodePool(1, 60.0, 'pyav') as pool:
    return asyncio.run(run(server.url, pool)), server.bodies


def test_a_clip_is_shown_as_frames_each_after_its_time_then_what_is_asked(tmp_path):
  path = clips.make_clip(
    tmp_path / 'a.mp4', 4, 10, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 10
  )
  outcome, bodies = ask(path)
  parts = bodies[0]['messages'][0]['content']
  assert outcome == CAPTION and [part['type'] for part in parts] == ['text', 'image_url'] * 4 + [
    'text'
  ]
  assert [part['text'] for part in parts if part['type'] == 'text'] == [
    '<0.5 seconds>',
    '<1.5 seconds>',
    '<2.5 seconds>',
    '<3.5 seconds>',
    'Describe.',
  ]
  images = [
    base64.b64decode(part['image_url']['url'].partition(',')[2])
    for part in parts
    if part['type'] == 'image_url'
  ]
  assert [clips.read_count(np.asarray(Image.open(io.BytesIO(image)))) for image in images] == [
    5,
    15,
    25,
    35,
  ]


def test_a_server_that_reads_our_disk_is_given_the_address(tmp_path):
  outcome, bodies = ask(tmp_path / 'a b.mp4', CaptionOptions(**{**vars(OPTIONS), 'send': 'video'}))
  assert outcome == CAPTION and bodies[0]['messages'][0]['content'][0] == {
    'type': 'video_url',
    'video_url': {'url': f'file://{tmp_path}/a%20b.mp4'},
  }


def test_a_clip_that_cannot_be_decoded_costs_no_request(tmp_path):
  (tmp_path / 'a.mp4').write_bytes(b'x')
  outcome, bodies = ask(tmp_path / 'a.mp4')
  assert isinstance(outcome, Rejected) and outcome.reason == 'not_video' and bodies == []
  outcome, bodies = ask(tmp_path / 'gone.mp4')
  assert isinstance(outcome, Failed) and outcome.reason == 'missing' and bodies == []


@pytest.mark.parametrize(
  'reply, outcome',
  [
    ('<think>Hm.</think>\nA red\n\nboard.', 'A red board.'),
    ('Hm.</think>A red board.', 'A red board.'),
    ('A board.', 'short'),
    ('<think>A red board.', 'unclosed_think'),
    ('A red board.</tool_response>', 'markup'),
    ('A red <|im_end|> board.', 'markup'),
  ],
)
def test_a_caption_is_one_line_without_thoughts_or_markup(reply, outcome):
  found = read(reply, 10)
  assert (found.reason if isinstance(found, Rejected) else found) == outcome


def test_captions_are_merged_in_order_of_time():
  assert merge_captions('a.mp4', [Caption(10.0, 20.0, 'late'), Caption(0.0, 10.0, 'early')]) == {
    'id': 'a.mp4',
    'captions': [
      {'start_time': 0.0, 'end_time': 10.0, 'caption': 'early'},
      {'start_time': 10.0, 'end_time': 20.0, 'caption': 'late'},
    ],
  }


def test_a_caption_sees_each_frame_once(tmp_path):
  path = clips.make_clip(
    tmp_path / 'a.mp4', 0.3, 10, (64, 64), lambda i: clips.counting_frame(i, (64, 64)), 10
  )
  _, bodies = ask(path)
  assert [part['type'] for part in bodies[0]['messages'][0]['content']] == [
    'text',
    'image_url',
  ] * 3 + ['text']
