"""One question on one video with the full agent, told on the terminal as it happens; see
configs/ask.py.

Standard output: the overview, every turn, every crop as it comes back, the answer; with
--config.html the page's path last.
"""

import asyncio
import contextlib
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from experiments import launch
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import ConfigError, MediaError, RolloutError
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.options import require
from paravt_jax.orchestrator import parts, rollouts, servers
from paravt_jax.orchestrator.recipes import AskRecipe
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.report import evaluation as page
from paravt_jax.report.scenes import clock
from paravt_jax.rewards.answer import extract_answer
from paravt_jax.rollout.agent import CallDone, CallStarted, Event, Opened, TurnDone
from paravt_jax.rollout.sampler import Address
from paravt_jax.types import Clip, Episode, ResultStatus, StopReason, Task, ToolCall, ToolResult
from paravt_jax.video.readers import VideoInfo

Say = Callable[[str], None]


def main(recipe: AskRecipe) -> None:
  """Runs the episode of the question, and writes the page if the recipe wants one."""
  # Check the inputs before a server starts.
  check(recipe)
  servers.check(AgentSetup.of(recipe))
  folder = parts.named_or_newest_model(recipe.model.folder)
  model = parts.model_of_scale(folder, recipe.scale, 'configs/ask.py')
  probe(recipe)

  def say(line: str) -> None:
    print(line, flush=True)

  def write(text: str) -> None:
    print(text, end='', flush=True)

  by_url = recipe.server.kind == 'url'
  where = f'at {" ".join(recipe.server.urls)}' if by_url else '(starting its server)'
  say(f'model {folder} {where}')
  narrator = Narrator(say, time.monotonic, write)
  with Interrupts() as interrupts:
    episode = asyncio.run(ask(recipe, folder, model, narrator, interrupts))
  # The page decodes its frames again, after the server has ended.
  if recipe.html:
    video = recipe.decode
    with parts.decode_pool(video) as pool:

      def frames(path: str, seconds: Sequence[float]) -> Clip:
        return pool.frames_sync(path, seconds, video.min_pixels, video.max_pixels)

      say(f'page: {page.write_one(episode, recipe.html, frames)}')


def check(recipe: AskRecipe) -> None:
  """Raises ConfigError for missing inputs, before anything is started."""
  if not recipe.question.strip():
    raise ConfigError(
      '--config.question is empty: wanted a question on the video, as in '
      '--config.question="What appears at 41?"'
    )
  video = recipe.video
  if not video:
    raise ConfigError('--config.video is empty: wanted a video file, as in --config.video=FILE.mp4')
  if not pathlib.Path(video).is_file():
    raise ConfigError(f'--config.video={video}: there is no such file; check the path')
  is_folder = bool(recipe.html) and pathlib.Path(recipe.html).is_dir()
  require(recipe.html, 'a file to write', not is_folder, 'html')


def probe(recipe: AskRecipe) -> VideoInfo:
  """Returns what the file says about its video stream. Raises ConfigError if it is not a video."""
  with parts.decode_pool(recipe.decode) as pool:
    try:
      return pool.probe_sync(recipe.video)
    except MediaError as error:
      raise ConfigError(
        f'--config.video={recipe.video}: cannot be read as a video ({error.reason}); wanted a '
        'whole mp4, mkv, webm, …'
      ) from error


async def ask(
  recipe: AskRecipe,
  folder: pathlib.Path,
  model: Config,
  narrator: 'Narrator',
  interrupts: Interrupts,
) -> Episode:
  """Returns the finished episode of the question, and prints its events as they happen.

  Raises RolloutError if the server fails.
  """
  video = str(pathlib.Path(recipe.video).absolute())
  task = Task(pathlib.Path(video).name, (video,), recipe.question, recipe.question_type, '')
  logs = pathlib.Path(recipe.folder)
  tok = ChatTokenizer.load(folder)
  setup, vocab = AgentSetup.of(recipe), model.text.vocab
  async with rollouts.open_rollouts(setup, launch.host(), folder, tok, vocab, logs, None) as server:
    agent = server.sampling.with_watch(narrator, narrator.on_text)

    async def work() -> Episode:
      opening = await agent.open(task, recipe.frames)
      return await agent.run(task, opening, Address(recipe.seed, task.id, 0, 0))

    with contextlib.closing(narrator):
      episode = await rollouts.unless_stopped(work(), interrupts, server)
  if episode.stop is StopReason.ERROR:
    raise RolloutError(f'the server failed: {episode.error}; its log is in {logs}')
  narrator.say(f'answer: {answer(episode) or f"none (ended by {episode.stop})"}')
  return episode


