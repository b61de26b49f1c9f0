"""Compiles a lowered step and reads what its program needs: memory, bytes over links and of HBM.

Compilers of GPUs are run to their end, which is one or two minutes at 8B. Code generation for TPUs
takes many more, and what is asked for is known before it: XLA writes the optimized program and a
report of its memory into a folder. So a TPU's compiler is left as soon as both are there. A program
that does not fit is refused at the same point.

Figures are kept by the text of the lowered program, so a changed model, recipe or JAX is compiled
again.
"""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import jax

from paravt_jax import files
from paravt_jax.orchestrator.plan import hlo
from paravt_jax.orchestrator.plan.accelerators import GIB

# Packages that decide what a program becomes.
COMPILERS = ('jax', 'jaxlib', 'jax-cuda13-plugin', 'jax-cuda13-pjrt', 'libtpu')
_USED = re.compile(r'Used ([\d.]+)([GM]) of [\d.]+[GM] hbm')
_TOTAL = re.compile(r'Memory Space: default.*?\nTotal bytes: (\d+)')
_REPORT, _PROGRAM = '*.after_optimizations-memory-usage-report.txt', '*.after_optimizations.txt'
_POLL_S = 0.5
_REFUSAL_S = 5.0  # after its report, within which a program that does not fit is refused


def dump_flags(folder: pathlib.Path, name: str) -> str:
  """Returns the XLA flags that write a function's program and its report into a folder."""
  return f'--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=^jit_{name}$'


def measure(lowered: Any, arguments: int, asked: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the figures of a lowered step on one device.

  Args:
    arguments: their bytes on one device.
    asked: `platform`; `dump`, the folder of `dump_flags`, '' to compile to the end; `kept`, the
      folder of figures that were measured before, '' for none; `flags`, XLA's, and `spec` and
      `target` of the devices.

  Returns:
    memory_gib, arguments_gib, temporary_gib, collective_gb, hbm_tb, and kept, whether the figures
    were measured before. For a program that does not fit, memory_gib and `error`.
  """
  file = pathlib.Path(asked['kept'], f'{program_key(lowered.as_text(), asked)}.json')
  if asked['kept'] and file.is_file():
    return {**json.loads(file.read_text()), 'kept': True}
  try:
    if asked['dump']:
      found = _until_reported(lowered, arguments, pathlib.Path(asked['dump']))
    else:
      found = figures(lowered.compile())
  except jax.errors.JaxRuntimeError as error:
    found = refusal(str(error))
    if found is None:
      raise
  if asked['kept']:
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write(file, json.dumps(found).encode(), sync=False)
  return {**found, 'kept': False}


def program_key(text: str, asked: Mapping[str, Any]) -> str:
  """Returns a name for what decides the figures.

  That is the lowered program, the compilers and their flags, the devices, and this code.
  """
  versions = {name: _version(name) for name in COMPILERS}
  code = [pathlib.Path(path).read_text() for path in (__file__, hlo.__file__)]
  devices = [asked.get(name, '') for name in ('target', 'spec', 'flags')]
  whole = json.dumps([text, versions, code, devices])
  return hashlib.sha256(whole.encode()).hexdigest()[:32]


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return ''


def figures(compiled: Any) -> dict[str, Any]:
  """Returns the memory and bytes of a compiled step on one device."""
  sizes = compiled.memory_analysis()
  arguments, temporary = sizes.argument_size_in_bytes, sizes.temp_size_in_bytes
  # outputs that share the memory of donated arguments are counted once
  outputs = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
  return _figures(arguments + outputs + temporary, arguments, compiled.as_text())


def _figures(total: int, arguments: int, text: str) -> dict[str, Any]:
  moved = hlo.count(text)
  return {
    'memory_gib': total / GIB,
    'arguments_gib': arguments / GIB,
    'temporary_gib': (total - arguments) / GIB,
    'collective_gb': moved.links / 1e9,
    'hbm_tb': moved.hbm / 1e12,
  }


def refusal(message: str) -> dict[str, Any] | None:
  """Returns the figures of a program that does not fit; None if the message says no size."""
  used = _USED.search(message)
  if used is None:
    return None
  size = float(used[1]) / (1 if used[2] == 'G' else 1024)
  line = ' '.join(message.split())[:300]
  return {'memory_gib': size, 'collective_gb': None, 'hbm_tb': None, 'error': line}


def _until_reported(lowered: Any, arguments: int, folder: pathlib.Path) -> dict[str, Any]:
  """Compiles until the report is there. The compiler then goes on in a thread of this process.

  Raises:
    JaxRuntimeError: the compiler refuses the program.
  """
  pool = concurrent.futures.ThreadPoolExecutor(1)
  compiling = pool.submit(lowered.compile)
  size = -1
  while not compiling.done():
    report = next(folder.glob(_REPORT), None)
    # a report of the same size twice is whole
    before, size = size, report.stat().st_size if report else -1
    if report and size > 0 and size == before:
      concurrent.futures.wait([compiling], timeout=_REFUSAL_S)
      if not compiling.done():
        return read_report(folder, arguments)
    time.sleep(_POLL_S)
  return figures(compiling.result())


def read_report(folder: pathlib.Path, arguments: int) -> dict[str, Any]:
  """Returns the figures of a program from what XLA wrote into a folder.

  Args:
    arguments: bytes of the program's arguments on one device.

  Raises:
    ValueError: the report names no total.
  """
  report = next(folder.glob(_REPORT)).read_text()
  total = _TOTAL.search(report)
  if total is None:
    raise ValueError(f'{folder}: the memory report of XLA names no total: {report[:200]!r}')
  return _figures(int(total[1]), arguments, next(folder.glob(_PROGRAM)).read_text())
