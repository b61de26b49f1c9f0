"""A made-up run that looks like a real one: an agent that learns to crop at small K."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paravt_jax.metrics.writer import MetricsWriter
from paravt_jax.report import episodes
from paravt_jax.report.episodes import EpisodeLog
from paravt_jax.types import (
  Clip,
  Episode,
  ParseFailure,
  ResultStatus,
  Scored,
  Segment,
  StopReason,
  Task,
  TokenClass,
  ToolCall,
  ToolResult,
  Trajectory,
  Turn,
  Window,
)

COLOURS = {
  'red': (200, 40, 40),
  'blue': (50, 80, 210),
  'green': (40, 160, 70),
  'yellow': (220, 200, 60),
  'white': (240, 240, 240),
}
DURATION = 64.0
BUDGETS = (4, 16, 64)
_WORDS: list[str] = []


def encode(text: str) -> np.ndarray:
  """Words as ids of a vocabulary that grows; `decode` is its inverse."""
  ids = []
  for word in re.findall(r'</?[a-z_]+>|\s*\w+|\s*[^\w\s]|\s+', text):
    if word not in _WORDS:
      _WORDS.append(word)
    ids.append(_WORDS.index(word))
  return np.asarray(ids, np.int32)


def decode(ids: Sequence[int]) -> str:
  """The text of ids made by `encode`."""
  return ''.join(_WORDS[i] for i in ids)


def task(number: int) -> Task:
  """Question `number`: mcq, open-ended on one or two windows, or grounding, in turn;
  deterministic.
  """
  rng = np.random.default_rng(number)
  cues = sorted(int(c) for c in rng.choice(np.arange(4, 60, 8), 2, replace=False))
  labels = [str(label) for label in rng.choice(list(COLOURS), 2)]
  facts = {
    'events': [
      {'start': cue - 1.0, 'end': cue + 2.0, 'label': label} for cue, label in zip(cues, labels)
    ]
  }
  video, kind = f'videos/{number:03d}.mp4', ('mcq', 'oe', 'two', 'tvg')[number % 4]
  if kind == 'mcq':
    options = tuple(COLOURS)
    lines = '\n'.join(f'{letter}. {option}' for letter, option in zip('ABCDE', options))
    gold = 'ABCDE'[options.index(labels[0])]
    return Task(
      f'w{number}',
      (video,),
      f'What appears at {cues[0]}?\n{lines}',
      'mcq',
      gold,
      options,
      'made',
      facts,
    )
  if kind == 'tvg':
    text = f'When does the thing shown at {cues[0]} start and end?'
    return Task(
      f'w{number}', (video,), text, 'tvg', f'{cues[0] - 1},{cues[0] + 2}', (), 'made', facts
    )
  if kind == 'two':
    return Task(
      f'w{number}',
      (video,),
      f'What appears at {cues[0]} and at {cues[1]}?',
      'oe',
      ', '.join(labels),
      (),
      'made',
      facts,
    )
  return Task(
    f'w{number}', (video,), f'What appears at {cues[0]}?', 'oe', labels[0], (), 'made', facts
  )


def frames(video: str, seconds: Sequence[float]) -> Clip:
  """32x32 frames of a made-up video: noise, and a coloured patch while one of its events lasts."""
  events = task(int(Path(video).stem)).facts['events']
  rng = np.random.default_rng(len(seconds))
  pixels = rng.integers(90, 130, (len(seconds), 32, 32, 3)).astype(np.uint8)
  for i, t in enumerate(seconds):
    for event in events:
      if event['start'] <= t < event['end']:
        pixels[i, 8:24, 8:24] = COLOURS[event['label']]
  return Clip(pixels, np.asarray(seconds), DURATION)


def episode(
  question: Task, budget: int, skill: float, rollout: int, rng: np.random.Generator
) -> Scored:
  """One rollout of an agent: `skill` in 0..1 is how readily it crops when the overview shows too
  little.
  """
  events = question.facts['events'][: 2 if ' and at ' in question.question else 1]
  seconds = tuple((i + 0.5) * DURATION / budget for i in range(budget))
  seen = all(any(e['start'] <= t < e['end'] for t in seconds) for e in events)
  calls = [e for e in events if not seen and rng.random() < skill] + (
    [events[0]] if rng.random() < 0.05 else []
  )
  results = tuple(_result(e, rng) for e in calls)
  executed = sum(r.status is ResultStatus.EXECUTED for r in results)
  right = rng.random() < (0.93 if seen or executed >= len(events) else 0.25)
  wrong = {'mcq': 'B' if question.answer == 'A' else 'A', 'tvg': '1 - 2', 'oe': 'purple'}
  answer = question.answer if right else wrong[question.question_type]
  closed = rng.random() < 0.8 + 0.2 * skill
  thought = (
    f'The overview {"shows" if seen else "does not show"} what happens at '
    f'{events[0]["start"] + 1:.0f}.'
  )
  end = f'{"</think>" if closed else ""}\n<answer>{answer}</answer>'
  turns = [Turn(f'<think>\n{thought}{end}', (), StopReason.ANSWER)]
  if results:
    blocks = '\n'.join(
      r.call.text
      if isinstance(r.call, ParseFailure)
      else f'<tool_call>{json.dumps(dataclasses.asdict(r.call))}</tool_call>'
      for r in results
    )
    turns = [
      Turn(f'<think>\n{thought} I look closer.</think>\n{blocks}', results, StopReason.STOP),
      Turn(f'<think>\nThe crop tells me what I need to know.{end}', (), StopReason.ANSWER),
    ]
  fmt = 1.0 if closed else 0.55
  tool = 0 if not results else 0.8 if executed and right else 0.3 if executed else 0.1
  parts = {
    'accuracy': float(right),
    'format': fmt,
    'base': 0.8 if closed else 0.7,
    'anchor': 0.7 if closed else -0.3,
    'tool': float(tool),
    'compliant': float(closed),
    'total': right + fmt + tool,
  }
  done = Episode(
    question,
    rollout,
    budget,
    seconds,
    DURATION,
    tuple(turns),
    _trajectory(question, turns, budget, rng),
    StopReason.ANSWER,
  )
  return Scored(done, parts['total'], parts)


def _result(event: dict, rng: np.random.Generator) -> ToolResult:
  start, end = max(0.0, event['start'] - 1), event['end'] + 1
  if rng.random() < 0.06:
    return ToolResult(
      ParseFailure('not_json', f'<tool_call>{{"name": "crop_video", "start": {start}</tool_call>'),
      ResultStatus.PARSE_FAILURE,
      'Error: the call is no JSON object with a name and an object of arguments.',
    )
  call = ToolCall('crop_video', {'start_time': start, 'end_time': end})
  if rng.random() < 0.04:
    return ToolResult(
      call, ResultStatus.TIMEOUT, 'Error: the crop took longer than 20 s.', Window(start, end)
    )
  text = f'{event["start"] + 1:.0f} {event["label"]}'
  asked = Segment(encode(f'What is seen between {start} and {end}?'), False)
  own = Trajectory((asked, _sampled(text, rng, 1)), StopReason.STOP)
  seconds = tuple(np.arange(start, end + 0.01, 1.0).tolist())
  return ToolResult(call, ResultStatus.EXECUTED, text, Window(start, end), seconds, own)


def _sampled(text: str, rng: np.random.Generator, version: int) -> Segment:
  ids = encode(text)
  logprobs = -rng.exponential(0.3, len(ids)).astype(np.float32)
  return Segment(ids, True, (), logprobs, np.full(len(ids), version, np.int32), TokenClass.TEXT)


def _trajectory(
  question: Task, turns: Sequence[Turn], budget: int, rng: np.random.Generator
) -> Trajectory:
  image = np.zeros((32, 32, 3), np.uint8)
  segments = [
    Segment(encode(f'user: {question.question} assistant: <think>'), False, (image,) * budget)
  ]
  for i, turn in enumerate(turns):
    segments.append(_sampled(turn.text.removeprefix('<think>'), rng, i))
    if turn.results:
      segments.append(
        Segment(encode(' '.join(r.text for r in turn.results) + ' assistant: <think>'), False)
      )
  return Trajectory(tuple(segments), turns[-1].stop)


def write_metrics(folder: Path, steps: int, seed: int) -> None:
  """metrics.jsonl with rising curves and noise."""
  rng = np.random.default_rng(seed)
  with MetricsWriter(folder, tensorboard=False, wandb=None, start_step=0) as writer:
    for step in range(steps):
      skill = 1 / (1 + np.exp(-(step - steps / 2.5) / (steps / 9)))
      noisy = lambda value, scale=0.04: float(value + rng.normal(0, scale))
      accuracy = noisy(0.55 + 0.3 * skill)
      fmt = noisy(0.8 + 0.18 * skill, 0.02)
      tool = noisy(0.2 + 0.5 * skill)
      writer.write(
        step,
        {
          'reward/total': accuracy + fmt + tool,
          'reward/accuracy': accuracy,
          'reward/format': fmt,
          'reward/tool': tool,
          'reward/base': noisy(0.7 + 0.1 * skill, 0.01),
          'reward/anchor': noisy(0.3 + 0.4 * skill, 0.03),
          'format_compliance': min(1.0, noisy(0.82 + 0.16 * skill, 0.02)),
          'calls/parsed': noisy(0.5 + 0.9 * skill),
          'calls/executed': noisy(0.45 + 0.9 * skill),
          'calls/failed': abs(noisy(0.06, 0.02)),
          **{
            f'accuracy/k={k}': min(1.0, noisy(0.35 + 0.12 * i + (0.5 - 0.1 * i) * skill, 0.07))
            for i, k in enumerate(BUDGETS)
          },
          'policy/gap_mean': float(10 ** rng.normal(-5.3, 0.1)),
          'policy/gap_max': float(10 ** rng.normal(-4.1, 0.15)),
          'policy/entropy': noisy(0.42 - 0.2 * skill, 0.02),
          'policy/kl_reference': abs(noisy(0.001 + 0.03 * skill, 0.002)),
          'policy/clip_share': 0.0,
          'policy/dropped_share': abs(noisy(0, 0.001)),
          'optim/grad_norm': abs(noisy(0.6, 0.15)),
          'groups/no_signal': abs(noisy(0.3 + 0.2 * skill)),
          'length/sampled': noisy(46 + 18 * skill, 2),
          'length/context': noisy(190, 8),
          'time/rollout': noisy(1.6, 0.1),
          'time/learn': noisy(1.1, 0.05),
          'time/publish': noisy(0.15, 0.01),
          'time/sync': noisy(0.1, 0.01),
          'time/reward': noisy(0.03, 0.002),
          'time/collate': noisy(0.08, 0.005),
          'time/other': noisy(0.05, 0.004),
        },
      )


def write_answers(folder: Path, scored: Sequence[Scored]) -> None:
  """results.jsonl of a results folder, as much of it as the page of a run reads; a sampled answer
  and an error stand among the greedy ones.
  """
  folder.mkdir()
  lines = [{'benchmark': 'heldout', 'episode': episodes.to_json(0, one)} for one in scored]
  lines.insert(1, {'benchmark': 'sampled', 'episode': lines[0]['episode']})
  lines.append({'benchmark': 'heldout', 'episode': None})
  (folder / 'results.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))


def write_run(folder: Path, *, questions: int, steps: int, seed: int) -> Path:
  """A whole run folder; evaluations ask every question at every K, before and after, with the same
  rollout number.
  """
  rng = np.random.default_rng(seed)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(
    json.dumps(
      {
        'scale': 'tiny',
        'seed': seed,
        'rl': {'steps': steps, 'group_size': 8, 'beta': 0.01, 'updates_per_batch': 1},
        'agent': {'think_prefix': '<think>\n', 'max_turns': 3},
        'video': {'budgets': list(BUDGETS)},
      }
    )
  )
  (folder / 'git.txt').write_text(
    '0123456789abcdef0123456789abcdef01234567\n M configs/para_grpo.py\n'
  )
  write_metrics(folder, steps, seed)
  summary = {'minutes': {'world': 0.6, 'sft': 6.1, 'rl': 14.2, 'eval': 2.4}}
  for name, skill in (('before', 0.35), ('after', 0.97)):
    scored = [episode(task(n), k, skill, 0, rng) for n in range(questions) for k in BUDGETS]
    write_answers(folder / f'eval_{name}', scored)
    mean = lambda values: float(np.mean(list(values)))
    right = [s.parts['accuracy'] for s in scored]
    half = 1.96 * float(np.std(right)) / len(right) ** 0.5
    summary[name] = {
      'episodes': len(scored),
      'accuracy': mean(right),
      'interval': [mean(right) - half, mean(right) + half],
      'accuracy_by_k': {
        str(k): mean(s.parts['accuracy'] for s in scored if s.episode.budget == k) for k in BUDGETS
      },
      'format_compliance': mean(s.parts['compliant'] for s in scored),
      'calls_per_episode': mean(s.episode.executed for s in scored),
    }
  with EpisodeLog(folder / 'episodes' / 'train.jsonl', start_step=0) as log:
    for step in range(min(steps, 4)):
      log.append(step, dataclasses.replace(episode(task(1000 + step), 4, 0.6, 0, rng)))
  (folder / 'summary.json').write_text(json.dumps(summary))
  return folder
