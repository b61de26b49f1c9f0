"""Loads samples of the public benchmarks from their published files, and scores answers.

See section 11 of the spec. `benchmark_table` has one record per benchmark. Rows are checked when
they are read. A row that is broken as published stays with a mark, and `faults` counts such rows.
A file that lacks a column, or belongs to another benchmark, is an error. A missing video does not
stop a run: its question becomes an error. `problems` reports missing videos before a run starts.
"""

import dataclasses
import heapq
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from paravt_jax import seeds
from paravt_jax.chat import prompts
from paravt_jax.data.fields import Broken
from paravt_jax.errors import ConfigError, DataError
from paravt_jax.eval import official, questions, snapshots
from paravt_jax.eval import sample as marks
from paravt_jax.eval import subtitles as subtitle_files
from paravt_jax.eval.benchmark_table import BENCHMARKS as BENCHMARKS
from paravt_jax.eval.benchmark_table import RULES as RULES
from paravt_jax.eval.benchmark_table import Benchmark, named
from paravt_jax.eval.questions import Question
from paravt_jax.eval.sample import Sample
from paravt_jax.eval.subtitles import NoSubtitles, Subtitles
from paravt_jax.rewards import answer
from paravt_jax.types import Task

LETTERS = answer.LETTERS
SHOWN = 3  # missing videos of a benchmark that a message lists
_ASIDE = re.compile(r'(?:(?<=\s)|^)[(（][^()（）]*[)）](?=[\s.,;]|$)')


# Scores


def scores(sample: Sample, text: str, given: str | None = None) -> dict[str, float]:
  """Returns {metric: score in 0..1} for the text of the last turn.

  Multiple-choice rows give 'accuracy'. Open-ended rows give 'accuracy' (equal normalised tokens)
  and 'f1'. Temporal grounding gives 'iou', 'r@0.3', 'r@0.5' and 'r@0.7'. longvideo_reason adds
  'format'. mmvu repeats its accuracy as 'accuracy_mcq' or 'accuracy_oe'. `Benchmark.metric` names
  the main score.

  Args:
    given: the answer, if the protocol has its own rule to read it. None reads the answer as in
      training (spec, section 4).
  """
  task = sample.task
  given = answer.extract_answer(text) if given is None else given
  if task.question_type == 'tvg':
    return official.recalls(0.0 if sample.unanswerable else answer.temporal_iou(given, task.answer))
  if task.question_type == 'oe':
    golds = (
      []
      if sample.unanswerable
      else _spellings(task.answer)
      if sample.benchmark == 'mmvu'
      else [task.answer]
    )
    best = lambda rule: max((rule(given, gold) for gold in golds), default=0.0)
    found = {'accuracy': best(answer.exact_match), 'f1': best(answer.token_f1)}
  else:
    letters = [] if sample.unanswerable else sample.golds or (task.answer,)
    count = len(task.options) or len(LETTERS)
    found = {
      'accuracy': max(
        (answer.choice_accuracy(given, letter, count) for letter in letters), default=0.0
      )
    }
  if sample.benchmark == 'longvideo_reason':
    found['format'] = float(official.follows_format(text))
  if sample.benchmark == 'mmvu':
    found[f'accuracy_{task.question_type}'] = found['accuracy']
  return found


def _spellings(gold: str) -> list[str]:
  """Returns the gold text, and a version without parentheses if that differs.

  For "oxygen (O2)", "oxygen" is also right. Parentheses that are part of a word or the whole text
  stay, such as O(n) and (2, 3).
  """
  bare = ' '.join(_ASIDE.sub(' ', gold).split())
  return [gold, bare] if bare and bare != gold else [gold]


# Samples from snapshots