def answer(episode: Episode) -> str:
  """Returns the answer of the last turn. '' if it has none."""
  return extract_answer(episode.turns[-1].text) if episode.turns else ''


class Narrator:
  """Prints an episode's events, a few lines each, with the seconds since it began.

  With `write`, a turn is printed while it is generated. Output is always plain text.

  say: prints a line.
  now: a clock, in seconds.
  write: prints a part of a line.
  """

  def __init__(self, say: Say, now: Callable[[], float], write: Say | None = None):
    self.say, self._write = say, write
    self._now, self._start = now, now()
    self._numbers: dict[tuple[int, int], int] = {}
    self._written = ''  # of the turn in progress

  def on_text(self, turn: int, text: str) -> None:
    """Prints the new part of a turn's text. If a text starts over, it waits for the turn's end."""
    lines = indented(text)
    if self._write is None or lines == self._written or not lines.startswith(self._written):
      return
    if not self._written:
      self._tell(f'turn {turn + 1}:')
    self._write(lines[len(self._written) :])
    self._written = lines

  def close(self) -> None:
    """Ends an unfinished line."""
    if self._written and self._write is not None:
      self._write('\n')
    self._written = ''

  def _turn_done(self, event: TurnDone) -> None:
    begun = bool(self._written)
    self.on_text(event.turn, event.text)
    whole = self._written == indented(event.text) != ''
    self.close()
    if not whole:  # nothing was printed before, or another text
      self._tell(f'turn {event.turn + 1}{", written again" if begun else ""}:')
      for line in indented(event.text).splitlines():
        self.say(line)

  def __call__(self, event: Event) -> None:
    if isinstance(event, Opened):
      self._start = self._now()
      for view in event.opening.overviews:
        span = (
          f', from {clock(view.seconds[0])} to {clock(view.seconds[-1])}' if view.seconds else ''
        )
        self._tell(
          f'overview: {len(view.seconds)} frames{span}; the video lasts {clock(view.duration)}'
        )
    elif isinstance(event, TurnDone):
      self._turn_done(event)
    elif isinstance(event, CallStarted):
      self._tell(f'  crop {self._number(event)} → {describe_call(event.call)}')
    elif isinstance(event, CallDone):
      self._tell(f'  crop {self._number(event)} ← {describe_result(event.result)}')

  def _number(self, event: CallStarted | CallDone) -> int:
    """Numbers the crops through all turns from 1, as on the page."""
    return self._numbers.setdefault((event.turn, event.index), len(self._numbers) + 1)

  def _tell(self, line: str) -> None:
    self.say(f'[{self._now() - self._start:6.1f} s] {line}')


def indented(text: str) -> str:
  """Formats a turn's lines below its heading. A partial text gives the first of them."""
  return '\n'.join(f'           {line}' for line in text.strip().splitlines())


def describe_call(call: ToolCall | object) -> str:
  """Formats a call as '39 s – 43 s', in the agent's own numbers.

  A malformed call gets a mark. A block that is not a call is returned as it is.
  """
  if isinstance(call, ToolCall):
    arguments = call.arguments
    form = '' if call.well_formed else '   (not well-formed: training would not credit it)'
    start, end = (_seconds(arguments.get(name, '?')) for name in ('start_time', 'end_time'))
    return f'{start} – {end}{form}'
  return ' '.join(getattr(call, 'text', '').split())[:80] or 'a block that is no call'


def _seconds(value: object) -> str:
  """Formats a number with its unit, and any other value unchanged."""
  return f'{value} s' if type(value) in (int, float) else str(value)


def describe_result(result: ToolResult) -> str:
  """Formats the result of a call: its text, and how many frames the sub-agent saw."""
  text = ' '.join(result.text.split())
  if result.status is ResultStatus.EXECUTED and result.window is not None:
    return (
      f'{text}   ({len(result.seconds)} frames, {clock(result.window.start)} – '
      f'{clock(result.window.end)})'
    )
  return f'{str(result.status).replace("_", " ")}: {text}'


if __name__ == '__main__':
  sys.exit(launch.run(main, AskRecipe))
