"""Pixels: what a scene says can be read back from the decoded H.264 frames at the size the model
sees.
"""

import dataclasses
import io

import av
import numpy as np

from paravt_jax.data.world import render, scene
from paravt_jax.video import patches
from tests.data.world.small import SCENE


def decode(data: bytes) -> np.ndarray:
  with av.open(io.BytesIO(data)) as container:
    return np.stack([frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)])


def classify(frame: np.ndarray) -> str:
  """The colour whose pixels fill at least 8 % of a frame uint8[H, W, 3]; 'nothing' when none
  does.
  """
  palette = np.array([*scene.COLOURS.values()], float)
  distance = np.abs(frame.reshape(-1, 1, 3) - palette).max(axis=-1)
  counts = np.bincount(distance.argmin(axis=1)[distance.min(axis=1) < 45], minlength=len(palette))
  return (
    list(scene.COLOURS)[counts.argmax()]
    if counts.max() >= 0.08 * frame.shape[0] * frame.shape[1]
    else scene.NOTHING
  )


def agreement(options: scene.SceneOptions, videos: int) -> float:
  right = []
  for i in range(videos):
    drawn = scene.draw(options, f'v{i}', 0)
    seconds = decode(render.mp4(drawn, options))[:: options.fps]
    small = patches.resize(seconds, (32, 32))
    right += [classify(frame) == scene.label(drawn.at(t), False) for t, frame in enumerate(small)]
  return float(np.mean(right))


def test_answers_can_be_read_from_the_decoded_frames_at_32_pixels():
  assert agreement(SCENE, 4) > 0.99


def test_colours_survive_in_every_shape():
  assert agreement(dataclasses.replace(SCENE, shapes=True), 4) > 0.99


def test_a_video_has_the_promised_size_rate_and_codec():
  data = render.mp4(scene.draw(SCENE, 'v0', 0), SCENE)
  with av.open(io.BytesIO(data)) as container:
    stream = container.streams.video[0]
    assert (stream.codec_context.name, stream.frames, stream.width, stream.height) == (
      'h264',
      512,
      64,
      64,
    )
    assert float(stream.duration * stream.time_base) == 128.0
    assert float(stream.average_rate) == 4.0
  assert len(data) < 400_000


def test_the_same_scene_gives_the_same_bytes_and_another_seed_another_ground():
  options = dataclasses.replace(SCENE, seconds=64, events=(2, 2))
  drawn = scene.draw(options, 'v0', 0)
  assert render.mp4(drawn, options) == render.mp4(drawn, options)
  assert render.mp4(drawn, options) != render.mp4(dataclasses.replace(drawn, seed=1), options)


def test_the_ground_is_grey_noisy_and_moves():
  video = render.frames(scene.Scene('v', 128, (), 3), SCENE)
  assert (video[..., 0] == video[..., 2]).all()
  assert 8 < video[0, ..., 0].std() < 20
  assert (video[0] != video[1]).mean() > 0.3