def load(
  name: str, folder: str | os.PathLike, cache: str | os.PathLike, limit: int = 0
) -> list[Sample]:
  """Loads the samples of a benchmark in the order of its rows.

  If a video or all subtitle files are missing, the archives are unpacked once, below `cache`. A
  task's question contains the subtitles (if any), the question and the options. With subtitles,
  facts['asked'] is the question without them, for sub-agents that see only one window. The task of
  a missing video has the path where the video was expected.

  Args:
    folder: a hub snapshot, or the folder of the data set in a hub cache.
    cache: where archives are unpacked.
    limit: number of samples, 0 for all. The draw depends only on the ids, so it is the same on
      every machine. A larger limit only adds samples.

  Raises:
    ConfigError: there is no such benchmark.
    DataError: the folder or the row file is missing. A file lacks a column. A row names no video
      inside the snapshot, or occurs twice. An archive is damaged. A benchmark with subtitles has no
      subtitle file.
  """
  benchmark = named(name)
  try:
    root = snapshots.root(folder)
    asked = _draw_questions(_questions(benchmark, root), limit)
    videos, _ = _videos(benchmark, root, cache, asked)
    subtitles = _subtitles(benchmark, root, cache, asked)
  except DataError as error:
    raise _about(name, error) from error
  said = {video: found.text for video, found in subtitles.items() if isinstance(found, Subtitles)}
  samples = [
    _sample(
      benchmark,
      question,
      videos[question.video] or root / benchmark.media[0] / question.video,
      said.get(question.video, ''),
    )
    for question in asked
  ]
  if not benchmark.subtitle_bytes:
    return samples
  return [
    _with_subtitles(sample, subtitles.get(question.video))
    for sample, question in zip(samples, asked)
  ]


def subtitle_notes(samples: Sequence[Sample]) -> str:
  """Returns one line on guessed encodings and unreadable subtitle files, '' for none."""
  videos = {sample.task.videos: sample.fields.get('subtitles', '') for sample in samples}
  return subtitle_files.describe_encodings(videos.values())


def faults(samples: Sequence[Sample]) -> dict[str, int]:
  """Returns {fault: count} for the rows of these samples, as `sample.count` does."""
  return marks.count(sample.fields for sample in samples)


def problems(
  folders: Mapping[str, str | os.PathLike], cache: str | os.PathLike | None = None, limit: int = 0
) -> tuple[list[str], list[str]]:
  """Returns (errors, warnings): messages on missing or wrong files of these benchmarks.

  An error ends the command. A warning names a benchmark that lacks some of its videos. Folders, row
  files, columns and rows are checked first. If they have no errors and `cache` is given, archives
  are unpacked as in `load`, and the videos are counted. Without `cache`, a video counts as present
  if an archive lists it or may contain it. Compressed tars are not read for this check.

  Args:
    folders: {benchmark: its snapshot folder}.
  """
  # found has the errors, partly the warnings, whole {benchmark: (snapshot folder, questions)}
  found: list[str] = []
  partly: list[str] = []
  whole: dict[str, tuple[pathlib.Path, list[Question]]] = {}
  for name, folder in folders.items():
    try:
      root = snapshots.root(folder)
      whole[name] = root, _draw_questions(_questions(named(name), root), limit)
    except (DataError, ConfigError) as error:
      found.append(str(_about(name, error)))
  for name, (root, asked) in whole.items():
    benchmark = named(name)
    place = None if found else cache
    try:
      videos, missing = _videos(benchmark, root, place, asked)
      if missing:
        (partly if len(missing) < len(videos) else found).append(
          f'{name}: {len(missing)} of {len(videos)} videos missing below {root}; put '
          f'{benchmark.videos} into that folder, as it is or unpacked{_unread(root)}:'
          + _list_names(missing)
        )
      if place is not None or not any(map(_is_subtitles, snapshots.archives(root))):
        _subtitles(benchmark, root, place, asked)
    except DataError as error:
      found.append(str(_about(name, error)))
  return found, partly


def _list_names(names: Sequence[str]) -> str:
  """Returns text with the first few names, one per line, and the number of other names."""
  more = len(names) - SHOWN
  lines = [*names[:SHOWN], *([f'… {more} more'] if more > 0 else [])]
  return ''.join(f'\n    {line}' for line in lines)


