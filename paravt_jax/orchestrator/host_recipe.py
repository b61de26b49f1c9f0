"""The processes of a run must be started with one recipe: each compiles and schedules by its own.

With another learning rate, say, a process would train on, and its copy of the model would drift.
"""

from typing import Any

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator import binding
from paravt_jax.orchestrator.hosts import Hosts
from paravt_jax.orchestrator.run_folder import to_json

# Knobs, or sections with a dot at the end, that say where a process works and with what. The same
# names count below cold_start.
OWN = (
  'hosts.',
  'run.folder',  # `hosts.check_shared` looks whether it is one folder
  'server.',
  'client.',
  'device.',
  'profile.',
  'video.workers',
  'video.deadline_s',
  'video.cache_mb',
  'video.cache_folder',
  'video.cache_gb',
  'data.follow_links',
  'data.media_root',
  'data.cache_folder',
  'judge.url',
  'judge.api_key',
  'world.workers',
)
_SHOWN = 4  # differences in a message


def check(hosts: Hosts, recipe: Any) -> None:
  """Compares this process's recipe with that of process 0.

  Raises:
    ConfigError: they differ. All processes raise it, unless they state different numbers of
      processes; then those that differ from process 0 raise it.
  """
  if hosts.is_alone:
    return
  values = binding.flat(to_json(recipe))
  own = {knob: value for knob, value in values.items() if not _is_own(knob)}
  count, first = hosts.of_first('recipe', (hosts.count, own))
  if count != hosts.count:
    raise ConfigError(
      f'--config.hosts.count={hosts.count}: host 0 was started with {count}; start all processes '
      'with the same number'
    )
  changed = binding.differences(first, own)
  for index, found in enumerate(hosts.channel('recipe').exchange(changed)):
    if found:
      more = f' and {len(found) - _SHOWN} more' if len(found) > _SHOWN else ''
      raise ConfigError(
        f'host {index} was started with other settings than host 0 '
        f'({", ".join(found[:_SHOWN])}{more}); start all processes with the same'
      )


def _is_own(knob: str) -> bool:
  name = knob.removeprefix(binding.COLD_START)
  return any(name == own or (own.endswith('.') and name.startswith(own)) for own in OWN)
