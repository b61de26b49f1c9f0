"""One table of axis letters, and array names that keep to it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paravt_jax import shapes

ROOT = Path(__file__).parent.parent
# a lower-case name and its axes: not a constant such as MAX_T
ARRAY_NAME = re.compile(r'_?[a-z][a-z0-9]*(?:_[a-z0-9]+)*_[A-Z][A-Z0-9]*(?:_[a-z]+)*')
EINSUM = re.compile(r'[A-Z]+(?:,[A-Z]+)+->[A-Z]*')


def _identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
  """Every name that a module binds or reads, with its line."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name):
      yield node.id, node.lineno
    elif isinstance(node, ast.Attribute):
      yield node.attr, node.lineno
    elif isinstance(node, ast.arg):
      yield node.arg, node.lineno
    elif isinstance(node, ast.keyword) and node.arg:
      yield node.arg, node.value.lineno


def _einsums(tree: ast.AST) -> Iterator[tuple[str, int]]:
  for node in ast.walk(tree):
    value = getattr(node, 'value', None) if isinstance(node, ast.Constant) else None
    if isinstance(value, str) and EINSUM.fullmatch(value):
      yield value, node.lineno


def letter_faults(path: str, tree: ast.AST) -> list[str]:
  """Array names and einsums whose letters are not in the table."""
  faults = []
  for name, line in _identifiers(tree):
    if ARRAY_NAME.fullmatch(name):
      try:
        shapes.axes_of(name)
      except ValueError as error:
        faults.append(f'{path}:{line} {error}')
  for rule, line in _einsums(tree):
    unknown = set(rule) - set(shapes.AXES) - set(',->')
    faults += [f'{path}:{line} {rule}: {letter} is not in the table' for letter in sorted(unknown)]
  return faults


def test_every_array_name_and_einsum_keeps_to_the_table():
  paths = [path for folder in ('paravt_jax', 'tests') for path in (ROOT / folder).rglob('*.py')]
  faults = [
    fault for path in paths for fault in letter_faults(path.name, ast.parse(path.read_text()))
  ]
  assert not faults, '\n'.join(faults)


def test_a_letter_has_one_meaning_and_a_meaning_one_letter():
  assert all(len(letter) == 1 and letter.isupper() for letter in shapes.AXES)
  assert len(set(shapes.AXES.values())) == len(shapes.AXES)


def test_the_module_documents_the_very_table():
  documented = dict(re.findall(r'^  ([A-Z])  (.+)$', shapes.__doc__, re.MULTILINE))
  assert documented == shapes.AXES


def test_sizes_come_back_by_letter():
  sizes = shapes.check(
    logprob_ST=np.zeros((2, 5)), advantage_S=np.zeros(2), grids_BN2=np.zeros((1, 3, 2))
  )
  assert sizes == {'S': 2, 'T': 5, 'B': 1, 'N': 3}


def test_a_word_stands_where_there_is_no_letter():
  assert shapes.axes_of('bias_BT_page') == ('B', 'T', 'page')
  assert shapes.check(bias_BT_page=np.zeros((1, 2, 7)))['page'] == 7


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    (
      {'logprob_ST': np.zeros((2, 5)), 'advantage_S': np.zeros(3)},
      r'advantage_S has S=3 \(shape \(3,\)\), but logprob_ST has S=2',
    ),
    ({'logprob_ST': np.zeros(2)}, r'logprob_ST names 2 axes, but has shape \(2,\)'),
    ({'grids_BN2': np.zeros((1, 1, 3))}, 'grids_BN2 has an axis of size 3 .* wanted 2 there'),
    ({'logprob': np.zeros(2)}, 'logprob: wanted a name that ends in capital axis letters'),
    ({'logprob_SO': np.zeros((2, 5))}, 'axis letter O is not in the table, wanted one of ABC'),
  ],
)
def test_a_wrong_array_is_named_with_its_size(arrays, message):
  with pytest.raises(ValueError, match=message):
    shapes.check(**arrays)


@pytest.mark.parametrize(
  ('code', 'count'),
  [
    ('hidden_RTO = 1', 1),
    ('def f(x_OO): pass', 1),
    ("jnp.einsum('BTO,OV->BTV', x, y)", 1),
    ('MAX_O = 1; hidden_RTD = 1; x.mask_ST; f(grids_BN2=1)', 0),
  ],
)
def test_a_letter_that_is_not_in_the_table_is_found(code, count):
  assert len(letter_faults('x.py', ast.parse(code))) == count