def _unread(root: pathlib.Path) -> str:
  """Returns a note on archives that cannot be read and may contain the missing files."""
  lines = snapshots.unread(root)
  return f' ({"; ".join(lines[:3])}{"; ..." if len(lines) > 3 else ""})' if lines else ''


def _about(name: str, error: Exception) -> DataError:
  return DataError(str(error) if str(error).startswith(f'{name}: ') else f'{name}: {error}')


def _questions(benchmark: Benchmark, root: pathlib.Path) -> list[Question]:
  """Returns the question of every row. Each has a unique id.

  Raises:
    DataError: there are no rows, a row is broken, or the same row occurs twice.
  """
  found: dict[str, Question] = {}
  for file in snapshots.row_files(root, benchmark.rows):
    for number, row in snapshots.rows(file, benchmark.columns, benchmark.optional):
      where = f'{benchmark.name}: row {number} of {file}'
      try:
        question = benchmark.read(row)
        place = pathlib.PurePosixPath(question.video)
        if place.is_absolute() or '..' in place.parts:
          raise Broken(f'video: got {question.video!r}, wanted a path inside the snapshot')
      except Broken as error:
        raise DataError(f'{where}: {error}; fetch the published file, or fix the row') from error
      name = question.id or f'{place.stem}-{len(found)}'
      if name in found:
        if dataclasses.replace(found[name], faults=(), id='') == dataclasses.replace(
          question, faults=(), id=''
        ):
          raise DataError(
            f'{where}: got the id {name!r} again, of the same row, wanted each row once; '
            'fetch the published file'
          )
        question = dataclasses.replace(question, faults=(*question.faults, questions.ID_TWICE))
        name = f'{name}-{len(found)}'
      found[name] = dataclasses.replace(question, id=name)
  if not found:
    raise DataError(
      f'{benchmark.name}: no rows in {root}, wanted at least one; fetch the published files'
    )
  return list(found.values())


def _draw_questions(asked: list[Question], limit: int) -> list[Question]:
  """Returns `limit` drawn questions (0: all) in their original order."""
  if not 0 < limit < len(asked):
    return asked
  kept = heapq.nsmallest(
    limit, range(len(asked)), key=lambda i: seeds.at(0, 'benchmark_limit', asked[i].id)
  )
  return [asked[i] for i in sorted(kept)]


def _place(benchmark: Benchmark, cache: str | os.PathLike) -> pathlib.Path:
  """Returns the folder where a data set's archives are unpacked.

  Benchmarks that use the same data set share it.
  """
  return pathlib.Path(cache) / benchmark.hub.replace('/', '--')


def _is_subtitles(parts: Sequence[pathlib.Path]) -> bool:
  return parts[0].name.lower().startswith('subtitle')


def _videos(
  benchmark: Benchmark,
  root: pathlib.Path,
  cache: str | os.PathLike | None,
  asked: Sequence[Question],
) -> tuple[dict[str, pathlib.Path | None], list[str]]:
  """Returns ({video name in the rows: its file or None}, missing videos).

  Without a cache nothing is unpacked. A video that an archive lists, or may contain, then counts as
  present.
  """
  wanted = dict.fromkeys(question.video for question in asked)
  folders = [root] if cache is None else [root, _place(benchmark, cache) / 'files']

  def found() -> tuple[dict[str, pathlib.Path | None], list[str]]:
    files = snapshots.Files(folders, snapshots.VIDEOS)
    videos = {video: files.find(video, benchmark.media, benchmark.depth) for video in wanted}
    return videos, [video for video, path in videos.items() if path is None]

  videos, missing = found()
  # Find the archives that contain missing videos. Names are None for an unread compressed tar.
  held = [
    (parts, snapshots.members(parts))
    for parts in snapshots.archives(root)
    if missing and not _is_subtitles(parts)
  ]

  def tail(name: str) -> tuple[str, ...]:
    folders = pathlib.PurePosixPath(name).parts[-benchmark.depth : -1]
    return (*folders, snapshots.stem(name, snapshots.VIDEOS))

  inside = {parts: None if names is None else set(map(tail, names)) for parts, names in held}
  holding = [
    parts for parts, names in inside.items() if names is None or names & set(map(tail, missing))
  ]
  if cache is None:
    return videos, [
      video
      for video in missing
      if not any(names is None or tail(video) in names for names in map(inside.get, holding))
    ]
  # Unpack these archives and search again.
  for parts in holding:
    snapshots.unpack_archives(parts, folders[1], folders[1].with_name('marks'))
  return found() if holding else (videos, missing)


