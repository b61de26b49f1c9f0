"""The six steps over a folder of videos. Each step resumes where it stopped, limits its parallel
jobs, and counts failures.

  <folder>/journal/{split,caption,ask,rewrite}.jsonl    what is finished, a line per item (see `journal`)
  <folder>/clips/<video>/00000.mp4                      step 1
  <folder>/captions.json                                step 3      questions.json    step 5
  <folder>/longvideo_reason.json, paravt_{sft,rl}_longvideoreason.parquet             the result
  <folder>/rejected/<step>.jsonl                        every rejected item with its reason and the reply
  <folder>/provenance.json                              {file: its digest, and from what and by which models and prompts it was made}

A step that is not selected provides its last results. Merging and parsing are pure and fast, so
every run repeats them.
"""

import asyncio
import collections
import contextlib
import dataclasses
import functools
import pathlib
import re
import shutil
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from paravt_jax import files, seeds
from paravt_jax.data import provenance
from paravt_jax.longvideo_reason import ask, caption, cutting, journal, outputs, parse, rows, split
from paravt_jax.longvideo_reason.ask import AskOptions, RewriteOptions
from paravt_jax.longvideo_reason.caption import CaptionOptions
from paravt_jax.longvideo_reason.items import (
  Caption,
  Clip,
  Failed,
  Question,
  Rejected,
  Video,
  to_json,
)
from paravt_jax.rollout import chat_server as server
from paravt_jax.video.decode import DecodePool

STEPS = ('split', 'caption', 'merge', 'ask', 'parse', 'rewrite')
# of what a journal line was made from: all else are settings
_INPUTS = ('video', 'clips', 'window', 'captions', 'question')
Progress = Callable[[str, int, int], None]
Part = TypeVar('Part')


@dataclasses.dataclass(frozen=True)
class Options:
  """steps: which run. media_root: rows name videos by their path below it. split_workers: videos
  cut at once. Parts: see each.
  """

  steps: tuple[str, ...]
  media_root: str
  seed: int
  split_workers: int
  cut: cutting.CutOptions
  caption: CaptionOptions
  ask: AskOptions
  rewrite: RewriteOptions
  trace: rows.TraceOptions


@dataclasses.dataclass
class Tally:
  """Counts the outcomes of a step's items."""

  items: int = 0
  done: int = 0
  kept: int = 0  # finished in an earlier run
  waiting: int = 0  # an earlier step has not finished with them
  # by reason
  rejected: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  failed: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by reason
  # what changed -> items made again
  again: collections.Counter = dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass(frozen=True)
class Servers:
  """The clients of a run; None where no step needs one."""

  vision: server.Server | None  # sees clips
  reasoner: server.Server | None  # reads captions


@dataclasses.dataclass(frozen=True)
class _Job:
  """An item of a step, and the function that makes it."""

  item: str  # its name
  made_from: dict[str, Any]  # what it would be made from
  work: Callable[[], Awaitable[Any | Rejected | Failed]]  # makes it


@dataclasses.dataclass(frozen=True)
class _Known:
  """An outcome with its exact inputs, which the job did not know in advance."""

  made_from: dict[str, Any]
  outcome: Any | Rejected


