"""Every knob is checked at the door, by one rule of configs/allowed.py, for all entry points alike.

`launch.require_recipe` does it. A rule is about one knob alone. ORDERED says of which two knobs the
first is at most the second. What else knobs must be to each other: crosschecks.py.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import allowed
from configs import rules as rules_of
from configs.rules import Rule
from paravt_jax.errors import ConfigError

Rules = Mapping[str, Rule]
# The first knob is at most the second, in whatever section of the recipe they stand.
ORDERED = (
  ('video.min_pixels', 'video.max_pixels'),
  ('video.min_pixels', 'frames.image_max_pixels'),
  ('decode.min_pixels', 'decode.max_pixels'),
  ('caption.min_pixels', 'caption.max_pixels'),
  ('subagent.min_frames', 'subagent.max_frames'),
  ('frames.min_frames', 'frames.max_frames'),
)


def _flat(table: Mapping[str, Any], prefix: str = '') -> dict[str, Rule]:
  """{'agent.max_turns': Rule, ...}."""
  found: dict[str, Rule] = {}
  for name, value in table.items():
    found |= (
      {f'{prefix}{name}': value} if isinstance(value, Rule) else _flat(value, f'{prefix}{name}.')
    )
  return found


# The section that only the recipes of one entry point have -> the rules of these recipes
KINDS = {
  'rollout': _flat(allowed.RL),
  'sources': _flat(allowed.SFT),
  'protocol': _flat(allowed.EVAL),
  'question': _flat(allowed.ASK),
  'overrides': _flat(allowed.ABLATE),
  'suite': _flat(allowed.BENCH),
  'reasoner': _flat(allowed.LONGVIDEO_REASON),
}


def rules(config: ConfigDict) -> Rules:
  """The rules of a recipe's kind; none for a recipe of no entry point."""
  return next((table for section, table in KINDS.items() if section in config), {})


def rule(table: Rules, knob: str) -> Rule | None:
  """The rule of a knob, by its path or as a member of 'section.*'; None for a knob without one."""
  return table.get(knob) or table.get(f'{knob.rpartition(".")[0]}.*')


def leaves(config: ConfigDict, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """('agent.max_turns', 3), ...: every knob and its value."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def check(config: ConfigDict) -> None:
  """Raises the ConfigError of the first knob that breaks its rule."""
  table = rules(config)
  for knob, value in leaves(config):
    found = rule(table, knob)
    if found is not None and not found.holds(value):
      raise ConfigError(f'--config.{knob}={value!r}: wanted {found.wanted}')
    if found is not rules_of.QUANTITY and _is_too_large(value):
      raise ConfigError(f'--config.{knob}={value!r}: wanted at most {rules_of.LARGEST}')
  values = dict(leaves(config))
  for low, high in ORDERED:
    for knob in (knob for knob in values if knob == low or knob.endswith(f'.{low}')):
      other = knob.removesuffix(low) + high
      if other in values and values[knob] > values[other]:
        raise ConfigError(
          f'--config.{knob}={values[knob]!r}: wanted at most {other}={values[other]!r}'
        )


def _is_too_large(value: Any) -> bool:
  """Whether a number, or one of a tuple, is larger than any knob's."""
  if isinstance(value, tuple | list):
    return any(map(_is_too_large, value))
  return type(value) in (int, float) and value > rules_of.LARGEST


def require_rule(config: ConfigDict, knob: str, value: Any) -> None:
  """Raises the ConfigError of one knob, unless its rule allows the value."""
  found = rule(rules(config), knob)
  if found is None or not found.holds(value):
    raise ConfigError(
      f'--config.{knob}={value!r}: wanted {"another value" if found is None else found.wanted}'
    )


def is_open(config: ConfigDict, section: str) -> bool:
  """Whether the keys of a section are names of one's own, as those of `sources` are."""
  return f'{section}.*' in rules(config)
