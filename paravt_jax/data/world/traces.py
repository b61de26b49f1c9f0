"""What a good agent writes about a scene: turn texts for SFT.

The texts have exactly the form that the agent loop produces and parses:

<think>\\nLook at 41.\\n</think>\\n<tool_call>{"name": "crop_video", "arguments":
{"start_time": 39, ...}}</tool_call>
<think>\\nSeen: 41 red.\\n</think>\\n<answer>red</answer>

A sub-agent answers '41 red', or '40 41 42 red' for a tvg question.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, cast

import numpy as np

from paravt_jax import seeds
from paravt_jax.chat import prompts, toolcalls
from paravt_jax.data.world import scene as scenes
from paravt_jax.data.world.questions import LETTERS
from paravt_jax.options import COUNT, FLAG, SHARE, Options, whole
from paravt_jax.types import Task, ToolCall
from paravt_jax.video import sampling

UNSEEN = 'not in view'  # reply of a sub-agent whose window does not contain the cue


@dataclasses.dataclass(frozen=True)
class TraceOptions(Options):
  """How the teacher of the synthetic world works. Times are seconds."""

  tolerance: Annotated[int, whole(0)]  # a cue counts as seen with a frame of its event that near
  always_call: Annotated[float, SHARE]  # share of tasks with calls although enough was seen
  reach: Annotated[int, COUNT]  # half a window, of oe and mcq questions
  grounding_reach: Annotated[int, COUNT]  # half a window, of tvg questions
  recovery: Annotated[
    float, SHARE
  ]  # share of calling traces whose first call fails and is repeated
  walk_options: Annotated[bool, FLAG]  # options are gone through one by one (`choice_lines`)


@dataclasses.dataclass(frozen=True)
class Trace:
  """A worked task at budget K."""

  turns: tuple[str, ...]  # assistant texts
  replies: tuple[tuple[str, ...], ...]  # the tool responses to each turn
  windows: tuple[tuple[int, int], ...]  # crops that were executed: (start, end) in seconds


def visible(
  scene: scenes.Scene, cue: int, seconds: Sequence[float] | np.ndarray, tolerance: float
) -> bool:
  """Returns whether one of the frames shows what is visible at the cue.

  Such a frame is within `tolerance` seconds of the cue. It shows the same event, or no event if
  there is none at the cue.
  """
  return any(
    abs(second - cue) <= tolerance and scene.at(second) == scene.at(cue) for second in seconds
  )


def missing(
  scene: scenes.Scene, task: Task, seconds: Sequence[float] | np.ndarray, tolerance: float
) -> list[int]:
  """Returns the cues that the overview at `seconds` leaves open.

  A time span (tvg) needs a frame at every second of the event and at the second before and after
  it.
  """
  cues = task.facts['cues']
  if task.question_type == 'tvg':
    event, seen = scene.at(cues[0]), {round(s, 3) for s in seconds}
    if event is None or not set(range(event.start - 1, event.end + 1)) <= seen:
      return list(cues)
    return []
  return [cue for cue in cues if not visible(scene, cue, seconds, tolerance)]


def window(scene: scenes.Scene, cue: int, reach: int) -> tuple[int, int]:
  """Returns (start, end) around a cue, clipped to the video."""
  return max(cue - reach, 0), min(cue + reach, scene.seconds)


def subagent_answer(scene: scenes.Scene, task: Task, seconds: Sequence[float], shapes: bool) -> str:
  """Returns the correct reply of a sub-agent that sees frames at `seconds` (in order).

  It names each visible cue, or the seconds of the event for a tvg task; UNSEEN if none is visible.
  """
  cues = [cue for cue in task.facts['cues'] if seconds[0] <= cue <= seconds[-1]]
  if not cues:
    return UNSEEN
  if task.question_type == 'tvg':
    return _span(scene, cues[0], seconds, shapes)
  return ', '.join(f'{cue} {scenes.label(scene.at(cue), shapes)}' for cue in cues)


def _span(scene: scenes.Scene, cue: int, seconds: Sequence[float], shapes: bool) -> str:
  """Returns the times in `seconds` that show the cue's event, and its label: '40 41 42 red'.

  Listing every time makes each step easy for a model. Returns UNSEEN if no frame shows the event.
  """
  event = scene.at(cue)
  shown = [s for s in seconds if event is not None and event.start <= s < event.end]
  if not shown:
    return UNSEEN
  return f'{" ".join(f"{s:g}" for s in shown)} {scenes.label(event, shapes)}'


def call_text(start: float, end: float) -> str:
  """Returns one well-formed tool call."""
  call = {'name': prompts.TOOL_NAME, 'arguments': {'start_time': start, 'end_time': end}}
  return f'<tool_call>{json.dumps(call)}</tool_call>'


def _join_items(items: Sequence[object]) -> str:
  """Returns the items as a list in words: '41', '41 and 73', '41, 12 and 73'."""
  texts = [str(item) for item in items]
  return texts[0] if len(texts) == 1 else ', '.join(texts[:-1]) + ' and ' + texts[-1]


def call_turn(cues: Sequence[int], windows: Sequence[tuple[int, int]]) -> str:
  """Returns a turn that says where to look and calls one crop per cue, all in parallel."""
  return f'<think>\nLook at {_join_items(cues)}.\n</think>\n' + ''.join(
    call_text(*w) for w in windows
  )


def answer_turn(seen: Sequence[str], answer: str, choice: Sequence[str] = ()) -> str:
  """Returns a turn that says what was seen ('41 red'), adds the lines `choice`, and answers.

  choice: from `choice_lines`.
  """
  thought = '\n'.join([f'Seen: {", ".join(seen)}.', *choice])
  return f'<think>\n{thought}\n</think>\n<answer>{answer}</answer>'


def choice_lines(task: Task, walk: bool) -> tuple[str, ...]:
  """Returns the lines that the thought adds for an mcq task; () for other tasks.

  They are the letter of the answer or, with `walk`, the options in order up to the correct one.
  With `walk` the model copies options in order and compares each, which a small model can learn.
  Naming the letter directly requires a look back at the options.
  """
  if task.question_type != 'mcq':
    return ()
  last = LETTERS.index(task.answer)
  return (
    tuple(f'{LETTERS[i]}. {task.options[i]}' for i in range(last + 1)) if walk else (task.answer,)
  )


def letters_answer(names: Sequence[str], letters: Sequence[str]) -> str:
  """Returns names with their letters, in the form of a thought: 'Seen: red.\\nA, blue.\\nC'."""
  return 'Seen: ' + ', '.join(f'{name}.\n{letter}' for name, letter in zip(names, letters))


def answer_text(task: Task) -> str:
  """Returns the task's answer as written in a turn: 'red', 'B', '[40, 43]'."""
  return f'[{task.answer.replace(",", ", ")}]' if task.question_type == 'tvg' else task.answer


