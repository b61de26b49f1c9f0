"""Counts the bytes of a compiled program from its text: over links, and through HBM.

Loops count by their trip counts, which the text states, or which their condition compares with. A
loop whose count is not known, as that over micro-batches, counts once. Branches of a conditional
count as if each were taken, but one that lies in a loop over layers is charged once per iteration,
so the bytes are an upper bound. A kernel of its own (Pallas) counts its operands and results once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

_SIZES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
  'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
_ARRAY = re.compile(r'\b(pred|bf16|[suf]\d+)\[([\d,]*)\](\{[^}]*\})?')
# An array in another memory than HBM: a TPU's vector memory, or the host's.
_ELSEWHERE = re.compile(r'S\([1-9]\d*\)')
_TRIPS = re.compile(r'known_trip_count"?:?\s*\{"?n"?:"?(\d+)')
_CALLED = re.compile(r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_OPERAND = re.compile(r'%([\w.\-]+)')
_COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
  'ragged-all-to-all',
)
_IN_PLACE = {'dynamic-update-slice', 'scatter'}
# Instructions that move nothing by themselves.
_FREE = {
  'parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant', 'iota', 'after-all',
  'partition-id', 'replica-id', 'opt-barrier', 'while', 'conditional', 'call', 'async-start',
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program."""

  name: str
  shape: str  # of its result, as text
  op: str
  operands: tuple[str, ...]
  line: str


@dataclasses.dataclass(frozen=True)
class Bytes:
  """Of one run of a program on one device, with loops of unknown length run once."""

  links: float  # received or sent in collectives
  hbm: float  # read and written by kernels, with nothing kept in a cache


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Returns the instructions of each computation of an HLO text, and the name of the entry."""
  found: dict[str, list[Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if line.startswith(('%', 'ENTRY')) and line.rstrip().endswith('{'):
      name = line.removeprefix('ENTRY').strip().lstrip('%').split(' ')[0].split('(')[0]
      current = found.setdefault(name, [])
      entry = name if line.startswith('ENTRY') else entry
    elif line.rstrip() == '}':  # more may follow a brace that closes an attribute of many lines
      current = None
    elif current is not None and (one := _instruction(line)) is not None:
      current.append(one)
  return found, entry


def _instruction(line: str) -> Instruction | None:
  name, equals, rest = line.strip().removeprefix('ROOT ').partition(' = ')
  if not equals:
    return None
  end = _closing(rest) if rest.startswith('(') else rest.find(' ')
  shape, rest = rest[:end], rest[end:].strip()
  op, bracket, arguments = rest.partition('(')
  if not bracket:
    return None
  inside = arguments[: _closing('(' + arguments) - 1]
  operands = tuple(_OPERAND.findall(inside))
  return Instruction(name.lstrip('%'), shape, op.strip(), operands, line)


def _closing(text: str) -> int:
  """Returns the place behind the bracket that closes the first one."""
  depth = 0
  for place, letter in enumerate(text):
    depth += {'(': 1, ')': -1}.get(letter, 0)
    if depth == 0:
      return place + 1
  return len(text)


def size_of(shape: str, hbm_only: bool = False) -> int:
  """Returns the bytes of all arrays in a shape's text, or of those in HBM."""
  return sum(
    _SIZES.get(kind, 1) * math.prod(int(one) for one in sizes.split(',') if one)
    for kind, sizes, layout in _ARRAY.findall(shape)
    if not (hbm_only and _ELSEWHERE.search(layout))
  )


def _in_hbm(shape: str) -> int:
  return size_of(shape, hbm_only=True)


def count(text: str) -> Bytes:
  """Returns the bytes of an optimized program."""
  computations, entry = parse(text)
  links = hbm = 0.0
  for instruction, table, times in _walk(computations, entry, 1):
    links += times * _link_bytes(instruction, table)
    links += times * sum(_fused_links(instruction, computations))
    hbm += times * _hbm_bytes(instruction, table, computations)
  return Bytes(links, hbm)


def collective_shapes(text: str) -> list[tuple[str, str]]:
  """Returns (kind, shape of the result) of every collective of a program."""
  computations, _ = parse(text)
  return [
    (one.op.removesuffix('-start'), one.shape)
    for body in computations.values()
    for one in body
    if one.op.removesuffix('-start') in _COLLECTIVES
  ]


def _walk(
  computations: Mapping[str, Sequence[Instruction]], name: str, times: int
) -> Iterator[tuple[Instruction, dict[str, str], int]]:
  """Yields every instruction that runs, the shapes of its computation, and how often it runs."""
  body = computations.get(name, ())
  table = {one.name: one.shape for one in body}
  for one in body:
    yield one, table, times
    if one.op == 'while':
      inside = re.search(r'body=%?([\w.\-]+)', one.line)
      if inside:
        yield from _walk(computations, inside[1], times * _trips(one, computations))
    elif one.op in ('call', 'conditional', 'async-start'):
      called = _CALLED.findall(one.line)
      for branches in _BRANCHES.findall(one.line):
        called += [branch.strip().lstrip('%') for branch in branches.split(',')]
      for inner in called:
        yield from _walk(computations, inner, times)


