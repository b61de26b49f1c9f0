"""Sections of recipes on rollout servers, and on the weights that go to them."""

import dataclasses
from typing import Annotated

from paravt_jax import options as rules
from paravt_jax.options import (
  COUNT,
  DTYPE,
  FLAG,
  NAME,
  PART,
  POSITIVE,
  PROCESSES,
  TEXT,
  URLS,
  Options,
  Rule,
  each,
  one_of,
  whole,
)
from paravt_jax.rollout.fleet import FleetOptions
from paravt_jax.serving import sglang
from paravt_jax.serving.embedded import options as embedded

SERVERS = ('url', 'embedded', 'sglang')
FORMS = ('auto', 'memory', 'files')


@dataclasses.dataclass(frozen=True)
class EmbeddedOptions(embedded.EngineOptions):
  """Embedded servers that the run starts."""

  threads: Annotated[int, whole(0, note='0: as many as it likes')]  # CPU threads
  memory_fraction: Annotated[float, PART]  # share of a GPU that JAX takes for each server
  # servers run in the learner's process, on each host's devices behind the mesh (orchestrator/split)
  in_process: Annotated[bool, FLAG]

  @classmethod
  def published(cls) -> 'EmbeddedOptions':
    """Returns sizes for the 8B model on one 80 GB device."""
    numbers = rules.to_dict(embedded.EngineOptions.published())
    return cls(**numbers, threads=0, memory_fraction=0.9, in_process=False)


@dataclasses.dataclass(frozen=True)
class SGLangOptions(sglang.EngineOptions):
  """SGLang servers: those that the run starts, and where converted weights go for all."""

  threads: Annotated[int, COUNT]  # CPU threads of each of its processes
  # folder that the servers see too; '': in memory, on this machine
  staging: Annotated[str, TEXT]

  @classmethod
  def published(cls) -> 'SGLangOptions':
    """Returns settings for the 8B model in bfloat16, with one 80 GB device per server."""
    return cls(**rules.to_dict(sglang.EngineOptions.published()), threads=8, staging='')


ROUTER = Rule(
  "an address, such as http://127.0.0.1:30000, or ''",
  lambda value: value == '' or URLS.holds((value,)),
)
PORTS = each(
  'different ports, each in 1..65535',
  lambda one: type(one) is int and 0 < one < 65536,
  differ=True,
)


@dataclasses.dataclass(frozen=True)
class ServersOptions(Options):
  """The rollout servers of a run."""

  # url: servers that run already; embedded: ours, in JAX; sglang: SGLang out of .venv-sglang
  kind: Annotated[str, one_of(*SERVERS)]
  # addresses of servers that run already; (): with `router`, its workers
  urls: Annotated[tuple[str, ...], URLS]
  # address of SGLang's router, which rollout requests then go through; '': straight to the servers
  router: Annotated[str, ROUTER]
  count: Annotated[int, PROCESSES]  # servers to start
  host: Annotated[str, NAME]  # where started servers listen
  ports: Annotated[tuple[int, ...], PORTS]  # one for each started server; (): free ones
  # the key that the servers ask for; env:NAME or file:PATH keeps it off the command line
  api_key: Annotated[str, TEXT] = dataclasses.field(repr=False)
  ready_timeout_s: Annotated[float, POSITIVE]  # for a started server to answer
  watch: FleetOptions
  embedded: EmbeddedOptions
  sglang: SGLangOptions

  @classmethod
  def published(cls) -> 'ServersOptions':
    """Returns settings for running servers by URL. Started servers take one GPU each."""
    return cls(
      kind='url',
      urls=(),
      router='',
      count=1,
      host='127.0.0.1',
      ports=(),
      api_key='',
      ready_timeout_s=900.0,
      watch=FleetOptions.published(),
      embedded=EmbeddedOptions.published(),
      sglang=SGLangOptions.published(),
    )


@dataclasses.dataclass(frozen=True)
class PublishOptions(Options):
  """How versions of the weights go out."""

  dtype: Annotated[str, DTYPE]  # number type of published weights
  keep: Annotated[int, COUNT]  # versions on disk
  # how servers get a version. auto: through memory those that the run starts, others from the disk;
  # memory: through memory also those by URL, which are on this machine; files: from the disk
  form: Annotated[str, one_of(*FORMS)]
  # servers that read from the disk get what changed since the version before, where they have that
  # one; the learner's host keeps one copy of the weights for it
  delta: Annotated[bool, FLAG]
  # tokens that the learner predicts with each version, in each continuation of the canary
  canary_tokens: Annotated[int, COUNT]
  # continuations of the canary; those after the first begin with a few sampled tokens
  canary_continuations: Annotated[int, COUNT]

  @classmethod
  def published(cls) -> 'PublishOptions':
    """Returns settings for weights in bfloat16 and a canary of 36 tokens to compare."""
    return cls(
      dtype='bfloat16', keep=2, form='auto', delta=False, canary_tokens=8, canary_continuations=4
    )
