"""What a run left of its rollouts: `python -m experiments.tutorials.look_at_an_episode runs/NAME
[--step=0]`.

Every rollout of training is one line of episodes/train.jsonl: its turns, calls and crops, the
tokens with their log-probs and versions, and what it was paid for. This reads a step and prints it.
"""

import pathlib

from absl import app, flags

from experiments import launch
from paravt_jax.report import episodes
from paravt_jax.types import Scored

_STEP = flags.DEFINE_integer('step', 0, 'Which step.')


def main(argv: list[str]) -> None:
  """Prints the rollouts of one step."""
  if len(argv) != 2:
    raise app.UsageError('wanted a run folder')
  path = pathlib.Path(argv[1]) / 'episodes' / 'train.jsonl'
  entries = list(episodes.read(path))
  found = [entry for entry in entries if entry.step == _STEP.value]
  if not found:
    steps = f'steps 0 to {entries[-1].step}' if entries else 'no rollouts; is it a run folder?'
    raise app.UsageError(f'{path} has no step {_STEP.value}: it holds {steps}')
  for entry in found:
    print(describe(entry.scored))


def describe(scored: Scored) -> str:
  """A few lines on one rollout."""
  episode = scored.episode
  sampled = [s for s in episode.trajectory.segments if s.sampled]
  tokens = sum(len(segment.ids) for segment in sampled)
  paid = ', '.join(f'{name} {value:.2f}' for name, value in scored.parts.items())
  lines = [
    f'{episode.task.question} (gold {episode.task.answer}, K={episode.budget})',
    f'  reward {scored.reward:.2f}: {paid}',
    f'  {len(episode.turns)} turns, {episode.executed} crops ran, {tokens} tokens sampled, '
    f'ended by {episode.stop}',
  ]
  for turn in episode.turns:
    lines.append('  | ' + ' '.join(turn.text.split()))
    lines += [f'  |   {result.status}: {result.text}' for result in turn.results]
  return '\n'.join(lines)


if __name__ == '__main__':
  launch.run_script(main)
