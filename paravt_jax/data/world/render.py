"""Renders scenes: frames drawn with numpy, encoded as H.264 in mp4 by PyAV.

Scene and options determine every byte.
"""

import io

import av
import numpy as np

from paravt_jax.data.world.scene import COLOURS, Event, Scene, SceneOptions

SIZE = 0.31  # half the side of an event, as a fraction of the side of the frame
CRF = '30'
KEY_FRAMES = '4'  # frames between key frames; small, so that seeking decodes few frames


def shape_mask(event: Event, pixels: int) -> np.ndarray:
  """Returns bool[pixels, pixels]: True inside the event's shape."""
  grid = (np.arange(pixels) + 0.5) / pixels
  y, x = np.abs(grid - event.y)[:, None], np.abs(grid - event.x)[None, :]
  masks = {
    'block': (x < SIZE) & (y < SIZE),
    'disc': x**2 + y**2 < (1.15 * SIZE) ** 2,
    'cross': ((x < SIZE / 3) & (y < 1.3 * SIZE)) | ((y < SIZE / 3) & (x < 1.3 * SIZE)),
    'bar': (x < 1.4 * SIZE) & (y < SIZE / 2),
  }
  return masks[event.shape]


def frames(scene: Scene, options: SceneOptions) -> np.ndarray:
  """Returns uint8[seconds * fps, pixels, pixels, 3] RGB.

  The background is noisy, moving grey. The shapes of the events are drawn over it.
  """
  rng = np.random.default_rng(scene.seed)
  size, count = options.pixels, scene.seconds * options.fps
  # a noisy grey tile, shifted by a random walk: [N, pixels, pixels]
  level = rng.uniform(105, 150)
  grain = np.clip(rng.normal(level, options.noise, (size, size)), 60, 195).astype(np.uint8)
  tile = np.tile(grain.repeat(2, 0).repeat(2, 1)[:size, :size], (2, 2))
  steps = np.cumsum(rng.integers(-1, 2, (count, 2)), axis=0) % size
  ground = np.stack([tile[dy : dy + size, dx : dx + size] for dy, dx in steps])
  video = np.repeat(ground[..., None], 3, axis=-1)
  # paint the events: a view of their frames, [n, pixels, pixels, 3]
  for event in scene.events:
    shown = video[event.start * options.fps : event.end * options.fps]
    shown[:, shape_mask(event, size)] = COLOURS[event.colour]
  return video


def encode(video: np.ndarray, fps: int) -> bytes:
  """Returns an mp4 file (H.264, yuv420p) of uint8[N, H, W, 3] at `fps`.

  Encoding uses one thread, so that the bytes are the same on every machine.
  """
  out = io.BytesIO()
  with av.open(out, 'w', format='mp4') as container:
    stream = container.add_stream('libx264', rate=fps)
    stream.height, stream.width, stream.pix_fmt = video.shape[1], video.shape[2], 'yuv420p'
    stream.codec_context.thread_count = 1
    stream.options = {'preset': 'ultrafast', 'crf': CRF, 'g': KEY_FRAMES, 'bf': '0', 'threads': '1'}
    for image in video:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format='rgb24')))
    container.mux(stream.encode(None))
  return out.getvalue()


def mp4(scene: Scene, options: SceneOptions) -> bytes:
  """Returns the scene as the bytes of an mp4 file."""
  return encode(frames(scene, options), options.fps)
