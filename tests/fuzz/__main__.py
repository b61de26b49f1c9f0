"""`make fuzz MINUTES=10 SEED=0`: tries seeded inputs of every target; status 1 after a fault."""

import argparse
import logging
import pathlib
import sys
import warnings

from tests.fuzz import driver
from tests.fuzz.targets import open_targets


def main() -> int:
  """Runs the targets, or replays one input."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--minutes', type=float, default=10.0, help='for all targets together')
  parser.add_argument('--inputs', type=int, help='of each target, instead of minutes')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--target', action='append', help='only this one; may be repeated')
  parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/fuzz'))
  parser.add_argument('--replay', type=pathlib.Path, help='a saved input of --target')
  given = parser.parse_args()
  logging.disable(logging.WARNING)  # readers warn of odd inputs, of which all are
  warnings.simplefilter('ignore')
  with open_targets() as targets:
    known = {target.name: target for target in targets}
    if unknown := set(given.target or ()) - known.keys():
      parser.error(f'--target: got {sorted(unknown)}, wanted of {sorted(known)}')
    chosen = [known[name] for name in given.target or known]
    if given.replay is not None:
      if len(chosen) != 1:
        parser.error('--replay needs one --target')
      outcome, kind, trace = driver.attempt(chosen[0], given.replay.read_bytes())
      print(trace or f'{chosen[0].name}: {outcome}')
      return int(bool(kind))
    results = driver.run(
      chosen,
      seed=given.seed,
      folder=given.folder,
      seconds=None if given.inputs else given.minutes * 60,
      inputs=given.inputs,
      say=lambda line: print(line, flush=True),
    )
  print('\n'.join(driver.lines(results)))
  return int(any(result.faults for result in results.values()))


if __name__ == '__main__':
  sys.exit(main())
