"""Runs the GPU checks, each in a process of its own, and reports them.

python -m tests.gpu [--size=full] [--json=runs/gpu.json] [--only=attention,sft_2b]

Without a GPU everything is skipped, and the reason is printed. --size=tiny runs the same code on
any device, for the report's sake. The exit status is 0 if no check failed. All checks together
have ten minutes.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

from tests.gpu import report

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 600  # for all checks
# Least MFU of a step at 2B. JAX programs of 7B with plain attention reach .18 to .26 on such GPUs,
# those with a fused kernel about .5.
LEAST_MFU = 0.30
# Memory of a step at most, of what its compilation stated.
MOST_OVER_COMPILED = 1.10


def _attention(size: str) -> report.Check:
  from tests.gpu import kernels  # imports JAX, which the parent process must not

  begin = time.monotonic()
  figures = kernels.measure(kernels.FULL if size == 'full' else kernels.TINY)
  return report.judge('attention', figures, kernels.AT_MOST, {}, time.monotonic() - begin)


def _step(kind: str) -> Callable[[str], report.Check]:
  def check(size: str) -> report.Check:
    from tests.gpu import steps

    begin = time.monotonic()
    figures = steps.measure(kind, '2b' if size == 'full' else 'tiny')
    full = size == 'full'
    most = {'peak_over_compiled': MOST_OVER_COMPILED} if full else {}
    least = {'mfu': LEAST_MFU} if full else {}
    # a number that is not finite breaks every bound
    most['gradient_norm'] = 1e6
    return report.judge(f'{kind}_2b', figures, most, least, time.monotonic() - begin)

  return check


def _sglang(size: str) -> report.Check:
  from tests.gpu import sglang_step

  reason = 'the tiny size starts no server' if size != 'full' else sglang_step.reason_to_skip()
  if reason:
    return report.unmeasured('sglang', 'skip', reason)
  begin = time.monotonic()
  figures = sglang_step.measure(LIMITS['sglang'])
  most, least = sglang_step.AT_MOST, sglang_step.AT_LEAST
  return report.judge('sglang', figures, most, least, time.monotonic() - begin)


CHECKS: Mapping[str, Callable[[str], report.Check]] = {
  'attention': _attention,
  'sft_2b': _step('sft'),
  'rl_2b': _step('rl'),
  'sglang': _sglang,
}
LIMITS = {'attention': 120.0, 'sft_2b': 150.0, 'rl_2b': 180.0, 'sglang': 180.0}  # seconds


def find_device() -> dict:
  """Returns what JAX sees, asked in a child: this process must leave the device to the checks."""
  program = (
    'import json, jax; d = jax.devices(); m = d[0].memory_stats() or {}; '
    'print(json.dumps({"platform": d[0].platform, "kind": d[0].device_kind, "count": len(d), '
    '"memory_gib": m.get("bytes_limit", 0) / 2**30}))'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, text=True, timeout=120, check=False
  )
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return {'platform': 'none', 'kind': reason, 'count': 0, 'memory_gib': 0.0}
  return json.loads(lines[-1])


def run_check(name: str, size: str, seconds: float) -> report.Check:
  """Runs a check in a child, so that its memory is its own and its failure stops no other."""
  command = [sys.executable, '-m', 'tests.gpu', f'--check={name}', f'--size={size}']
  # a share of the device as runs of one GPU have it
  environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.9', **os.environ}
  begin = time.monotonic()
  try:
    done = subprocess.run(
      command,
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=seconds,
      check=False,
    )
  except subprocess.TimeoutExpired:
    return report.unmeasured(name, 'fail', f'took more than {seconds:.0f} s', seconds)
  lines = done.stdout.strip().splitlines()
  if done.returncode or not lines:
    reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
    return report.unmeasured(name, 'fail', reason[:300], time.monotonic() - begin)
  return report.from_json(json.loads(lines[-1]))


def run(size: str, names: list[str]) -> dict:
  """Runs checks and returns the report as JSON."""
  device = {**find_device(), 'jax': importlib.metadata.version('jax')}
  if size == 'full' and device['platform'] not in ('gpu', 'cuda'):
    reason = (
      f'JAX sees no GPU ({device["platform"]}: {device["kind"]}); on a machine with one run: '
      'make setup ACCELERATOR=cuda13'
    )
    skipped = [report.unmeasured(name, 'skip', reason) for name in names]
    return report.to_json(size, device, skipped)
  deadline, checks = time.monotonic() + SECONDS, []
  for name in names:
    left = deadline - time.monotonic()
    if left <= 0:
      checks.append(report.unmeasured(name, 'fail', f'no time is left of {SECONDS} s'))
      continue
    checks.append(run_check(name, size, min(LIMITS[name], left)))
    print(f'{name}: {checks[-1].status} {checks[-1].reason}'.rstrip(), file=sys.stderr)
  return report.to_json(size, device, checks)


def main() -> int:
  """The command line. Returns the exit status."""
  parser = argparse.ArgumentParser(prog='python -m tests.gpu', description=__doc__)
  parser.add_argument('--size', choices=('full', 'tiny'), default='full')
  parser.add_argument('--json', default='runs/gpu.json')
  parser.add_argument('--only', default=','.join(CHECKS))
  parser.add_argument('--check', choices=tuple(CHECKS), help='run one check in this process')
  given = parser.parse_args()
  if given.check:
    print(json.dumps(vars(CHECKS[given.check](given.size)), allow_nan=False))
    return 0
  names = [name for name in given.only.split(',') if name]
  if unknown := [name for name in names if name not in CHECKS]:
    parser.error(f'--only={unknown[0]}: wanted some of {", ".join(CHECKS)}')
  found = run(given.size, names)
  file = pathlib.Path(given.json)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(report.dumps(found) + '\n')
  print(report.to_text(found))
  return 0 if found['passed'] else 1


if __name__ == '__main__':
  sys.exit(main())
