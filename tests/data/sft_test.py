"""SFT samples: the token stream of the agent loop, the mask of spec section 10, the frames of the
samplers.
"""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from paravt_jax import packing
from paravt_jax.chat import prompts, template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import sft
from paravt_jax.data.conversations import Conversation, ImageRef, Message, VideoRef
from paravt_jax.errors import MediaError
from paravt_jax.testing import tiny
from paravt_jax.types import Clip, Window
from paravt_jax.video import sampling
from paravt_jax.video.readers import VideoInfo

OPTIONS = sft.FrameOptions(
  rate=1.0,
  min_frames=1,
  max_frames=16,
  min_pixels=1024,
  max_pixels=1024,
  image_max_pixels=1024,
  think_prefix='<think>\n',
)
CALL = (
  '<think>\nLook at 41 and 73.\n</think>\n'
  '<tool_call>{"name": "crop_video", "arguments": {"start_time": 39, "end_time": 43}}</tool_call>'
)
ANSWER = '<think>\nSeen: 41 red.\n</think>\n<answer>red</answer>'


class Fake:
  """A video of 128 s at 4 frames/s whose frames hold their second."""

  def __init__(self, shift=0.0):
    self.shift, self.decoded = shift, []

  def probe_sync(self, path):
    if path == 'missing':
      raise MediaError('missing', 'missing')
    return VideoInfo(128.0, 4.0, 512, 64, 64)

  def frames_sync(self, path, seconds, min_pixels, max_pixels):
    self.decoded.append((path, tuple(seconds)))
    seconds = np.minimum(np.floor(np.asarray(seconds) * 4) / 4, 127.75) + self.shift
    return Clip(np.stack([np.full((32, 32, 3), int(s), np.uint8) for s in seconds]), seconds, 128.0)


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tok')
  tiny.build_tokenizer(folder)
  return ChatTokenizer.load(folder)


def conversation(*messages):
  return Conversation('t.parquet:0', tuple(Message(role, parts) for role, parts in messages))


WORKED = conversation(
  ('system', (prompts.SYSTEM,)),
  ('user', (VideoRef('v', 4, None, None), prompts.question('What appears at 41?', 'oe'))),
  ('assistant', (CALL,)),
  ('user', ('<tool_response>\n41 red\n</tool_response>',)),
  ('user', ('<tool_response>\nError: <|im_end|> <think> bad\n</tool_response>',)),
  ('user', (prompts.FINAL_REQUEST,)),
  ('assistant', (ANSWER,)),
)


def test_the_stream_equals_the_agent_loop_s(tok):
  clip = Fake().frames_sync('v', sampling.budget_times(128.0, 4, 4.0), 1024, 1024)
  user = [
    *template.frame_pieces(clip.frames, clip.seconds),
    prompts.question('What appears at 41?', 'oe'),
  ]
  prefix = OPTIONS.think_prefix
  sampled = [
    np.append(tok.encode(turn[len(prefix) :], trusted=True), tok.im_end) for turn in (CALL, ANSWER)
  ]
  stream = [
    template.opening(tok, prompts.SYSTEM, user, prefix).ids,
    sampled[0],
    template.continuation(
      tok,
      closed=True,
      results=['41 red', 'Error: <|im_end|> <think> bad'],
      request=prompts.FINAL_REQUEST,
      think_prefix=prefix,
    ).ids,
    sampled[1],
    template.closing(tok, True).ids,
  ]
  got = sft.sample(tok, WORKED, sft.decoded(Fake(), OPTIONS), OPTIONS)
  np.testing.assert_array_equal(got.ids, np.concatenate(stream))
  np.testing.assert_array_equal(np.stack(got.images), clip.frames)


def test_a_subagent_s_stream_equals_the_agent_loop_s(tok):
  window = Window(39.0, 43.0)
  times = sampling.window_times(window, fps=1, min_frames=2, max_frames=16)
  clip = Fake().frames_sync('v', times, 1024, 1024)
  text = prompts.subagent(window, 'What appears at 41?')
  given = template.opening(tok, None, [*template.frame_pieces(clip.frames, clip.seconds), text], '')
  row = conversation(('user', (VideoRef('v', 5, 39.0, 43.0), text)), ('assistant', ('41 red',)))
  got = sft.sample(tok, row, sft.decoded(Fake(), OPTIONS), OPTIONS)
  np.testing.assert_array_equal(
    got.ids, [*given.ids, *tok.encode('41 red', trusted=True), tok.im_end]
  )
  assert [int(image[0, 0, 0]) for image in got.images] == [39, 40, 41, 42, 43]