def _trips(loop: Instruction, computations: Mapping[str, Sequence[Instruction]]) -> int:
  """Returns how often a loop runs; 1 if the text does not say.

  Without a stated number, it is a loop that counts from 0 up to a constant.
  """
  if stated := _TRIPS.search(loop.line):
    return int(stated[1])
  parts = (re.search(rf'{name}=%?([\w.\-]+)', loop.line) for name in ('condition', 'body'))
  condition, body = (computations.get(part[1], ()) if part else () for part in parts)
  by_name = {one.name: one for one in condition}
  for one in (inner for inner in condition if inner.op == 'compare'):
    counter, bound = (by_name.get(name) for name in one.operands[:2])
    most, index = _number(bound), re.search(r'index=(\d+)', counter.line if counter else '')
    if most is not None and index and 'direction=LT' in one.line:
      return -(-most // _count_step(body, int(index[1])))
  return 1


def _number(one: Instruction | None) -> int | None:
  """Returns the value of a whole constant."""
  found = re.search(r' constant\((\d+)\)', one.line) if one else None
  return int(found[1]) if found else None


def _count_step(body: Sequence[Instruction], index: int) -> int:
  """Returns by how much a loop's body raises element `index` of its carry; 1 if unclear.

  A body that was unrolled raises it several times.
  """
  by_name = {one.name: one for one in body}
  carry = next((one for one in body if 'ROOT' in one.line[:12]), None)
  at = by_name.get(carry.operands[index]) if carry and index < len(carry.operands) else None
  total = 0
  while at is not None and at.op in ('add', 'copy', 'bitcast'):
    numbers = [_number(by_name.get(name)) for name in at.operands]
    total += sum(number for number in numbers if number is not None)
    others = [name for name, number in zip(at.operands, numbers) if number is None]
    at = by_name.get(others[0]) if others else None
  return max(total, 1)


def _link_bytes(one: Instruction, table: Mapping[str, str]) -> float:
  """Bytes that a ring moves through each device for one collective."""
  op = one.op.removesuffix('-start')
  if op not in _COLLECTIVES:
    return 0.0
  given = sum(size_of(table.get(name, '')) for name in one.operands)
  result = size_of(one.shape)
  if one.op.endswith('-start') and result > given and op in ('all-gather', 'collective-permute'):
    result -= given  # the result of a start holds the operands too
  whole = {'all-gather': result, 'all-reduce': 2 * given}.get(op, given)
  group = _group(one.line)
  return whole * (group - 1) / group if group else float(whole)


def _group(line: str) -> int:
  """Returns the number of devices of a collective's groups, 0 if the text does not say."""
  if mesh := re.search(r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}', line):
    sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", mesh[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r'\w+', mesh[2]) if name in sizes)
  if counts := re.search(r'replica_groups=\[(\d+),(\d+)\]', line):
    return int(counts[2])
  if listed := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return len(listed[1].split(','))
  return 0


def _fused_links(
  one: Instruction, computations: Mapping[str, Sequence[Instruction]]
) -> Iterator[float]:
  """Yields the bytes of collectives inside a fusion: on TPUs they run beside products."""
  inner = re.search(r'calls=%?([\w.\-]+)', one.line) if one.op == 'fusion' else None
  body = computations.get(inner[1], ()) if inner else ()
  table = {instruction.name: instruction.shape for instruction in body}
  for instruction in body:
    yield _link_bytes(instruction, table)
    yield from _fused_links(instruction, computations)


def _hbm_bytes(
  one: Instruction,
  table: Mapping[str, str],
  computations: Mapping[str, Sequence[Instruction]],
) -> float:
  """Bytes that a kernel reads and writes. Slices and updates in place count as the slice."""
  if one.op in _FREE or one.op.endswith('-done') or 'target="AllocateBuffer"' in one.line:
    return 0.0
  operands = [_in_hbm(table.get(name, '')) for name in one.operands]
  result = _in_hbm(one.shape)
  if one.op.endswith('-start'):
    result = max(result - sum(operands), 0)  # the result of a start names its operands too
  if one.op in ('dynamic-slice', 'slice'):
    return float(min(size_of(one.shape), operands[0] if operands else 0) + result)
  if one.op in _IN_PLACE:
    return 2.0 * sum(_in_hbm(table.get(name, '')) for name in _pieces(one))
  if one.op == 'fusion' and (inner := re.search(r'calls=%?([\w.\-]+)', one.line)):
    return _fusion_bytes(computations.get(inner[1], ()), operands, result)
  return float(sum(operands) + result)


def _fusion_bytes(body: Sequence[Instruction], operands: Sequence[int], result: int) -> float:
  """A fusion reads the slices that it takes of an operand, and writes the slices that it sets."""
  shapes = {one.name: one.shape for one in body}
  users: dict[str, list[Instruction]] = {}
  for one in body:
    for name in one.operands:
      users.setdefault(name, []).append(one)
  total = 0.0
  for one in (inner for inner in body if inner.op == 'parameter'):
    number = re.search(r'parameter\((\d+)\)', one.line)
    whole = operands[int(number[1])] if number and int(number[1]) < len(operands) else 0
    uses = list(_behind_bitcasts(one.name, users))
    kinds = {use.op for use in uses}
    if kinds and kinds <= {'dynamic-slice', 'slice', 'gather'}:
      total += min(whole, sum(_in_hbm(use.shape) for use in uses))
    elif not kinds or not kinds <= _IN_PLACE:
      total += whole
  for one in (inner for inner in body if inner.op in _IN_PLACE):
    result += 2 * sum(size_of(shapes.get(name, '')) for name in _pieces(one)) - size_of(one.shape)
  return total + max(result, 0)


def _pieces(one: Instruction) -> tuple[str, ...]:
  """Returns the operands that an instruction writes into others, in place."""
  if one.op == 'dynamic-update-slice':
    return one.operands[1:2]
  return one.operands[len(one.operands) // 2 + 1 :]  # scatter: arrays, indices, updates


def _behind_bitcasts(
  name: str, users: Mapping[str, Sequence[Instruction]]
) -> Iterator[Instruction]:
  for use in users.get(name, ()):
    if use.op == 'bitcast':
      yield from _behind_bitcasts(use.name, users)
    else:
      yield use
