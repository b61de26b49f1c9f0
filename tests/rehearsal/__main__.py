"""`make rehearse`: the main job of the 8B scale with a narrow model, killed once, and its export.

python -m tests.rehearsal [FOLDER]      by default runs/rehearsal
"""

import json
import pathlib
import sys

from tests.rehearsal import job, knobs, material


def table(outcome: job.Outcome) -> str:
  """What the rehearsal found, a line each."""
  place, lines = outcome.place, job.lines(outcome.place)
  first = lines[0]
  gap = max(one['policy/gap_mean'] for one in lines)
  limits = json.loads((place / 'run' / 'config.json').read_text())['rollout']
  limit = limits['gap_limit'] + limits['gap_ratio'] * first['policy/rounding']
  found = json.loads((outcome.results / 'summary.json').read_text())['videomme']
  files = len(list((place / 'run' / 'hf').glob('model-*.safetensors')))
  calls = sum(one.get('calls/executed', 0.0) for one in lines) / len(lines)
  ahead = max(one['staleness/max'] for one in lines)
  rows = {
    'checkpoint': material.describe(place),
    'killed': f'after {outcome.killed_after} steps; the newest record was of step '
    f'{outcome.resumed_from}',
    'resumed': f'to step {len(lines)} of {knobs.STEPS}',
    'rollouts': f'{calls:.2f} calls an episode; at most {ahead:.0f} versions old',
    'log-probs': f"learner and servers differ by {gap:.4f} nats at most on a step's mean; the "
    f'limit was {limit:.4f}',
    'servers': f'hold version {", ".join(outcome.versions)}',
    'export': f'{files} files of bfloat16; both servers answer as they do',
    'evaluation': f'{found["samples"]} questions of Video-MME, {found["errors"]} errors',
    'minutes': ', '.join(f'{name} {spent:.1f}' for name, spent in outcome.minutes.items())
    + f', in all {sum(outcome.minutes.values()):.1f}',
  }
  return '\n'.join(f'{name:12}{text}' for name, text in rows.items())


def main(arguments: list[str]) -> int:
  """Runs the rehearsal and prints what it found. Returns the exit status."""
  try:
    outcome = job.rehearse(pathlib.Path(arguments[0] if arguments else 'runs/rehearsal'))
  except (RuntimeError, FileNotFoundError, AssertionError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  print(table(outcome))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