class Pipeline:
  """One run over `videos`. `run` does the steps; `tallies` then holds what became of them,
  `results` the finished questions, and `files` the derived files that this run wrote, or found
  already up to date.
  """

  def __init__(
    self, folder: pathlib.Path, videos: Sequence[Video], options: Options, progress: Progress
  ):
    self.folder = folder
    self.videos = list(videos)
    self.options = options
    self._progress = progress
    self.tallies = {step: Tally() for step in STEPS if step in options.steps}
    self.results: list[rows.Result] = []
    self.files: list[pathlib.Path] = []
    self._splits: dict[str, split.Split] = {}
    self._captions: dict[str, list[Caption]] = {}
    # step -> video -> settings behind it
    self._used: dict[str, dict[str, list[dict[str, Any]]]] = collections.defaultdict(dict)
    self._rejected: dict[str, list[tuple[str, Rejected]]] = {}

  async def run(self, servers: Servers, pool: DecodePool | None) -> None:
    """Does the chosen steps and writes their files.

    Raises:
      RolloutError: a server went away. OSError: the disk is full. All items finished before then
      stay.
    """
    with contextlib.ExitStack() as stack:
      logs = {
        step: stack.enter_context(journal.Journal(self.folder / 'journal' / f'{step}.jsonl'))
        for step in ('split', 'caption', 'ask', 'rewrite')
      }
      try:
        await self._split(logs['split'])
        await self._caption(logs['caption'], servers.vision, pool)
        self._merge()
        questions = self._parse(await self._ask(logs['ask'], servers.reasoner))
        await self._rewrite(logs['rewrite'], servers.reasoner, questions)
      finally:
        outputs.write_rejected(
          self.folder, {step: self._rejected.get(step) for step in self.tallies}
        )
    if {'parse', 'rewrite'} & set(self.options.steps):
      self._write_rows()

  # Steps

  async def _split(self, log: journal.Journal) -> None:
    options = {
      key: value
      for key, value in dataclasses.asdict(self.options.cut).items()
      if key != 'deadline_s'
    }
    jobs = []
    for video in self.videos:
      last = log.last(video.id)
      same = last is not None and provenance.is_same(video.path, last['made_from']['video'])
      made_from = {
        'version': split.VERSION,
        'video': last['made_from']['video'] if last and same else None,
        'options': options,
      }
      if last and same and last['result'] and not self._clips_are_there(video.id, last):
        made_from |= {'clips': 'missing'}
      jobs.append(_Job(video.id, made_from, lambda video=video: self._cut(video, options)))
    await self._each('split', log, jobs, self.options.split_workers)
    for video in self.videos:
      last = log.last(video.id)
      if (
        not last
        or not last['result']
        or not provenance.is_same(video.path, last['made_from']['video'])
      ):
        continue
      if 'split' in self.tallies and last['made_from']['options'] != options:
        continue  # it failed in this run, so its old clips are unusable
      clips = tuple(
        dataclasses.replace(
          Clip(**clip),
          file=str(self._clip_folder(video.id, last['made_from']['options']) / clip['file']),
        )
        for clip in last['result']['clips']
      )
      self._splits[video.id] = split.Split(
        last['made_from']['video'], last['result']['duration'], clips
      )
      self._used['split'][video.id] = _settings(log, video.id)

  async def _cut(self, video: Video, options: dict[str, Any]) -> 'Rejected | Failed | _Known':
    """Returns a video's clips with the inputs for its journal line. The identity of the video is
    only known now.
    """
    folder = self._clip_folder(video.id, options)
    identity, outcome = await split.split(video, folder, self.options.cut)
    if isinstance(outcome, Failed):
      return outcome
    if identity is None:
      return Failed('missing', outcome.detail if isinstance(outcome, Rejected) else '')
    made_from = {'version': split.VERSION, 'video': identity, 'options': options}
    if isinstance(outcome, Rejected):
      return _Known(made_from, outcome)
    for other in folder.parent.glob(f'{_slug(video.id)}-*'):
      if other != folder:  # cut by other options
        shutil.rmtree(other, ignore_errors=True)
    return _Known(
      made_from, {'duration': outcome.duration, 'clips': [to_json(clip) for clip in outcome.clips]}
    )

  def _clip_folder(self, item: str, options: dict[str, Any]) -> pathlib.Path:
    return self.folder / 'clips' / f'{_slug(item)}-{_digest(options)[:8]}'

  def _clips_are_there(self, item: str, entry: dict[str, Any]) -> bool:
    folder = self._clip_folder(item, entry['made_from']['options'])
    return all((folder / clip['file']).is_file() for clip in entry['result']['clips'])

  async def _caption(
    self, log: journal.Journal, client: server.Server | None, pool: DecodePool | None
  ) -> None:
    made = _settings_record(self.options.caption, client)
    jobs: dict[str, list[_Job]] = {}
    for name, found in self._splits.items():
      for number, clip in enumerate(found.clips):
        made_from = {
          'version': caption.VERSION,
          'video': found.identity['blake2b'],
          'window': [clip.start, clip.end],
          **made,
        }
        item = f'{name}#{number:05d}'
        work = functools.partial(self._caption_one, client, pool, clip.file, item)
        jobs.setdefault(name, []).append(_Job(item, made_from, work))
    await self._each(
      'caption',
      log,
      [job for each in jobs.values() for job in each],
      client.options.concurrency if client else 1,
    )
    self._rejected['merge'] = []
    for name, found in self._splits.items():
      outcomes = [self._outcome('caption', log, job, ('video', 'window')) for job in jobs[name]]
      said = [
        Caption(clip.start, clip.end, text)
        for clip, text in zip(found.clips, outcomes)
        if isinstance(text, str)
      ]
      self._used['caption'][name] = [
        each
        for job, text in zip(jobs[name], outcomes)
        if isinstance(text, str)
        for each in _settings(log, job.item)
      ]
      missing = len(outcomes) - len(said)
      if None in outcomes:
        self._count_waiting('merge')
      elif not said or missing > self.options.ask.max_missing * len(outcomes):
        self._rejected['merge'].append(
          (name, Rejected('few_captions', f'{missing} of {len(outcomes)} clips have none'))
        )
      else:
        self._captions[name] = said

  async def _caption_one(
    self, client: server.Server | None, pool: DecodePool | None, path: str, item: str
  ) -> str | Rejected | Failed:
    seed = self._seed('caption', item)
    return await caption.caption(_require(client), _require(pool), path, self.options.caption, seed)

  def _merge(self) -> None:
    if 'merge' not in self.tallies:
      return
    tally = self.tallies['merge']
    tally.items, tally.done = len(self._splits), len(self._captions)
    tally.rejected.update(rejected.reason for _, rejected in self._rejected['merge'])
    names = sorted(self._captions)
    merged = [caption.merge_captions(name, self._captions[name]) for name in names]
    self._write(
      {'captions.json': (journal.json_bytes(merged), self._record(names, ('split', 'caption')))}
    )

  async def _ask(self, log: journal.Journal, client: server.Server | None) -> dict[str, str]:
    """Returns the unparsed replies by video."""
    options, jobs = self.options.ask, []
    for name, said in self._captions.items():
      made_from = {
        'version': ask.VERSION,
        'captions': _digest(caption.merge_captions(name, said)),
        **_settings_record(options, client),
      }
      work = functools.partial(self._ask_one, client, name, said)
      jobs.append(_Job(name, made_from, work))
    await self._each('ask', log, jobs, client.options.concurrency if client else 1)
    replies = {
      job.item: reply
      for job in jobs
      if isinstance(reply := self._outcome('ask', log, job, ('captions',)), str)
    }
    self._used['ask'] = {name: _settings(log, name) for name in replies}
    return replies

  async def _ask_one(
    self, client: server.Server | None, name: str, said: Sequence[Caption]
  ) -> str | Rejected | Failed:
    duration, seed = self._splits[name].duration, self._seed('ask', name)
    return await ask.ask(_require(client), said, duration, self.options.ask, seed)

  def _parse(self, replies: dict[str, str]) -> dict[str, Question]:
    outcomes = {
      name: parse.parse(reply, self._splits[name].duration) for name, reply in replies.items()
    }
    questions = {
      name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Question)
    }
    bad = [(name, outcome) for name, outcome in outcomes.items() if isinstance(outcome, Rejected)]
    if 'parse' in self.tallies:
      tally = self.tallies['parse']
      tally.items = len(self._captions)
      tally.done = len(questions)
      tally.waiting = len(self._captions) - len(replies)
      tally.rejected.update(rejected.reason for _, rejected in bad)
      self._rejected['parse'] = bad
    return questions

  async def _rewrite(
    self, log: journal.Journal, client: server.Server | None, questions: dict[str, Question]
  ) -> None:
    """Also gathers the results. A question whose rewriting was rejected or failed keeps its
    original reasons.
    """
    options, jobs = self.options.rewrite, []
    for name, question in sorted(questions.items()):
      made_from = {
        'version': ask.VERSION,
        'question': _digest(to_json(question)),
        **_settings_record(options, client),
      }
      work = functools.partial(self._rewrite_one, client, name, question)
      jobs.append(_Job(name, made_from, work))
    await self._each('rewrite', log, jobs, client.options.concurrency if client else 1)
    paths = {video.id: video.path for video in self.videos}
    for job in jobs:
      text = self._outcome('rewrite', log, job, ('question',))
      if isinstance(text, str):
        self._used['rewrite'][job.item] = _settings(log, job.item)
      question = dataclasses.replace(
        questions[job.item], reasoning=text if isinstance(text, str) else ''
      )
      value = pathlib.Path(paths[job.item]).relative_to(self.options.media_root).as_posix()
      self.results.append(rows.Result(job.item, value, question, tuple(self._captions[job.item])))

  async def _rewrite_one(
    self, client: server.Server | None, name: str, question: Question
  ) -> str | Rejected | Failed:
    seed = self._seed('rewrite', name)
    return await ask.rewrite(_require(client), question, self.options.rewrite, seed)

  # Shared by the steps

  async def _each(self, step: str, log: journal.Journal, jobs: list[_Job], limit: int) -> None:
    """Works on the jobs that are not done, `limit` at a time, and writes each outcome to the
    journal. The first error cancels the others.
    """
    if step not in self.tallies:
      return
    tally, rejected = self.tallies[step], []
    outcomes = [(job, log.current(job.item, job.made_from)) for job in jobs]
    todo = [job for job, outcome in outcomes if outcome is None]
    rejected += [(job.item, outcome) for job, outcome in outcomes if isinstance(outcome, Rejected)]
    tally.items, tally.kept = len(jobs), len(jobs) - len(todo) - len(rejected)
    tally.again.update(name for job in todo for name in log.changed(job.item, job.made_from))
    queue, finished = iter(todo), len(jobs) - len(todo)
    self._progress(step, finished, len(jobs))

    async def lane() -> None:
      nonlocal finished
      for job in queue:
        outcome, made_from = await job.work(), job.made_from
        if isinstance(outcome, _Known):
          outcome, made_from = outcome.outcome, outcome.made_from
        if isinstance(outcome, Failed):
          tally.failed[outcome.reason] += 1
        else:
          log.put(job.item, made_from, outcome)
          tally.done += not isinstance(outcome, Rejected)
        if isinstance(outcome, Rejected):
          rejected.append((job.item, outcome))
        finished += 1
        self._progress(step, finished, len(jobs))

    try:
      await _together([lane() for _ in range(min(limit, len(todo)))])
    finally:
      self._rejected[step] = rejected
      tally.rejected.update(each.reason for _, each in rejected)

  def _outcome(
    self, step: str, log: journal.Journal, job: _Job, essential: tuple[str, ...]
  ) -> Any | Rejected | None:
    """Returns the known outcome of an item. If its step runs, all inputs must match; otherwise the
    last outcome with the same `essential` inputs counts.
    """
    if step in self.tallies:
      return log.current(job.item, job.made_from)
    last = log.last(job.item)
    if last is None or any(
      last['made_from'].get(name) != job.made_from[name] for name in essential
    ):
      return None
    return Rejected(**last['rejected']) if last['rejected'] else last['result']

  def _seed(self, step: str, item: str) -> int:
    return seeds.at(self.options.seed, step, item) % 2**31

  def _count_waiting(self, step: str) -> None:
    if step in self.tallies:
      self.tallies[step].waiting += 1

  def _write_rows(self) -> None:
    names, trace = [each.id for each in self.results], self.options.trace
    asked = self._record(names, ('split', 'caption', 'ask'))
    rewritten = self._record(names, ('split', 'caption', 'ask', 'rewrite'))
    self._write(outputs.result_files(self.results, trace, asked, rewritten))

  def _record(self, names: Sequence[str], steps: Sequence[str]) -> dict[str, Any]:
    inputs = [self._splits[name].identity for name in names]
    settings = {step: [self._used[step].get(name, ()) for name in names] for step in steps}
    return outputs.record(inputs, settings)

  def _write(self, made: outputs.Made) -> None:
    self.files += outputs.write(self.folder, made)


