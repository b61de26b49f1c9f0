"""The clips that tests are made of."""

import av
import numpy as np
import pytest

from paravt_jax.testing import clips


@pytest.mark.parametrize('size', [(32, 32), (64, 96)])
def test_a_frame_spells_its_number(size):
  assert [clips.read_count(clips.counting_frame(i, size)) for i in (0, 1, 511, 65535)] == [
    0,
    1,
    511,
    65535,
  ]


def test_a_clip_is_h264_of_the_length_rate_and_size_asked_for_with_key_frames_at_least_every_gop(
  tmp_path,
):
  path = clips.make_clip(
    tmp_path / 'a.mp4', 5, 10, (64, 96), lambda i: np.full((64, 96, 3), i, np.uint8), 8
  )
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.frames, stream.average_rate) == ('h264', 50, 10)
    assert (stream.codec_context.height, stream.codec_context.width) == (64, 96)
    keys = [
      packet.pts * stream.time_base * 10 for packet in container.demux(stream) if packet.is_keyframe
    ]
  assert keys[0] == 0 and max(np.diff([*keys, 50])) <= 8
