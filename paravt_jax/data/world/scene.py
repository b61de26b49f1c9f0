"""The facts of a synthetic video: short events (colour, shape) on a long grey background."""

import dataclasses
from typing import Annotated

from paravt_jax import seeds
from paravt_jax.errors import ConfigError
from paravt_jax.options import COUNT, FLAG, Options, from_, multiple_of, span, whole

COLOURS = {
  'red': (220, 30, 30),
  'green': (20, 170, 40),
  'blue': (30, 50, 225),
  'yellow': (235, 220, 30),
  'pink': (235, 50, 205),
  'cyan': (30, 215, 220),
  'white': (250, 250, 250),
  'black': (8, 8, 8),
}
SHAPES = ('block', 'disc', 'cross', 'bar')
NOTHING = 'nothing'


@dataclasses.dataclass(frozen=True)
class SceneOptions(Options):
  """How a video is made up. Events start and end on whole seconds."""

  seconds: Annotated[int, COUNT]  # of the video
  fps: Annotated[int, COUNT]  # frames per second
  pixels: Annotated[int, multiple_of(32)]  # of an edge of its square frames
  events: Annotated[tuple[int, int], span(1)]  # least and most of a video
  event_seconds: Annotated[tuple[int, int], span(1)]  # least and most of an event
  gap: Annotated[int, whole(0)]  # seconds between two events, at least
  margin: Annotated[int, whole(0)]  # seconds at either end without an event
  colours: Annotated[int, COUNT]  # how many there are
  shapes: Annotated[bool, FLAG]  # events are asked for as 'red disc' instead of 'red'
  noise: Annotated[float, from_(0)]  # standard deviation of the ground's pixels, 0 to 255


@dataclasses.dataclass(frozen=True)
class Event:
  """A shape that is visible for some seconds."""

  start: int  # the first whole second
  end: int  # the whole second after the last
  colour: str
  shape: str
  x: float  # centre, as a fraction of the side of the frame
  y: float  # centre, as a fraction of the side of the frame


@dataclasses.dataclass(frozen=True)
class Scene:
  """One video."""

  name: str
  seconds: int  # length of the video
  events: tuple[Event, ...]  # in order of time
  seed: int  # seed of the background noise

  def at(self, second: float) -> Event | None:
    """Returns the event that is visible at a second, or None."""
    return next((event for event in self.events if event.start <= second < event.end), None)


def check(options: SceneOptions) -> None:
  """Checks that a video can satisfy the options.

  Raises:
    ConfigError: names the option, its value, and valid values.
  """
  longest = options.events[1] * (options.event_seconds[1] + options.gap) + 2 * options.margin
  if not 1 <= options.colours <= len(COLOURS):
    raise ConfigError(f'world.scene.colours: got {options.colours}, wanted 1..{len(COLOURS)}')
  if options.pixels % 32 or options.pixels < 32:
    raise ConfigError(f'world.scene.pixels: got {options.pixels}, wanted a multiple of 32')
  if longest > options.seconds:
    raise ConfigError(
      f'world.scene: {options.events[1]} events of {options.event_seconds[1]} s with gaps of '
      f'{options.gap} s need {longest} s, but a video has {options.seconds}; lower events or '
      'raise seconds'
    )
  if not (
    1 <= options.events[0] <= options.events[1]
    and 1 <= options.event_seconds[0] <= options.event_seconds[1]
  ):
    raise ConfigError(
      f'world.scene: got events {options.events} and event_seconds {options.event_seconds}, wanted '
      f'1 <= low <= high'
    )


def draw(options: SceneOptions, name: str, seed: int) -> Scene:
  """Returns a scene. It depends only on (options, name, seed).

  Events are distributed uniformly over all layouts that keep the gaps.
  """
  rng = seeds.rng(seed, 'scene', name)
  # seconds that remain after events, gaps and margins: the slack
  count = int(rng.integers(options.events[0], options.events[1] + 1))
  lengths = rng.integers(options.event_seconds[0], options.event_seconds[1] + 1, count)
  slack = options.seconds - 2 * options.margin - int(lengths.sum()) - (count - 1) * options.gap
  # uniform over all layouts: distribute the slack by sorted random cuts
  cuts = sorted(rng.integers(0, slack + 1, count).tolist())
  names = list(COLOURS)[: options.colours]
  events, clock = [], options.margin
  for i in range(count):
    start = clock + cuts[i]
    colour = names[rng.integers(len(names))]
    shape = SHAPES[rng.integers(len(SHAPES))] if options.shapes else SHAPES[0]
    x, y = rng.uniform(0.4, 0.6, 2).round(3).tolist()
    events.append(Event(start, start + int(lengths[i]), colour, shape, x, y))
    clock += int(lengths[i]) + options.gap
  return Scene(name, options.seconds, tuple(events), seeds.at(seed, 'noise', name))


def label(event: Event | None, shapes: bool) -> str:
  """Returns the name of an event in answers: 'red', or 'red disc' with shapes.

  Returns 'nothing' for None.
  """
  if event is None:
    return NOTHING
  return f'{event.colour} {event.shape}' if shapes else event.colour
