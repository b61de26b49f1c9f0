"""The rows of the synthetic corpus: RL tasks and SFT conversations, in the published schemas.

Each kind of SFT rows has its own file (`paravt_sft_<kind>.parquet`), so that a row's id says what
it teaches:
  trace      the main agent at a budget K: overview, question, calls, tool responses, answer
  subagent   one window, a question about it, and a short answer
  lookup<n>  a window of n seconds, one frame per second:
             'What appears at 41 12 50?' -> '41 red. 12 nothing. 50 blue.'
  glance<n>  the same on an overview of n frames
  choice<n>  an mcq question about such a window, answered without a call
  letters    only options: each with its letter, the step from what is seen to an answer
`trace_<question>` and `subagent_<question>` have one kind of question only, such as trace_mcq or
subagent_tvg.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from paravt_jax import seeds
from paravt_jax.chat import prompts
from paravt_jax.data.world import questions, traces
from paravt_jax.data.world import scene as scenes
from paravt_jax.errors import ConfigError
from paravt_jax.options import BUDGETS, COUNT, SHARE, Members, Options, whole
from paravt_jax.types import Task, Window
from paravt_jax.video import sampling

KIND = re.compile(
  rf'(trace|subagent)(_({"|".join(questions.KINDS)}))?|letters|(lookup|glance|choice)[1-9]\d*'
)
# question numbers of SFT rows start here, so that they differ from those of the RL tasks
SFT_NUMBERS = 1_000_000


@dataclasses.dataclass(frozen=True)
class CorpusOptions(Options):
  """How many rows of what. Held-out tasks are about videos that no other row shows."""

  videos: Annotated[int, COUNT]  # that training rows are about
  heldout_videos: Annotated[int, whole(0)]  # that held-out tasks are about
  rl_tasks: Annotated[int, whole(0)]  # training tasks of RL
  heldout_tasks: Annotated[int, whole(0)]  # tasks for evaluation
  sft_rows: Annotated[Mapping[str, int], Members(whole(0))]  # training rows of SFT, by kind
  budgets: Annotated[tuple[int, ...], BUDGETS]  # K of `trace` rows, drawn uniformly
  loose: Annotated[float, SHARE]  # share of sub-agent rows with a window around the cue at random
  stray: Annotated[float, SHARE]  # share of sub-agent rows whose window misses the cue
  asked: Annotated[int, COUNT]  # times that a look-up asks for, at most
  videos_per_archive: Annotated[int, COUNT]  # in each archive of the corpus


@dataclasses.dataclass(frozen=True)
class WorldOptions:
  """Everything that makes a world; with a seed it fixes every byte."""

  scene: scenes.SceneOptions
  questions: questions.QuestionOptions
  traces: traces.TraceOptions
  corpus: CorpusOptions


def check(options: WorldOptions) -> None:
  """Checks the options. Raises ConfigError, which names the invalid option."""
  scenes.check(options.scene)
  questions.check(options.questions, options.scene.colours)
  corpus = options.corpus
  unknown = [kind for kind in corpus.sft_rows if not KIND.fullmatch(kind)]
  if unknown:
    raise ConfigError(
      f'world.corpus.sft_rows: got {unknown}, wanted trace, subagent (of one question: '
      'trace_mcq, …), letters, lookup<n>, glance<n> or choice<n>'
    )
  if min(corpus.videos, corpus.videos_per_archive) < 1 or (
    corpus.heldout_tasks and corpus.heldout_videos < 1
  ):
    raise ConfigError(
      f'world.corpus: got videos={corpus.videos}, videos_per_archive={corpus.videos_per_archive}, '
      f'heldout_videos={corpus.heldout_videos}, wanted at least 1 of each'
    )
  longest = max(
    (frames_of(kind) for kind in corpus.sft_rows if kind.startswith(('lookup', 'choice'))),
    default=0,
  )
  if longest > options.scene.seconds:
    raise ConfigError(
      f'world.corpus.sft_rows: got a window of {longest}, wanted at most '
      f'{options.scene.seconds} frames'
    )


def frames_of(kind: str) -> int:
  """Returns n of lookup<n>, glance<n> and choice<n>; 0 for the other kinds."""
  digits = re.sub(r'\D', '', kind)
  return int(digits) if digits else 0


def archive_of(index: int, options: CorpusOptions) -> int:
  """Returns the number (from 1) of the archive with video `index`. Held-out videos come last."""
  return index // options.videos_per_archive + 1


def sentinel(index: int, options: CorpusOptions) -> str:
  """Returns the media path of video `index`, as in the published corpora.

  Example: longvt_source/selftrace_1/world00000.mp4.
  """
  return f'longvt_source/selftrace_{archive_of(index, options)}/{video_name(index)}.mp4'


def video_name(index: int) -> str:
  """Returns the name of video `index`."""
  return f'world{index:05d}'


def draw_scenes(options: WorldOptions, seed: int) -> list[scenes.Scene]:
  """Returns all scenes, the held-out ones last."""
  count = options.corpus.videos + options.corpus.heldout_videos
  return [scenes.draw(options.scene, video_name(i), seed) for i in range(count)]


class Writer:
  """Makes rows about given scenes. Each row depends only on (options, seed, its number)."""

  def __init__(self, options: WorldOptions, drawn: list[scenes.Scene], seed: int):
    self.options, self.scenes, self.seed = options, drawn, seed
    self.videos = [sentinel(i, options.corpus) for i in range(len(drawn))]

  def task(self, video: int, number: int, source: str, only: str = '') -> Task:
    """Returns question `number` about a video. Task.video is the sentinel path.

    only: the kind of question; '' draws one by the weights.
    """
    asked = (
      dataclasses.replace(self.options.questions, weights={only: 1.0})
      if only
      else self.options.questions
    )
    return questions.draw(
      self.scenes[video],
      number,
      asked,
      shapes=self.options.scene.shapes,
      colours=self.options.scene.colours,
      video=self.videos[video],
      source=source,
      seed=self.seed,
    )

  def tasks(self, count: int, first: int, videos: int, source: str) -> Iterator[Task]:
    """Yields `count` tasks, spread evenly over `videos` videos starting at video `first`."""
    for i in range(count):
      yield self.task(first + i % videos, i // videos, source)

  def sft_rows(self, kind: str) -> Iterator[list[dict]]:
    """Yields the conversations (lists of messages) of one kind."""
    makers = {
      'trace': self._trace,
      'subagent': self._subagent,
      'choice': self._choice,
      'letters': self._letters,
    }
    make = makers.get(re.sub('[^a-z].*', '', kind), self._lookup)
    for i in range(self.options.corpus.sft_rows[kind]):
      yield make(kind, i)

  def _sft_task(self, kind: str, i: int) -> tuple[int, Task]:
    rng = seeds.rng(self.seed, 'sft', kind, i)
    video = int(rng.integers(self.options.corpus.videos))
    return video, self.task(
      video, SFT_NUMBERS + seeds.at(self.seed, kind, i) % 2**40, kind, kind.partition('_')[2]
    )

  def _trace(self, kind: str, i: int) -> list[dict]:
    video, task = self._sft_task(kind, i)
    budgets = self.options.corpus.budgets
    budget = budgets[seeds.at(self.seed, 'budget', i) % len(budgets)]
    scene = self.options.scene
    trace = traces.work(
      self.scenes[video],
      task,
      budget,
      self.options.traces,
      shapes=scene.shapes,
      fps=scene.fps,
      seed=self.seed,
    )
    # system prompt, question, then the turns with their tool responses
    messages = [
      _system(),
      _user(
        _video(task.video, nframes=budget), prompts.question(task.question, task.question_type)
      ),
    ]
    for turn, replies in zip(trace.turns, trace.replies):
      messages.append(_text('assistant', turn))
      messages += [
        _text('user', f'<tool_response>\n{reply}\n</tool_response>') for reply in replies
      ]
    return messages

  def _subagent(self, kind: str, i: int) -> list[dict]:
    video, task = self._sft_task(kind, i)
    start, end = self._window(video, task, i)
    window = Window(float(start), float(end))
    seconds = sampling.window_times(window, fps=1, min_frames=2, max_frames=16)
    answer = traces.subagent_answer(
      self.scenes[video], task, [float(s) for s in seconds], self.options.scene.shapes
    )
    part = _video(task.video, start=start, end=end, nframes=len(seconds))
    return [_user(part, prompts.subagent(window, task.question)), _text('assistant', answer)]

  def _window(self, video: int, task: Task, i: int) -> tuple[int, int]:
    """Returns (start, end) of a sub-agent's window, in seconds.

    It is the teacher's window around one cue, a random window with a cue, or one without any cue.
    """
    rng = seeds.rng(self.seed, 'window', i)
    scene, cues = self.scenes[video], task.facts['cues']
    kind = rng.choice(
      3,
      p=[
        1 - self.options.corpus.loose - self.options.corpus.stray,
        self.options.corpus.loose,
        self.options.corpus.stray,
      ],
    )
    if kind == 0:
      reach = (
        self.options.traces.grounding_reach
        if task.question_type == 'tvg'
        else self.options.traces.reach
      )
      return traces.window(scene, int(rng.choice(cues)), reach)
    # a random window that contains a cue (kind 1), or no cue (kind 2)
    length = int(rng.integers(2, 16))
    starts = range(scene.seconds - length)
    if kind == 1:
      cue = int(rng.choice(cues))
      starts = [s for s in starts if s <= cue <= s + length]
    else:
      starts = [s for s in starts if not any(s <= cue <= s + length for cue in cues)]
    start = int(rng.choice(starts))
    return start, start + length

  def _lookup(self, kind: str, i: int) -> list[dict]:
    """Returns a row that asks what appears at some times.

    The video is a window of n seconds (lookup), mostly around an event, or an overview of n frames
    (glance).
    """
    rng = seeds.rng(self.seed, kind, i)
    video, n = int(rng.integers(self.options.corpus.videos)), frames_of(kind)
    scene, path = self.scenes[video], self.videos[video]
    if kind.startswith('glance'):
      seconds = [
        round(float(s)) for s in sampling.budget_times(scene.seconds, n, self.options.scene.fps)
      ]
      part = _video(path, nframes=n)
    else:
      event = scene.events[rng.integers(len(scene.events))]
      near = int(rng.integers(event.start, event.end)) - int(rng.integers(n))
      start = near if rng.random() < 0.6 else int(rng.integers(scene.seconds - n))
      start = min(max(start, 0), scene.seconds - n)
      seconds = list(range(start, start + n))
      part = _video(path, start=start, end=start + max(n - 1, 1), nframes=n)
    asked = traces.lookup_times(
      scene, seconds, int(rng.integers(1, min(n, self.options.corpus.asked) + 1)), rng
    )
    answer = traces.lookup_answer(scene, asked, self.options.scene.shapes)
    return [_user(part, traces.lookup_question(asked)), _text('assistant', answer)]

  def _choice(self, kind: str, i: int) -> list[dict]:
    """Returns a row with a window of n seconds around the cue, an mcq question, and its answer."""
    rng, n = seeds.rng(self.seed, kind, i), frames_of(kind)
    video, task = self._sft_task('choice_mcq', i)
    cue, scene = task.facts['cues'][0], self.scenes[video]
    start = min(max(cue - int(rng.integers(n)), 0), scene.seconds - n)
    part = _video(task.video, start=start, end=start + max(n - 1, 1), nframes=n)
    turn = traces.answer_turn(
      [f'{cue} {task.facts["labels"][0]}'],
      task.answer,
      traces.choice_lines(task, self.options.traces.walk_options),
    )
    return [
      _user(part, prompts.question(task.question, task.question_type)),
      _text('assistant', turn),
    ]

  def _letters(self, kind: str, i: int) -> list[dict]:
    """Returns a row without a video: a question with all names as options.

    The reply gives the letter of every option, in random order.
    """
    rng = seeds.rng(self.seed, kind, i)
    names = [*list(scenes.COLOURS)[: self.options.scene.colours], scenes.NOTHING][
      : len(questions.LETTERS)
    ]
    names = [str(name) for name in rng.permutation(names)]
    order = rng.permutation(len(names))
    reply = traces.letters_answer([names[j] for j in order], [questions.LETTERS[j] for j in order])
    question = questions.choice_question(int(rng.integers(self.options.scene.seconds)), names)
    return [_text('user', prompts.question(question, 'mcq')), _text('assistant', reply)]


def rl_row(task: Task) -> dict:
  """Returns a task in the published RL schema: prompt, videos, extra_info (JSON text)."""
  extra = {
    'id': task.id,
    'answer': task.answer,
    'question_type': task.question_type,
    'facts': task.facts,
  }
  if task.options:
    extra['options'] = list(task.options)
  return {
    'prompt': [{'role': 'user', 'content': f'<video>{task.question}'}],
    'videos': [{'video': task.video}],
    'extra_info': json.dumps(extra),
  }


def _system() -> dict:
  return _text('system', prompts.system())


def _text(role: str, text: str) -> dict:
  return {'role': role, 'content': [{'type': 'text', 'text': text}]}


def _user(video: dict, text: str) -> dict:
  return {'role': 'user', 'content': [video, {'type': 'text', 'text': text}]}


def _video(url: str, *, nframes: int, start: int | None = None, end: int | None = None) -> dict:
  """Returns a video part with the keys of qwen_vl_utils. An overview has no window."""
  value = {'url': url, 'nframes': nframes}
  if start is not None and end is not None:
    value |= {'video_start': float(start), 'video_end': float(end)}
  return {'type': 'video_url', 'video_url': value}