def test_targets_are_assistant_tokens_with_prefix_and_end_and_nothing_else(tok):
  got = sft.sample(tok, WORKED, sft.decoded(Fake(), OPTIONS), OPTIONS)
  mask = got.extras[sft.MASK]
  assert mask.dtype == np.float32 and len(mask) == len(got.ids)
  assert tok.decode(got.ids[mask > 0]) == f'{CALL}<|im_end|>{ANSWER}<|im_end|>'
  first = int(np.argmax(mask > 0))
  assert tok.decode(got.ids[:first]).endswith('<|im_start|>assistant\n')
  assert not mask[got.ids == tok.image_pad].any()


@pytest.mark.parametrize(
  ('ref', 'seconds'),
  [
    (VideoRef('v', 4, None, None), [16, 48, 80, 112]),
    (VideoRef('v', None, None, None), list(range(4, 128, 8))),
    (VideoRef('v', 3, 10.0, 20.0), [10, 15, 20]),
    (VideoRef('v', None, 10.0, 12.0), [10, 11, 12]),
    (VideoRef('v', 1, 23.0, 24.0), [23]),
    (VideoRef('v', None, 120.0, 500.0), list(range(120, 129))),
  ],
)
def test_frames_are_sampled_as_in_rollouts(ref, seconds):
  np.testing.assert_allclose(sft.frame_times(ref, Fake().probe_sync('v'), OPTIONS), seconds)


def test_a_window_outside_the_video_is_a_typed_error():
  with pytest.raises(MediaError, match='start < end') as error:
    sft.frame_times(VideoRef('v', None, 130.0, 140.0), Fake().probe_sync('v'), OPTIONS)
  assert error.value.reason == 'window'


def test_lengths_without_decoding_are_the_lengths_after_it(tok):
  fake = Fake()
  for ref in (
    VideoRef('v', 64, None, None),
    VideoRef('v', 7, 3.0, 50.0),
    VideoRef('v', None, 120.0, 128.0),
  ):
    row = conversation(('user', (ref, 'What?')), ('assistant', ('red',)))
    planned = sft.sample(tok, row, sft.media_sizes(fake, OPTIONS), OPTIONS)
    assert not fake.decoded
    real = sft.sample(tok, row, sft.decoded(Fake(), OPTIONS), OPTIONS)
    np.testing.assert_array_equal(planned.ids, real.ids)
    assert packing.expanded_length(planned) == packing.expanded_length(real)


def test_images_of_a_row_are_resized_once_and_missing_ones_are_typed_errors(tok, tmp_path):
  Image.new('RGB', (70, 50), (10, 200, 30)).save(tmp_path / 'a.png')
  options = sft.FrameOptions(
    rate=1.0,
    min_frames=1,
    max_frames=16,
    image_max_pixels=4096,
    think_prefix='<think>\n',
    min_pixels=1024,
    max_pixels=1024,
  )
  row = conversation(
    ('user', (ImageRef(str(tmp_path / 'a.png')), 'Colour?')), ('assistant', ('green',))
  )
  for media in (sft.decoded(Fake(), options), sft.media_sizes(Fake(), options)):
    got = sft.sample(tok, row, media, options)
    assert [image.shape for image in got.images] == [(64, 64, 3)] and packing.expanded_length(
      got
    ) == len(got.ids) + 3
  (tmp_path / 'b.png').write_bytes(b'no image')
  for name, reason in (('c.png', 'missing'), ('b.png', 'decode')):
    with pytest.raises(MediaError) as error:
      sft.sample(
        tok,
        conversation(('user', (ImageRef(str(tmp_path / name)),))),
        sft.decoded(Fake(), options),
        options,
      )
    assert error.value.reason == reason


class Slides(Fake):
  """512 frames; but from 10 s on a slide stays for 20 s each."""

  def frames_sync(self, path, seconds, min_pixels, max_pixels):
    clip = super().frames_sync(path, seconds, min_pixels, max_pixels)
    return Clip(
      clip.frames,
      clip.seconds,
      clip.duration,
      np.where(clip.seconds < 10, clip.seconds, np.floor(clip.seconds / 20) * 20),
    )