def _settings(log: journal.Journal, item: str) -> list[dict[str, Any]]:
  """Returns the settings, without the inputs, that made an item of a journal: version, model,
  prompt's digest, options. Empty if the item is not finished.
  """
  entry = log.last(item)
  if entry is None:
    return []
  return [{name: value for name, value in entry['made_from'].items() if name not in _INPUTS}]


def _require(part: Part | None) -> Part:
  """Returns a server or a pool that a selected step needs. Raises ValueError if it is None."""
  if part is None:
    raise ValueError('this step was given no server or pool; wanted one in `Servers`')
  return part


async def _together(lanes: Sequence[Awaitable[None]]) -> None:
  """Runs all lanes. The first error cancels the other lanes and is raised."""
  tasks = [asyncio.ensure_future(lane) for lane in lanes]
  try:
    await asyncio.gather(*tasks)
  finally:
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _settings_record(options: Any, client: server.Server | None) -> dict[str, Any]:
  """A model and options as a journal line names them; a prompt by its digest."""
  values = dataclasses.asdict(options)
  return {
    'model': client.options.model if client else '',
    **values,
    'prompt': _digest(values['prompt']),
  }


def _digest(value: Any) -> str:
  return files.digest(value.encode()) if isinstance(value, str) else files.digest_json(value)


def _slug(item: str) -> str:
  """Returns a readable folder name for an item, with a digest that makes it unique."""
  return f'{re.sub(r"[^A-Za-z0-9_-]+", "_", item)[:60]}-{_digest(item)[:8]}'
