"""Kills a job of RL, or parts of it, at random moments, and compares what it trained with an unbroken
run of it.

    command = [sys.executable, '-m', 'experiments.rl', '--config=configs/para_grpo.py',
               '--config.rollout.steps=8', '--config.run.checkpoint_every=1']
    found = learner_kills(command, pathlib.Path('kills'), moments=30, seed=0)
    print(found.lost, found.doubled, found.bit_equal)

Half of the moments lie between a start of the job and its first step, the others behind one to three
further steps, in the middle of one. Runs that are cut start again with the same command, as a user
would, until they end by themselves. `part_kills` kills servers, decoding workers or a judge instead,
and the job has to go on by itself.
"""

import collections
import contextlib
import dataclasses
import pathlib
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from paravt_jax import files
from paravt_jax.errors import ConfigError, RolloutError
from paravt_jax.metrics import writer
from paravt_jax.report import episodes

WHOLE = 'whole'  # the run, below the folder, that nothing befell
_FIRST = 'first'  # an unbroken run before it: it makes what all runs share
_POLL_S = 0.02
_LEFT_S = 60.0  # that children of a killed job may take to end
_MOST_STEPS = 3  # further steps before a kill
_STEP = b' done): '  # in each line of a step in steps.log
# Beginnings of the metrics that follow from what was trained, not from the clock.
_CURVE = ('reward/', 'policy/', 'optim/', 'advantage', 'length/', 'groups/accepted')


@dataclasses.dataclass(frozen=True)
class Difference:
  """What one run trained beside another."""

  lost: int  # episodes that only the first trained, or it more often
  doubled: int  # episodes that only the second trained, or it more often
  bit_equal: bool  # equal metrics and tokens at each step, and an equal exported model


@dataclasses.dataclass(frozen=True)
class Kills:
  """What came of killing a job."""

  moments: int  # kills that were made
  lost: int  # episodes that killed runs have not trained, wanted 0
  doubled: int  # episodes that killed runs have trained too often, wanted 0
  bit_equal: bool  # whether every killed run came to the metrics, tokens and model of `whole`
  after: tuple[int, ...]  # steps that the run had in its log, by kill
  runs: int  # runs that were killed, each of them several times
  survivors: int  # child processes of killed jobs that were alive a minute later, wanted 0


def learner_kills(
  command: Sequence[str],
  folder: pathlib.Path,
  moments: int,
  seed: int,
  *,
  cwd: pathlib.Path | None = None,
  env: Mapping[str, str] | None = None,
  limit_s: float = 3600.0,
) -> Kills:
  """Makes two unbroken runs of a job, then others that are killed with SIGKILL `moments` times.

  Equality needs `rollout.staleness=0`: with staleness groups may overtake each other, so two
  unbroken runs differ.

  Args:
    command: the job's, without `--config.run.folder`.
    folder: gets the run folders (`whole`, `cut0`, ...) and what each run says (`whole.log`).
    moments: how many kills.
    seed: of the moments.
    cwd: where the job runs; None for here.
    env: its environment; None for that of this process.
    limit_s: seconds that one unbroken run may take.

  Raises:
    ConfigError: the folder holds runs already.
    RolloutError: the job failed by itself or took too long, or two unbroken runs differ.
  """
  job = Job(command, folder, cwd=cwd, env=env, limit_s=limit_s)
  pace = job.unbroken()
  draw = random.Random(seed)
  after: list[int] = []
  names: list[str] = []
  survivors = 0
  while len(after) < moments:
    names.append(f'cut{len(names)}')
    while len(after) < moments:
      left = job.cut(names[-1], *_moment(draw, pace, in_a_step=len(after) % 2 == 1))
      if left is None:  # the run came to its end before
        break
      survivors += left
      after.append(job.steps(names[-1]))
  if names:
    job.run(names[-1])  # the last one ends by itself too
  return _report(folder, names, after, survivors)