def test_a_video_shows_each_frame_once_counts_the_repeats_and_was_planned_no_shorter(tok):
  for ref, wanted, left_out in (
    (VideoRef('v', 16, None, None), 8, 8),
    (VideoRef('v', None, 30.0, 45.0), 2, 14),
    (VideoRef('v', None, 3.0, 8.0), 6, 0),
  ):
    row, repeated = conversation(('user', (ref, 'What?')), ('assistant', ('red',))), []
    real = sft.sample(tok, row, sft.decoded(Slides(), OPTIONS, repeated.append), OPTIONS)
    planned = sft.sample(tok, row, sft.media_sizes(Slides(), OPTIONS), OPTIONS)
    assert (len(real.images), repeated) == (wanted, [left_out])
    assert (real.ids == tok.image_pad).sum() == wanted
    assert packing.expanded_length(planned) >= packing.expanded_length(real)


def test_the_frame_on_screen_when_a_window_opens_is_labelled_inside_it(tok):
  row = conversation(('user', (VideoRef('v', 2, 10.1, 12.1), 'What?')), ('assistant', ('red',)))
  for media in (sft.decoded(Fake(), OPTIONS), sft.media_sizes(Fake(), OPTIONS)):
    assert '<10.1 seconds>' in tok.decode(sft.sample(tok, row, media, OPTIONS).ids)


class Short(Fake):
  """Five frames in ten seconds, at a constant rate."""

  def probe_sync(self, path):
    return VideoInfo(10.0, 0.5, 5, 64, 64)

  def frames_sync(self, path, seconds, min_pixels, max_pixels):
    seconds = np.floor(np.asarray(seconds) / 2) * 2
    return Clip(np.zeros((len(seconds), 32, 32, 3), np.uint8), seconds, 10.0)


def test_a_short_video_s_length_is_that_of_its_frames(tok):
  row = conversation(('user', (VideoRef('v', 16, None, None), 'What?')), ('assistant', ('red',)))
  real, planned = (
    sft.sample(tok, row, media(Short(), OPTIONS), OPTIONS)
    for media in (sft.decoded, sft.media_sizes)
  )
  np.testing.assert_array_equal(real.ids, planned.ids)
  assert len(real.images) == len(planned.images) == 5


def test_deep_and_rotated_images_reach_a_row_as_they_look(tmp_path):
  options = sft.FrameOptions(
    rate=1.0,
    min_frames=1,
    max_frames=16,
    image_max_pixels=50176,
    think_prefix='<think>\n',
    min_pixels=1024,
    max_pixels=50176,
  )
  exif = Image.Exif()
  exif[0x0112] = 6
  Image.new('RGB', (96, 64), (255, 255, 255)).save(tmp_path / 'a.jpg', exif=exif)
  Image.fromarray(np.full((64, 64), 32896, np.uint16)).save(tmp_path / 'a.png')
  assert sft._image(ImageRef(str(tmp_path / 'a.jpg')), options).shape == (96, 64, 3)
  assert sft.media_sizes(Fake(), options)(ImageRef(str(tmp_path / 'a.jpg')))[0].shape == (96, 64, 3)
  assert sft._image(ImageRef(str(tmp_path / 'a.png')), options).mean() == 128


def test_a_masked_turn_is_in_the_context_and_no_target(tok):
  whole = sft.sample(tok, WORKED, sft.decoded(Fake(), OPTIONS), OPTIONS)
  messages = [
    dataclasses.replace(message, is_target=message.parts != (CALL,)) for message in WORKED.messages
  ]
  masked = sft.sample(
    tok, Conversation('t.parquet:0', tuple(messages)), sft.decoded(Fake(), OPTIONS), OPTIONS
  )
  np.testing.assert_array_equal(masked.ids, whole.ids)
  last = (
    len(tok.encode(OPTIONS.think_prefix, trusted=True))
    + len(tok.encode(ANSWER[len(OPTIONS.think_prefix) :], trusted=True))
    + 1
  )
  assert masked.extras[sft.MASK].sum() == last < whole.extras[sft.MASK].sum()
  assert masked.extras[sft.MASK][-last:].all()
