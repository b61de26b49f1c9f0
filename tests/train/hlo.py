"""Reads the collectives of a compiled program from its text."""

import dataclasses
import re
from collections.abc import Iterator

OPS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
_SHAPE = re.compile(r'(pred|[su]\d+|bf16|f16|f32|f64)\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\(')
_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{\s*$')
_TRIPS = re.compile(r'known_trip_count\D*(\d+)')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction. `runs` is how often a loop of known length runs it."""

  op: str
  shapes: tuple[tuple[str, tuple[int, ...]], ...]  # of its result: (type, dimensions)
  runs: int
  source: str

  @property
  def bytes(self) -> int:
    """Bytes of all its results, one per run."""
    total = 0
    for kind, dimensions in self.shapes:
      size = _BYTES.get(kind) or int(kind[1:]) // 8
      for dimension in dimensions:
        size *= dimension
      total += size
    return total * self.runs


def collectives(text: str) -> list[Collective]:
  """Returns the collectives of an HLO module's text.

  The body of a loop counts as often as XLA knows that it runs, and once if it does not know. Both
  branches of a conditional count.
  """
  computations, entry = _computations(text)
  return list(_walk(computations, entry, 1))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
  computations: dict[str, list[str]] = {}
  entry, lines = '', None
  for line in text.splitlines():
    header = _HEADER.match(line)
    if header and not line.startswith(' '):
      lines = computations.setdefault(header[2], [])
      entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      lines = None
    elif lines is not None:
      lines.append(line)
  return computations, entry


def _walk(computations: dict[str, list[str]], name: str, runs: int) -> Iterator[Collective]:
  for line in computations[name]:
    found = _INSTRUCTION.match(line)
    if not found:
      continue
    op = found[2].removesuffix('-start')
    if op in OPS:
      shapes = tuple(
        (kind, tuple(int(size) for size in sizes.split(',') if size))
        for kind, sizes in _SHAPE.findall(found[1])
      )
      source = re.search(r'op_name="([^"]*)"', line)
      yield Collective(op, shapes, runs, source[1] if source else '')
      continue
    trips = _TRIPS.search(line) if op == 'while' else None
    for inner in _called(line):
      if inner in computations:
        yield from _walk(computations, inner, runs * (int(trips[1]) if trips else 1))


def _called(line: str) -> list[str]:
  names = re.findall(
    r'(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)', line
  )
  for group in re.findall(r'branch_computations=\{([^}]*)\}', line):
    names += [name.strip().lstrip('%') for name in group.split(',')]
  return names