def part_kills(
  command: Sequence[str],
  folder: pathlib.Path,
  moments: int,
  seed: int,
  strike: Callable[[subprocess.Popen], bool],
  *,
  every_s: float,
  cwd: pathlib.Path | None = None,
  env: Mapping[str, str] | None = None,
  limit_s: float = 3600.0,
) -> Kills:
  """Makes two unbroken runs of a job, then others of which parts are killed `moments` times.

  The moments begin behind the first step of a run: a part that is not there at its start is an error.

  Args:
    command, folder, moments, seed, cwd, env, limit_s: as those of `learner_kills`.
    strike: kills a part of the running job, now. Returns False if there is none just then.
    every_s: mean seconds between two kills.

  Raises:
    ConfigError, RolloutError: as `learner_kills`. A job that did not survive has failed.
  """
  job = Job(command, folder, cwd=cwd, env=env, limit_s=limit_s)
  job.unbroken()
  draw = random.Random(seed)
  after: list[int] = []
  names: list[str] = []
  while len(after) < moments:
    names.append(f'cut{len(names)}')
    due = 0.0

    def befall(process: subprocess.Popen, name: str = names[-1]) -> None:
      nonlocal due
      if len(after) >= moments or not job.steps(name):
        return
      due = due or time.monotonic() + draw.uniform(0.0, 2 * every_s)
      if time.monotonic() >= due and strike(process):
        after.append(job.steps(name))
        due = 0.0

    job.run(names[-1], befall)
  return _report(folder, names, after, 0)


def children_with(process: subprocess.Popen, word: str) -> list[psutil.Process]:
  """Returns the children of a job, and theirs, whose command line has a word."""
  found = []
  with contextlib.suppress(psutil.NoSuchProcess):
    for one in psutil.Process(process.pid).children(recursive=True):
      with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        if any(word in part for part in one.cmdline()):
          found.append(one)
  return found


def _report(
  folder: pathlib.Path, names: Sequence[str], after: Sequence[int], survivors: int
) -> Kills:
  found = [compare(folder / WHOLE, folder / name) for name in names]
  return Kills(
    moments=len(after),
    lost=sum(one.lost for one in found),
    doubled=sum(one.doubled for one in found),
    bit_equal=all(one.bit_equal for one in found),
    after=tuple(after),
    runs=len(names),
    survivors=survivors,
  )


def compare(whole: pathlib.Path, other: pathlib.Path) -> Difference:
  """Compares what two finished run folders have trained.

  Raises:
    DataError: a log breaks its schema.
  """
  trained = [_trained(one) for one in (whole, other)]
  first, second = (collections.Counter(key for _, key, _ in one) for one in trained)
  return Difference(
    lost=(first - second).total(),
    doubled=(second - first).total(),
    bit_equal=trained[0] == trained[1]
    and _curve(whole) == _curve(other)
    and _exported(whole) == _exported(other),
  )


def _trained(run: pathlib.Path) -> list[tuple[int, tuple[str, int, int], list[object]]]:
  """Returns (step, key, ids and log-probs of its segments) of every trained episode, in order."""
  return [
    (
      entry.step,
      entry.key,
      [
        (one.ids.tolist(), one.logprobs.tolist())
        for one in entry.scored.episode.trajectory.segments
      ],
    )
    for entry in episodes.read(run / 'episodes' / 'train.jsonl')
  ]


def _curve(run: pathlib.Path) -> list[dict[str, float | None]]:
  return [
    {name: value for name, value in row.items() if name == 'step' or name.startswith(_CURVE)}
    for row in writer.read(run / 'metrics.jsonl')
  ]


def _exported(run: pathlib.Path) -> dict[str, str]:
  """Returns the digests of the exported weights, by file."""
  return {path.name: files.digest_file(path) for path in (run / 'hf').glob('*.safetensors')}


@dataclasses.dataclass(frozen=True)
class Pace:
  """How long an unbroken run took."""

  start_s: float  # from its start to the end of its first step
  step_s: float  # of a later step, on average


def _moment(draw: random.Random, pace: Pace, *, in_a_step: bool) -> tuple[int, float]:
  """Returns the steps to wait for, and the seconds behind the last of them."""
  if in_a_step:
    return draw.randint(1, _MOST_STEPS), draw.uniform(0.0, pace.step_s)
  return 0, draw.uniform(0.0, pace.start_s)


