"""Public names of a package that import their module on first use (PEP 562).

So `import paravt_jax` takes no time, and `from paravt_jax.rl import group_normalize` loads the
losses' libraries and no others. A package declares its names in two places, which
`tests/public_names_test.py` compares: imports under TYPE_CHECKING for type checkers, and a
call of `names` for the interpreter. Code of this library imports from the modules themselves.
"""

import importlib
import sys
from collections.abc import Callable


def names(
  package: str, **modules: tuple[str, ...]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
  """Returns the `__getattr__` and `__dir__` of a package.

  Args:
    package: its dotted name.
    modules: the public names, grouped by the module that defines them. A name must differ from
      every module of the package, because the import system would replace it with the module.
  """
  places = {name: module for module, group in modules.items() for name in group}

  def get(name: str) -> object:
    if name not in places:
      raise AttributeError(
        f'module {package!r} has no attribute {name!r}', name=name, obj=sys.modules[package]
      )
    value = getattr(importlib.import_module(f'{package}.{places[name]}'), name)
    setattr(sys.modules[package], name, value)  # the next lookup finds it directly
    return value

  def list_names() -> list[str]:
    return sorted({*vars(sys.modules[package]), *places})

  return get, list_names
