"""Writes the files of the pipeline, each with a record of its inputs."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paravt_jax import files
from paravt_jax.data import provenance
from paravt_jax.longvideo_reason import journal, rows
from paravt_jax.longvideo_reason.items import (
  Rejected,
)

TOOL = 'paravt_jax.longvideo_reason'
Made = Mapping[str, tuple[bytes, dict[str, Any]]]  # name of a file -> its content, its record


def write(folder: pathlib.Path, made: Made) -> list[pathlib.Path]:
  """Writes derived files and their records into provenance.json, and returns their paths.

  Records of other files stay as long as they match those files.
  """
  for name, (content, _) in made.items():
    files.write_if_changed(folder / name, content, sync=True)
  new = {
    name: {'blake2b': provenance.digest(folder / name), **about}
    for name, (_, about) in made.items()
  }
  path = folder / 'provenance.json'
  records = dict(sorted({**_true_records(path), **new}.items()))
  files.write_if_changed(path, journal.json_bytes(records), sync=True)
  return [folder / name for name in made]


def write_rejected(
  folder: pathlib.Path, rejected: Mapping[str, Sequence[tuple[str, Rejected]] | None]
) -> None:
  """One file per step that ran, with only the items that are rejected now. None leaves the file of
  a step unchanged.
  """
  for step, items in rejected.items():
    path = folder / 'rejected' / f'{step}.jsonl'
    if items is None:
      continue
    if not items:
      path.unlink(missing_ok=True)
      continue
    found = [{'item': item, **vars(why)} for item, why in sorted(items, key=lambda each: each[0])]
    lines = ''.join(json.dumps(each, ensure_ascii=False) + '\n' for each in found)
    files.write_if_changed(path, lines.encode(), sync=True)


def record(
  inputs: Sequence[dict[str, Any]], settings: Mapping[str, Iterable[Iterable[dict[str, Any]]]]
) -> dict[str, Any]:
  """Provenance of a file: the videos it came from, by content, and the settings of each step.

  Models and digests of prompts are among the settings, as the journals record them for exactly
  these inputs. Several runs give several settings. The settings never include the key of a server.

  Args:
    inputs: identities of the videos. settings: by step, those behind each video.
  """
  return {
    'tool': TOOL,
    'version': rows.VERSION,
    'options': {
      step: _drop_duplicates(each for some in of_videos for each in some)
      for step, of_videos in settings.items()
    },
    'inputs': list(inputs),
  }


def result_files(
  results: Sequence[rows.Result],
  trace: rows.TraceOptions,
  asked: dict[str, Any],
  rewritten: dict[str, Any],
) -> Made:
  """The files of the finished questions. asked, rewritten: the records of files without and with
  rewritten reasons.
  """
  records = {
    'sft': {**rewritten, 'options': {**rewritten['options'], 'trace': dataclasses.asdict(trace)}},
    'rl': asked,
  }
  made = {
    'sft': [rows.sft_row(each, trace) for each in results],
    'rl': [rows.rl_row(each) for each in results],
  }
  plain = journal.json_bytes(rows.reason_json(results, rewritten=False))
  final = journal.json_bytes(rows.reason_json(results, rewritten=True))
  return {
    'questions.json': (plain, asked),
    'longvideo_reason.json': (final, rewritten),
    **{
      path.name: (rows.parquet_bytes(made[kind], kind, records[kind]), records[kind])
      for kind, path in rows.file_names(pathlib.Path()).items()
    },
  }


def _true_records(path: pathlib.Path) -> dict[str, Any]:
  """Returns the records in a provenance.json whose files, in the same folder, still match the
  record.
  """
  try:
    found = json.loads(path.read_bytes()) if path.is_file() else {}
  except ValueError:
    return {}
  records = found.items() if isinstance(found, dict) else ()
  return {
    name: record
    for name, record in records
    if isinstance(record, dict)
    and (path.parent / name).is_file()
    and provenance.digest(path.parent / name) == record.get('blake2b')
  }


def _drop_duplicates(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns each value once, in a fixed order."""
  return [json.loads(text) for text in sorted({json.dumps(each, sort_keys=True) for each in found})]