class Job:
  """The runs of one command in a folder."""

  def __init__(
    self,
    command: Sequence[str],
    folder: pathlib.Path,
    *,
    cwd: pathlib.Path | None,
    env: Mapping[str, str] | None,
    limit_s: float,
  ):
    """Takes the arguments of `learner_kills`.

    Raises:
      ConfigError: the folder holds runs already.
    """
    self._command, self._folder = tuple(command), folder.absolute()
    self._cwd, self._env, self._limit_s = cwd, env, limit_s
    if (folder / _FIRST).exists() or (folder / WHOLE).exists():
      raise ConfigError(f'{folder} holds runs already; wanted an empty folder')
    folder.mkdir(parents=True, exist_ok=True)

  def start(self, name: str) -> subprocess.Popen:
    """Starts or continues a run. What it says is appended to `<folder>/<name>.log`."""
    with self._log(name).open('ab') as log:
      return subprocess.Popen(
        [*self._command, f'--config.run.folder={self._folder / name}'],
        cwd=self._cwd,
        env=None if self._env is None else dict(self._env),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
      )

  def unbroken(self) -> Pace:
    """Makes the two unbroken runs. Returns the pace of the second, which finds all compiled.

    Raises:
      RolloutError: they differ, or one failed.
    """
    self.run(_FIRST)
    pace = self.run(WHOLE)
    if not compare(self._folder / _FIRST, self._folder / WHOLE).bit_equal:
      raise RolloutError(
        f'{self._folder}: two unbroken runs differ, so nothing can be said of killed ones; wanted '
        'rollout.staleness=0 and a deterministic device'
      )
    return pace

  def run(self, name: str, befall: Callable[[subprocess.Popen], None] | None = None) -> Pace:
    """Waits for the end of a run.

    Args:
      befall: is called again and again with the running job.

    Raises:
      RolloutError: it ended with another status than 0, or it took too long.
    """
    begin, before = time.monotonic(), self.steps(name)
    process, first, last, count = self.start(name), begin, begin, before
    while process.poll() is None:
      now, done = time.monotonic(), self.steps(name)
      if done > count:
        first, last, count = first if count > before else now, now, done
      if now - begin > self._limit_s:
        kill(process)
        raise RolloutError(f'{self._log(name)}: the job has not ended within {self._limit_s:g} s')
      if befall is not None:
        befall(process)
      time.sleep(_POLL_S)
    self._check(name, process)
    return Pace(first - begin, (last - first) / max(count - before - 1, 1))

  def cut(self, name: str, steps: int, seconds: float) -> int | None:
    """Starts or continues a run and kills it `seconds` after it has made so many steps more.

    Returns:
      How many of its child processes survive it. None if it came to its end before.

    Raises:
      RolloutError: it ended before with another status than 0, or made no step for too long.
    """
    before, begin, reached = self.steps(name), time.monotonic(), None
    process = self.start(name)
    while process.poll() is None:
      now = time.monotonic()
      if reached is None and self.steps(name) >= before + steps:
        reached = now
      if reached is not None and now >= reached + seconds:
        return kill(process)
      if now - begin > self._limit_s:
        kill(process)
        raise RolloutError(
          f'{self._log(name)}: {steps} steps did not come within {self._limit_s:g} s'
        )
      time.sleep(_POLL_S)
    self._check(name, process)
    return None

  def steps(self, name: str) -> int:
    """Returns how many lines of steps a run has written, over all its starts."""
    try:
      return (self._folder / name / 'steps.log').read_bytes().count(_STEP)
    except FileNotFoundError:
      return 0

  def _log(self, name: str) -> pathlib.Path:
    return self._folder / f'{name}.log'

  def _check(self, name: str, process: subprocess.Popen) -> None:
    if process.returncode:
      said = self._log(name).read_text(errors='replace')[-2000:]
      raise RolloutError(
        f'{self._log(name)}: the job ended with status {process.returncode}, wanted 0; it ends:\n'
        f'{said}'
      )


def kill(process: subprocess.Popen) -> int:
  """Kills a job with SIGKILL. Returns how many of its child processes are alive a minute later."""
  family: list[psutil.Process] = []
  with contextlib.suppress(psutil.NoSuchProcess):
    job = psutil.Process(process.pid)
    job.suspend()  # so that it starts no more of them
    family = job.children(recursive=True)
  process.kill()
  process.wait()
  return len(psutil.wait_procs(family, timeout=_LEFT_S)[1])
