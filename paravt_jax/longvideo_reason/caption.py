"""Step 2: a vision model captions each clip. Step 3: the captions of a video are merged in order of
time.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from paravt_jax.errors import MediaError
from paravt_jax.longvideo_reason import parse
from paravt_jax.longvideo_reason.items import Caption, Failed, Rejected
from paravt_jax.options import COUNT, PIXELS, PROSE, TEMPERATURE, Options, either, whole
from paravt_jax.rollout import chat_server as server
from paravt_jax.video import sampling
from paravt_jax.video.decode import DecodePool

VERSION = 1
_LATER = ('timeout', 'crashed', 'missing')  # a clip that may decode the next time


@dataclasses.dataclass(frozen=True)
class CaptionOptions(Options):
  """How clips are captioned."""

  prompt: Annotated[str, PROSE]  # what is asked of a clip
  send: Annotated[
    str, either('frames', 'video')
  ]  # JPEGs, or a file:// URL for a server on our disk
  frames: Annotated[int, COUNT]  # of a clip, evenly
  min_pixels: Annotated[int, whole(0, note='0: no lower bound')]  # area of a frame, at least
  max_pixels: Annotated[int, PIXELS]  # area of a frame, at most
  quality: Annotated[int, whole(1, 95)]  # of the JPEGs
  max_tokens: Annotated[int, COUNT]  # of a reply
  temperature: Annotated[float, TEMPERATURE]  # of sampling
  min_chars: Annotated[int, whole(0)]  # a shorter caption is rejected

  def __post_init__(self) -> None:
    super().__post_init__()
    self.require_order('min_pixels', 'max_pixels')


async def caption(
  client: server.Server, pool: DecodePool, clip: str, options: CaptionOptions, seed: int
) -> str | Rejected | Failed:
  """Returns one clip's caption on one line, or Rejected with 'short', 'unclosed_think', 'markup' or
  a MediaError's reason.
  """
  try:
    parts = await _media(pool, clip, options)
  except MediaError as error:
    return (Failed if error.reason in _LATER else Rejected)(error.reason, str(error))
  messages = [{'role': 'user', 'content': [*parts, server.text_part(options.prompt)]}]
  outcome = await client.complete(
    messages, server.Sampling(options.max_tokens, options.temperature, seed)
  )
  return read(outcome.text, options.min_chars) if isinstance(outcome, server.Reply) else outcome


async def _media(pool: DecodePool, clip: str, options: CaptionOptions) -> list[dict[str, Any]]:
  """The clip as parts of a message: frames after their times, or the file's address."""
  if options.send == 'video':
    return [server.video_part(clip)]
  info = await pool.probe(clip)
  times = sampling.overview_times(info.duration, options.frames, info.fps).tolist()
  shown, _ = sampling.once(
    await pool.frames(clip, times, options.min_pixels, options.max_pixels), times
  )
  parts = []
  for second, pixels in zip(shown.seconds, shown.frames):
    parts += [
      server.text_part(f'<{second:.1f} seconds>'),
      server.image_part(pixels, options.quality),
    ]
  return parts


def read(reply: str, min_chars: int) -> str | Rejected:
  """Returns the caption in a reply, on one line. The model's own thoughts are removed. Returns
  Rejected for an unclosed thought, for our tags or special tokens, and for a text under min_chars.
  """
  text = parse.without_think(reply)
  if isinstance(text, Rejected):
    return text
  if found := parse.MARKUP.search(text):
    return Rejected('markup', f'the caption holds {found.group()}', reply)
  line = ' '.join(text.split())
  return (
    line
    if len(line) >= min_chars
    else Rejected('short', f'{len(line)} characters, wanted {min_chars}', reply)
  )


def merge_captions(name: str, captions: Sequence[Caption]) -> dict[str, Any]:
  """{id, captions: [{start_time, end_time, caption}]} of a video, sorted by time."""
  ordered = sorted(captions, key=lambda caption: (caption.start, caption.end))
  return {
    'id': name,
    'captions': [
      {'start_time': each.start, 'end_time': each.end, 'caption': each.text} for each in ordered
    ],
  }