def _subtitles(
  benchmark: Benchmark,
  root: pathlib.Path,
  cache: str | os.PathLike | None,
  asked: Sequence[Question],
) -> dict[str, Subtitles | NoSubtitles]:
  """Returns {video: its subtitles, or the error of its file} for videos with a subtitle file.

  Some videos of Video-MME have no subtitle file.
  """
  if not benchmark.subtitle_bytes:
    return {}
  folders = [root] if cache is None else [root, _place(benchmark, cache) / 'files']
  files = snapshots.Files(folders, snapshots.SUBTITLES)
  if not len(files) and cache is not None:
    for parts in filter(_is_subtitles, snapshots.archives(root)):
      snapshots.unpack_archives(parts, folders[1], folders[1].with_name('marks'))
    files = snapshots.Files(folders, snapshots.SUBTITLES)
  if not len(files):
    raise DataError(
      f'{benchmark.name}: no subtitle file below {root}, wanted subtitle/<videoID>.srt (or '
      '.vtt) or subtitle.zip; fetch it' + _unread(root)
    )
  paths = {
    video: files.find(f'{pathlib.PurePosixPath(video).stem}.srt', ('subtitle',), 1)
    for video in dict.fromkeys(question.video for question in asked)
  }
  return {
    video: _read_subtitles(path, benchmark.subtitle_bytes)
    for video, path in paths.items()
    if path is not None
  }


def _read_subtitles(path: pathlib.Path, max_bytes: int) -> Subtitles | NoSubtitles:
  try:
    return subtitle_files.read(path, max_bytes)
  except NoSubtitles as error:
    return error


def _with_subtitles(sample: Sample, found: Subtitles | NoSubtitles | None) -> Sample:
  """Returns the sample with the state of its subtitle file in fields['subtitles'].

  A file without readable text turns the sample into an error.
  """
  if isinstance(found, Subtitles):
    state = subtitle_files.GUESSED + found.encoding if found.guessed else subtitle_files.SHOWN
  else:
    state = subtitle_files.NONE if found is None else subtitle_files.UNREADABLE
  facts = (
    {**sample.task.facts, subtitle_files.BROKEN: str(found)}
    if isinstance(found, NoSubtitles)
    else sample.task.facts
  )
  return dataclasses.replace(
    sample,
    fields={**sample.fields, 'subtitles': state},
    task=dataclasses.replace(sample.task, facts=facts),
  )


def _sample(
  benchmark: Benchmark, question: Question, video: pathlib.Path, subtitles: str
) -> Sample:
  lines = [benchmark.prompt.format(question=question.text)]
  lines += [f'{letter}. {option}' for letter, option in zip(LETTERS, question.options)]
  text = asked = '\n'.join(lines)
  facts: dict[str, Any] = {prompts.SHAPED: True} if benchmark.shaped else {}
  if subtitles:
    text, facts['asked'] = f'Subtitles (seconds):\n{subtitles}\n\n{asked}', asked
  fields = dict(question.fields)
  if question.faults:
    alone = question.faults == (marks.NO_OPTIONS,)
    fields |= {
      marks.OPTIONS: marks.BROKEN,
      **({} if alone else {marks.FAULTS: '; '.join(question.faults)}),
    }
  task = Task(
    id=question.id,
    videos=(str(video),),
    question=text,
    question_type=question.kind,
    answer=question.gold,
    options=question.options,
    source=benchmark.name,
    facts=facts,
  )
  return Sample(
    benchmark=benchmark.name,
    task=task,
    fields=fields,
    subtitles=subtitles,
    golds=question.golds if len(question.golds) > 1 else (),
  )
