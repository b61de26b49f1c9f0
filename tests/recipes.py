"""Recipes of configs/ as the typed trees that entry points get."""

from typing import Any

from ml_collections import ConfigDict

from experiments import knobs, launch


def typed(config: ConfigDict, **changes: Any) -> Any:
  """The typed recipe of a ConfigDict, of the kind whose section it has.

  Args:
    config: it is changed where there are `changes`.
    changes: values of knobs, '__' for dots, as in rollout__steps=4.
  """
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  (kind,) = [one.recipe for one in knobs.KINDS.values() if one.recipe.SECTION in config]
  return launch.typed(kind, config)
