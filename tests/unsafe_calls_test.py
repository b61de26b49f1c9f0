"""Nothing in the project runs what a file, a message or a shell says: no pickle, no shell, no eval."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ('paravt_jax', 'experiments', 'configs', 'third_party')
# libraries whose readers run code that stands in the data
RUNS_DATA = {'pickle', 'cPickle', '_pickle', 'marshal', 'shelve', 'dill', 'cloudpickle', 'joblib'}
# functions that run a text as a command or as Python
RUNS_TEXT = {'os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput'}
# a module without any of these has no fault, which spares reading it as Python
WORDS = re.compile(
  r'pickle|marshal|shelve|dill|joblib|\bsystem\b|popen|getoutput|getstatusoutput|shell|'
  r'(?<![.\w])(?:eval|exec|compile)\(|torch\.load|yaml|multiprocessing'
)
BUILTINS = {'eval', 'exec', 'compile'}


def dotted(node: ast.AST) -> str:
  """'os.system' for such an expression, '' for others."""
  if isinstance(node, ast.Name):
    return node.id
  base = dotted(node.value) if isinstance(node, ast.Attribute) else ''
  return f'{base}.{node.attr}' if base else ''


def is_true(call: ast.Call, name: str) -> bool:
  """Whether a keyword is given and may be true."""
  found = [word.value for word in call.keywords if word.arg == name]
  return any(not isinstance(value, ast.Constant) or bool(value.value) for value in found)


def call_faults(call: ast.Call) -> Iterator[str]:
  name = dotted(call.func)
  last = name.rpartition('.')[2]
  if name in RUNS_TEXT or name in BUILTINS:
    yield name
  if is_true(call, 'shell') or last == 'create_subprocess_shell':
    yield 'a shell'
  if is_true(call, 'allow_pickle'):
    yield 'allow_pickle'
  if name == 'torch.load' and not is_true(call, 'weights_only'):
    yield 'torch.load without weights_only'
  if name in ('yaml.load', 'yaml.load_all', 'yaml.unsafe_load', 'yaml.full_load'):
    yield name


def pickles_over_a_pipe(tree: ast.Module) -> Iterator[str]:
  """`send` and `recv` of multiprocessing's connections pickle; `send_bytes` and `recv_bytes` do not."""
  imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
  if any('multiprocessing' in name for node in imports for name in imported(node)):
    for node in ast.walk(tree):
      if isinstance(node, ast.Attribute) and node.attr in ('send', 'recv'):
        yield f'{node.lineno}: {node.attr} of a connection'


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
  if isinstance(node, ast.Import):
    return [alias.name for alias in node.names]
  return [node.module or '', *(f'{node.module}.{alias.name}' for alias in node.names)]


def faults(tree: ast.Module) -> list[str]:
  """What a module does that may run code of others, with its lines."""
  found = list(pickles_over_a_pipe(tree))
  for node in ast.walk(tree):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = imported(node)
    elif isinstance(node, ast.Call):
      found += [f'{node.lineno}: {fault}' for fault in call_faults(node)]
      continue
    else:
      continue
    wrong = {n for n in names if n.partition('.')[0] in RUNS_DATA or n in RUNS_TEXT}
    found += [f'{node.lineno}: import of {name}' for name in sorted(wrong)]
  return found


def test_no_module_unpickles_calls_a_shell_or_evaluates_a_text():
  paths = sorted(path for folder in CODE for path in (ROOT / folder).rglob('*.py'))
  assert len(paths) > 200
  found = [
    f'{path.relative_to(ROOT)}:{fault}'
    for path in paths
    if WORDS.search(text := path.read_text())
    for fault in faults(ast.parse(text))
  ]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'code',
  [
    'import pickle',
    'from pickle import loads',
    'import marshal as m',
    'import multiprocessing, shelve',
    'from os import system',
    'import os\nos.system("ls")',
    'subprocess.run("ls", shell=True)',
    'subprocess.run("ls", shell=given)',
    'asyncio.create_subprocess_shell("ls")',
    'np.load(path, allow_pickle=True)',
    'torch.load(path)',
    'torch.load(path, weights_only=False)',
    'yaml.load(text)',
    'from multiprocessing.connection import Connection\nConnection(3).recv()',
    'eval(text)',
    'exec(text)',
  ],
)
def test_what_runs_code_of_others_is_found(code):
  assert faults(ast.parse(code)) and WORDS.search(code)


@pytest.mark.parametrize(
  'code',
  [
    'import json, msgpack',
    'np.load(path)',
    'np.load(path, allow_pickle=False)',
    'torch.load(path, weights_only=True)',
    'subprocess.run(["ls"], shell=False)',
    'ast.literal_eval(text)',
    're.compile(text)',
    'model.eval()',
    'from multiprocessing.connection import Connection\nConnection(3).recv_bytes()',
    'socket.recv(9)',
    'yaml.safe_load(text)',
  ],
)
def test_what_is_safe_is_no_fault(code):
  assert not faults(ast.parse(code))
