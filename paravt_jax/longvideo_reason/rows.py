"""Questions as files: the LongVideo-Reason JSON, and parquet rows in the published SFT and RL
schemas.

An SFT row contains true tool results. The teacher crops exactly the clips that its reasons cite.
Each call returns the vision model's caption of that clip. Then the teacher reasons and answers. A
question that cites more clips than the agent may crop is answered without a call.
"""

import dataclasses
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq

from paravt_jax.chat import prompts
from paravt_jax.data import provenance
from paravt_jax.data.world import traces
from paravt_jax.data.world.write import RL_SCHEMA, SFT_SCHEMA
from paravt_jax.longvideo_reason import ask
from paravt_jax.longvideo_reason.items import Caption, Question, Step, seconds
from paravt_jax.options import COUNT, FLAG, Options

VERSION = 1
SOURCE = 'longvideoreason'
ROW_GROUP = 256
_TOUCH = 0.05  # seconds by which a cited window must overlap a clip to mean it


@dataclasses.dataclass(frozen=True)
class TraceOptions(Options):
  """How rows for SFT are written."""

  calls: Annotated[bool, FLAG]  # rows crop the clips that the reasons cite; off: they only think
  max_parallel: Annotated[int, COUNT]  # calls of one round, as the agent may make
  max_rounds: Annotated[int, COUNT]  # rounds of calls, as the agent may make


@dataclasses.dataclass(frozen=True)
class Result:
  """A finished question with what its rows need."""

  id: str
  video: str  # the media value of a row
  question: Question
  captions: tuple[Caption, ...]  # of the clips, in order


def reason_json(results: Sequence[Result], rewritten: bool) -> list[dict[str, Any]]:
  """[{QUESTION, OPTIONS {letter: text}, ANSWER, REASONS, video_name}]. REASONS: {'Step 1': {timestamp, reasons}}, or, with
  `rewritten`, the fluent text where there is one.
  """
  return [
    {
      'QUESTION': each.question.question,
      'OPTIONS': dict(zip(ask.parse.LETTERS, each.question.options)),
      'ANSWER': each.question.answer,
      'REASONS': each.question.reasoning
      if rewritten and each.question.reasoning
      else _steps(each.question.steps),
      'video_name': each.id,
    }
    for each in results
  ]


def _steps(steps: Sequence[Step]) -> dict[str, Any]:
  return {
    f'Step {i}': {
      'timestamp': f'{seconds(step.start)} to {seconds(step.end)}',
      'reasons': list(step.reasons),
    }
    for i, step in enumerate(steps, 1)
  }


def rl_row(result: Result) -> dict[str, Any]:
  """A question in the RL schema; its id is that of the video, after the source."""
  extra = {
    'id': f'{SOURCE}/{result.id}',
    'answer': result.question.answer,
    'question_type': 'mcq',
    'source': SOURCE,
    'options': list(result.question.options),
  }
  return {
    'prompt': [{'role': 'user', 'content': f'<video>{problem(result.question)}'}],
    'videos': [{'video': result.video}],
    'extra_info': json.dumps(extra, ensure_ascii=False),
  }


def sft_row(result: Result, options: TraceOptions) -> dict[str, Any]:
  """Returns a question in the SFT schema, with the turns of the teacher."""
  video = {'type': 'video_url', 'video_url': {'url': result.video}}
  text = {'type': 'text', 'text': prompts.question(problem(result.question), 'mcq')}
  messages = [_message('system', prompts.system()), {'role': 'user', 'content': [video, text]}]
  for clips in rounds(result, options):
    messages.append(_message('assistant', _crop_turn(clips)))
    messages += [
      _message('user', f'<tool_response>\n{clip.text}\n</tool_response>') for clip in clips
    ]
  thought = result.question.reasoning or ask.reasons(result.question)
  messages.append(
    _message(
      'assistant', f'<think>\n{thought}\n</think>\n<answer>{result.question.answer}</answer>'
    )
  )
  return {'messages': json.dumps(messages, ensure_ascii=False)}


def problem(question: Question) -> str:
  """Returns the question, then its options, one per line."""
  return f'{question.question}\n{ask.format_options(question.options)}'


def rounds(result: Result, options: TraceOptions) -> list[tuple[Caption, ...]]:
  """The cited clips that have a caption, in order of time, at most max_parallel per turn; empty
  when they exceed the limits.
  """
  cited = [
    clip
    for clip in result.captions
    if any(
      min(clip.end, step.end) - max(clip.start, step.start) > _TOUCH
      for step in result.question.steps
    )
  ]
  if not options.calls or len(cited) > options.max_parallel * options.max_rounds:
    return []
  return [
    tuple(cited[i : i + options.max_parallel]) for i in range(0, len(cited), options.max_parallel)
  ]


def _crop_turn(clips: Sequence[Caption]) -> str:
  """Returns a turn that names the windows and crops all clips in parallel."""
  ends = [(_number(clip.start), _number(clip.end)) for clip in clips]
  where = ', '.join(f'{seconds(start)} to {seconds(end)}' for start, end in ends)
  return f'<think>\nLook closer at {where} seconds.\n</think>\n' + ''.join(
    traces.call_text(start, end) for start, end in ends
  )


def _number(time: float) -> float:
  """To a hundredth of a second; a whole number becomes an int, as in the prompt's example."""
  return int(time) if time == int(time) else round(time, 2)


def _message(role: str, text: str) -> dict[str, Any]:
  return {'role': role, 'content': [{'type': 'text', 'text': text}]}


def parquet_bytes(rows: Sequence[Mapping[str, Any]], kind: str, record: Mapping[str, Any]) -> bytes:
  """A parquet file of the 'sft' or 'rl' schema with its provenance in the metadata."""
  schema = {'sft': SFT_SCHEMA, 'rl': RL_SCHEMA}[kind].with_metadata(
    {provenance.KEY: json.dumps(record).encode()}
  )
  buffer = io.BytesIO()
  pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer, row_group_size=ROW_GROUP)
  return buffer.getvalue()


def file_names(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """'sft' and 'rl' -> where their rows are written."""
  return {kind: folder / f'paravt_{kind}_{SOURCE}.parquet' for kind in ('sft', 'rl')}