def work(
  scene: scenes.Scene,
  task: Task,
  budget: int,
  options: TraceOptions,
  *,
  shapes: bool,
  fps: int,
  seed: int,
) -> Trace:
  """Returns the teacher's trace at budget K. It depends only on the arguments.

  The teacher looks at the overview frames. It answers, or it first crops around each open cue, all
  in one turn. With `always_call` it crops around every cue. With `recovery` the times of its first
  call are swapped, so that the call fails, and it repeats all calls.
  """
  rng = seeds.rng(seed, 'trace', task.id, budget)
  # 1. which cues does the overview leave open?
  overview = sampling.budget_times(scene.seconds, budget, fps)
  cues = list(task.facts['cues'])
  wanted = (
    cues
    if rng.random() < options.always_call
    else missing(scene, task, overview, options.tolerance)
  )
  grounding = task.question_type == 'tvg'
  # 2. one window around each open cue, and what sub-agents report
  windows = [
    window(scene, cue, options.grounding_reach if grounding else options.reach) for cue in wanted
  ]
  label = {cue: f'{cue} {name}' for cue, name in zip(cues, task.facts['labels'])}
  results = [subagent_answer(scene, task, range(w[0], w[1] + 1), shapes) for w in windows]
  seen = results if grounding and wanted else [label[cue] for cue in cues]
  if grounding and not wanted:
    seen = [_span(scene, cues[0], [float(s) for s in overview], shapes)]
  # 3. the turns: maybe a failed call, the calls, the answer
  turns, replies = [], []
  if wanted and rng.random() < options.recovery:
    turns, replies = _slip(wanted, windows, results, scene.seconds)
  if wanted:
    turns.append(call_turn(wanted, windows))
    replies.append(tuple(results))
  turns.append(answer_turn(seen, answer_text(task), choice_lines(task, options.walk_options)))
  return Trace(tuple(turns), (*replies, ()), tuple(windows))


def _slip(cues, windows, results, duration) -> tuple[list[str], list[tuple[str, ...]]]:
  """Returns a turn with swapped ends of its first window, and its replies.

  The first call fails; the others succeed.
  """
  swapped = [(windows[0][1], windows[0][0]), *windows[1:]]
  arguments = {'start_time': swapped[0][0], 'end_time': swapped[0][1]}
  failed = cast(
    toolcalls.Refusal, toolcalls.resolve_window(ToolCall(prompts.TOOL_NAME, arguments), duration)
  )
  return [call_turn(cues, swapped)], [(failed.message, *results[1:])]


def lookup_question(seconds: Sequence[int]) -> str:
  """Returns a question such as 'What appears at 41 12 50?'"""
  return f'What appears at {" ".join(map(str, seconds))}?'


def lookup_answer(scene: scenes.Scene, seconds: Sequence[int], shapes: bool) -> str:
  """Returns the answer, such as '41 red. 12 nothing. 50 blue.'"""
  return ' '.join(f'{second} {scenes.label(scene.at(second), shapes)}.' for second in seconds)


def lookup_times(
  scene: scenes.Scene, seconds: Sequence[int], count: int, rng: np.random.Generator
) -> list[int]:
  """Returns up to `count` of `seconds` in random order, about half inside events and half outside.

  Returns fewer if one of the two kinds is scarce.
  """
  order = [int(s) for s in rng.permutation(list(seconds))]
  shown = [s for s in order if scene.at(s) is not None]
  empty = [s for s in order if scene.at(s) is None]
  half = max(1, (count + 1) // 2)
  chosen = shown[: max(half, count - len(empty))]
  chosen += empty[: min(count - len(chosen), len(chosen) + 1)]
  return [int(s) for s in rng.permutation(chosen)]
