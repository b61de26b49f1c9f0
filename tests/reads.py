"""Which fields of options the sources read, by the types that their annotations say."""

import ast
import dataclasses
import importlib
import inspect
import pathlib
import types
import typing
from collections.abc import Iterator
from typing import Any

from paravt_jax import options

ROOT = pathlib.Path(__file__).resolve().parent.parent
Kinds = tuple[type, ...]
Read = tuple[type, str] | tuple[type, str, type]


def fields_read() -> set[Read]:
  """(class, field) of every read in paravt_jax and experiments whose holder's type is known, and
  (class, field, other class) of every field that `extended` copies into other options.

  Known are parameters and fields with annotations, what is assigned from those, and what an
  __init__ keeps.
  """
  found: set[Read] = set()
  kept: dict[type, dict[str, Kinds]] = {}
  modules = list(_modules())
  for _ in range(2):  # the first time for what each class keeps
    for tree, module in modules:
      for node in tree.body:
        if isinstance(node, ast.ClassDef):
          kind = vars(module)[node.name]
          for inner in node.body:
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
              _Walk(module, found, kept, {'self': (kind,)}).function(inner)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
          _Walk(module, found, kept, {}).function(node)
  return found


def _modules() -> Iterator[tuple[ast.Module, types.ModuleType]]:
  for folder in ('paravt_jax', 'experiments'):
    for file in sorted((ROOT / folder).rglob('*.py')):
      name = '.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__')
      text = file.read_text()
      if 'ptions' in text or 'recipe' in text.lower():
        yield ast.parse(text), importlib.import_module(name)


class _Walk:
  """One function: what is known of its names, and what it reads."""

  def __init__(self, module: types.ModuleType, found: set[Read], kept: dict, names: dict):
    self.module, self.found, self.kept, self.names = module, found, kept, dict(names)

  def function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    for inner in ast.walk(node):  # nested functions too: they see these names
      if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
        for one in [*inner.args.posonlyargs, *inner.args.args, *inner.args.kwonlyargs]:
          if one.annotation is not None:
            self.names[one.arg] = self.named(one.annotation)
    for _ in range(2):  # a name may be used above where it is assigned, in a nested function
      for inner in ast.walk(node):
        self.visit(inner)

  def visit(self, node: ast.AST) -> None:
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr) and node.value is not None:
      for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        self.assign(target, node.value)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
      self.of(node)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split('.')[-1] == 'extended':
      self.extended(node)

  def assign(self, target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
      for one, other in zip(target.elts, value.elts):
        self.assign(one, other)
      return
    kinds = self.of(value)
    if kinds and isinstance(target, ast.Name):
      self.names[target.id] = kinds
    elif kinds and isinstance(target, ast.Attribute):
      for holder in self.of(target.value):
        self.kept.setdefault(holder, {})[target.attr] = kinds

  def extended(self, node: ast.Call) -> None:
    given = {one.arg for one in node.keywords}
    for kind in self.named(node.args[0]):
      for base in filter(dataclasses.is_dataclass, self.of(node.args[1])):
        names = {one.name for one in dataclasses.fields(base)} - given
        shared = names & {one.name for one in dataclasses.fields(kind)}
        self.found |= {(base, name, kind) for name in shared}

  def named(self, node: ast.expr) -> Kinds:
    """The classes that an expression over the module's own names says."""
    text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return _classes(self.value(ast.parse(node.value).body[0].value if text else node))

  def value(self, node: ast.expr) -> Any:
    """What an expression over the module's own names is; None where it calls or is not known."""
    if any(isinstance(one, ast.Call | ast.Await | ast.NamedExpr) for one in ast.walk(node)):
      return None
    if {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} & self.names.keys():
      return None  # a name of the function
    try:
      return eval(ast.unparse(node), dict(vars(self.module)))
    except (NameError, AttributeError, TypeError, SyntaxError, KeyError):
      return None

  def of(self, node: ast.expr) -> Kinds:
    """The classes of an expression, as far as they are known; fields that it reads are noted."""
    if isinstance(node, ast.Name):
      return self.names.get(node.id, ())
    if isinstance(node, ast.Await):
      return self.of(node.value)
    if isinstance(node, ast.Call):
      return self.result(node)
    if not isinstance(node, ast.Attribute):
      return ()
    return tuple(kind for holder in self.of(node.value) for kind in self.attribute(holder, node))

  def attribute(self, holder: type, node: ast.Attribute) -> Kinds:
    for above in holder.__mro__:
      if node.attr in self.kept.get(above, {}):
        return self.kept[above][node.attr]
    hints = _hints(holder)
    if node.attr in hints:
      self.found.add((holder, node.attr))
      return _classes(hints[node.attr])
    made = inspect.getattr_static(holder, node.attr, None)
    return _classes(_hints(made.fget).get('return')) if isinstance(made, property) else ()

  def result(self, node: ast.Call) -> Kinds:
    if self.named(node.func):
      return self.named(node.func)
    function = self.value(node.func)
    if function is not None:
      return _classes(_hints(function).get('return'))
    replaced = isinstance(node.func, ast.Attribute) and node.func.attr == 'replace'
    return self.of(node.func.value) if replaced else ()


def _classes(hint: Any) -> Kinds:
  """The classes of an annotation, all of a union."""
  if typing.get_origin(hint) is typing.Annotated:
    return _classes(typing.get_args(hint)[0])
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    return tuple(kind for one in typing.get_args(hint) for kind in _classes(one))
  plain = isinstance(hint, type) and typing.get_origin(hint) is None and hint is not type(None)
  return (hint,) if plain else ()


def _hints(holder: Any) -> dict[str, Any]:
  try:
    return typing.get_type_hints(holder)
  except (NameError, TypeError, AttributeError):
    return {}


def is_read(kind: type, field: str, found: set[Read]) -> bool:
  """Whether some read is of this field: by this class, or by one above or below it; or of the
  options that it is copied to.
  """
  own = [one for one in found if one[1] == field and _related(kind, one[0])]
  if any(len(one) == 2 for one in own):
    return True
  return any(is_read(one[2], field, found - set(own)) for one in own)


def _related(kind: type, other: type) -> bool:
  return issubclass(kind, other) or issubclass(other, kind)


def knobs_of(kind: type, where: str = '') -> dict[str, tuple[type, str]]:
  """(class, field) of every knob below a recipe's class, by path."""
  found, hints = {}, typing.get_type_hints(kind, include_extras=True)
  for field in dataclasses.fields(kind):
    section = options.section_of(hints[field.name])
    if section is None:
      found[f'{where}{field.name}'] = (kind, field.name)
    else:
      found |= knobs_of(section, f'{where}{field.name}.')
  return found
