"""The report of the GPU checks: what was measured, its bounds, and a verdict for each check."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

FORMAT = 1
STATUSES = ('pass', 'fail', 'skip')


@dataclasses.dataclass(frozen=True)
class Check:
  """One check. Figures without a bound are for information."""

  name: str
  status: str  # one of STATUSES
  reason: str  # why it failed or was skipped, else ''
  figures: Mapping[str, float]
  at_most: Mapping[str, float]  # bounds of figures
  at_least: Mapping[str, float]
  seconds: float


def judge(
  name: str,
  figures: Mapping[str, float],
  at_most: Mapping[str, float],
  at_least: Mapping[str, float],
  seconds: float,
) -> Check:
  """Returns a check that passes if every bound holds. A figure that is not a number breaks its."""
  broken = [
    f'{key} is {figures[key]:.4g}, wanted at most {most:g}'
    for key, most in at_most.items()
    if not figures[key] <= most
  ]
  broken += [
    f'{key} is {figures[key]:.4g}, wanted at least {least:g}'
    for key, least in at_least.items()
    if not figures[key] >= least
  ]
  status = 'fail' if broken else 'pass'
  return Check(name, status, '; '.join(broken), figures, at_most, at_least, seconds)


def unmeasured(name: str, status: str, reason: str, seconds: float = 0.0) -> Check:
  """Returns a check without figures: it was skipped, or it broke."""
  return Check(name, status, ' '.join(reason.split()), {}, {}, {}, seconds)


def from_json(found: Mapping[str, Any]) -> Check:
  """Returns a check of the JSON object that a child process printed."""
  return Check(**found)


def to_json(size: str, device: Mapping[str, Any], checks: list[Check]) -> dict[str, Any]:
  """Returns the whole report as one JSON object."""
  return {
    'format': FORMAT,
    'size': size,
    'device': dict(device),
    'passed': all(check.status != 'fail' for check in checks),
    'checks': [dataclasses.asdict(check) for check in checks],
  }


def to_text(found: Mapping[str, Any]) -> str:
  """Returns the report for people, from its JSON object."""
  device = found['device']
  lines = [
    f'{device["kind"]} x {device["count"]}, {device["memory_gib"]:.1f} GiB each, '
    f'jax {device["jax"]}, size {found["size"]}'
  ]
  for check in found['checks']:
    head = f'{check["name"]:<12}{check["status"]:<6}{check["seconds"]:>6.0f} s'
    lines.append(f'{head}  {check["reason"]}'.rstrip())
    for name, value in check['figures'].items():
      bounds = [f'at most {check["at_most"][name]:g}'] if name in check['at_most'] else []
      bounds += [f'at least {check["at_least"][name]:g}'] if name in check['at_least'] else []
      lines.append(f'  {name:<36}{value:>12.4g}  {", ".join(bounds)}'.rstrip())
  lines.append('passed' if found['passed'] else 'FAILED')
  return '\n'.join(lines)


def dumps(found: Mapping[str, Any]) -> str:
  """Returns JSON text without nan, which is no JSON."""
  return json.dumps(found, allow_nan=False)
