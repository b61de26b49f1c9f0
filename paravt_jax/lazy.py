"""Public names of a package that load their module when they are first used (PEP 562).

So `import paravt_jax` takes no time, and `from paravt_jax.rl import group_normalize` loads the
losses' libraries and no others. A package declares its names in two places, which
`tests/public_names_test.py` holds together: imports under TYPE_CHECKING for type checkers, and a
call of `names` for the interpreter. Code of this library imports from the modules themselves.
"""

import importlib
import sys
from collections.abc import Callable


def names(
  package: str, **modules: tuple[str, ...]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
  """The `__getattr__` and `__dir__` of a package.

  Args:
    package: its dotted name.
    modules: the public names by the module of the package that defines them. A name must not be
      that of a module of the package: the import system would put the module in its place.
  """
  places = {name: module for module, group in modules.items() for name in group}

  def get(name: str) -> object:
    if name not in places:
      raise AttributeError(
        f'module {package!r} has no attribute {name!r}', name=name, obj=sys.modules[package]
      )
    value = getattr(importlib.import_module(f'{package}.{places[name]}'), name)
    setattr(sys.modules[package], name, value)  # the next look-up does not come here
    return value

  def list_names() -> list[str]:
    return sorted({*vars(sys.modules[package]), *places})

  return get, list_names
