"""One record per public benchmark: its files, row reader, prompt and scores."""

import dataclasses
from collections.abc import Callable, Mapping

from paravt_jax.errors import ConfigError
from paravt_jax.eval import lmms_eval, official, questions
from paravt_jax.eval.questions import Question, Row
from paravt_jax.eval.sample import Sample


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """The files, row reader, prompt and scores of one benchmark."""

  name: str
  hub: str  # name of the data set on the hub
  also: tuple[str, ...]  # other hub data sets with the same rows
  config: str
  split: str
  # globs of the row files in a snapshot. The first glob with a match is used
  rows: tuple[str, ...]
  columns: tuple[str, ...]  # required columns
  optional: tuple[str, ...]  # columns that are read if present
  read: Callable[[Row], Question]  # returns a row's Question or raises Broken
  # folders in the snapshot or its archives. Video paths in rows are relative to them
  media: tuple[str, ...]
  depth: int  # how many last path parts must match if the video is in another folder
  videos: str  # description of the published video files, for messages
  prompt: str  # prompt with `{question}`. Options follow, one per line
  shaped: bool  # the prompt sets the answer form, so our agent adds no other instruction
  # most bytes (UTF-8) of subtitles before the question, 0 for none. A token has at least one byte
  # in any language
  subtitle_bytes: int
  metric: str  # name of the main score in the result of `scores`
  breakdowns: tuple[str, ...]  # sample fields by which scores are broken down
  official: Callable[[Sample, str], dict[str, float]]  # published scoring rule
  # scoring rule of lmms-eval, None if it has no such task
  lmms_eval: Callable[[Sample, str], dict[str, float]] | None
  published: Mapping[str, float]  # {model: score in per cent} under the rules in `RULES`


_PUBLISHED = {
  'ParaVT-8B': (62.1, 69.4, 60.4, 39.8, 65.0, 68.6, 50.1),
  'Qwen3-VL-8B with tool': (59.9, 68.4, 52.2, 33.1, 58.3, 68.0, 49.3),
  'LongVT-RFT-7B': (59.5, 66.0, 54.7, 37.9, 59.4, 63.4, 23.4),
}
# The scoring rule of each published row. The release says that one driver produced its whole table,
# including the rows of other models.
RULES = dict.fromkeys(_PUBLISHED, 'official')


def _published(column: int) -> dict[str, float]:
  return {model: row[column] for model, row in _PUBLISHED.items()}


_VIDEOMME = Benchmark(
  name='videomme',
  hub='lmms-lab/Video-MME',
  also=('lmms-eval/Video-MME',),
  config='videomme',
  split='test',
  rows=('videomme/test-*.parquet', 'test-*.parquet', 'data/test-*.parquet', 'test.json*'),
  columns=('videoID', 'question_id', 'question', 'options', 'answer', 'duration'),
  optional=('domain', 'task_type'),
  read=questions.videomme,
  media=('data', 'videos'),
  depth=1,
  videos='videos_chunked_*.zip',
  prompt='{question}',
  shaped=False,
  subtitle_bytes=0,
  breakdowns=('duration', 'domain', 'task_type'),
  metric='accuracy',
  official=official.score_letter,
  lmms_eval=lmms_eval.score_letter,
  published=_published(0),
)
BENCHMARKS: Mapping[str, Benchmark] = {
  benchmark.name: benchmark
  for benchmark in (
    _VIDEOMME,
    dataclasses.replace(
      _VIDEOMME,
      name='videomme_wsub',
      subtitle_bytes=24000,
      breakdowns=(*_VIDEOMME.breakdowns, 'subtitles'),
      published=_published(1),
    ),
    Benchmark(
      name='longvideobench',
      hub='longvideobench/LongVideoBench',
      also=(),
      config='default',
      split='validation',
      rows=(
        'validation-*.parquet',
        'data/validation-*.parquet',
        'lvb_val.json',
        'validation.json*',
      ),
      columns=('id', 'video_path', 'question', 'correct_choice'),
      optional=(
        'option0',
        'option1',
        'option2',
        'option3',
        'option4',
        'candidates',
        'duration_group',
        'question_category',
      ),
      read=questions.longvideobench,
      media=('videos',),
      depth=1,
      videos='videos.tar.part.*',
      prompt='{question}',
      shaped=False,
      subtitle_bytes=0,
      breakdowns=('duration_group', 'question_category'),
      metric='accuracy',
      official=official.score_letter,
      lmms_eval=lmms_eval.score_first_letter,
      published=_published(2),
    ),
    Benchmark(
      name='lvbench',
      hub='lmms-lab/LVBench',
      also=('lmms-eval/LVBench',),
      config='default',
      split='train',
      rows=('data/train-*.parquet', 'train-*.parquet', '*/train-*.parquet', 'train.json*'),
      columns=('question', 'answer', 'video_path'),
      optional=('uid', 'type', 'question_type', 'options'),
      read=questions.lvbench,
      media=('', 'videos', 'all_videos'),
      depth=1,
      videos='video_chunks/videos_chunk_*.zip',
      prompt='{question}',
      shaped=False,
      subtitle_bytes=0,
      breakdowns=('type', 'question_type'),
      metric='accuracy',
      official=official.score_letter,
      lmms_eval=lmms_eval.score_letter,
      published=_published(3),
    ),
    Benchmark(
      name='mlvu',
      hub='sy1998/MLVU_dev',
      also=(),
      config='default',
      split='test',
      rows=(
        'mlvu/test-*.parquet',
        'data/test-*.parquet',
        'test-*.parquet',
        '*/test-*.parquet',
        'test.json*',
      ),
      columns=('video_name', 'question', 'answer', 'task_type'),
      optional=('candidates',),
      read=questions.mlvu,
      media=('video', 'videos', ''),
      depth=1,
      videos='video_part_*.zip',
      prompt='{question}',
      shaped=False,
      subtitle_bytes=0,
      breakdowns=('task_type',),
      metric='accuracy',
      official=official.score_letter,
      lmms_eval=lmms_eval.score_letter,
      published=_published(4),
    ),
    Benchmark(
      name='mmvu',
      hub='yale-nlp/MMVU',
      also=('lmms-eval/MMVU',),
      config='default',
      split='validation',
      rows=(
        'validation.json*',
        'validation-*.parquet',
        'data/validation-*.parquet',
        '*/validation-*.parquet',
      ),
      columns=('id', 'question', 'choices', 'answer', 'question_type'),
      optional=('video', 'video_path', 'subject', 'metadata'),
      read=questions.mmvu,
      media=('', 'videos'),
      depth=2,
      videos='videos/<subject>/<number>.mp4',
      prompt='{question}',
      shaped=False,
      subtitle_bytes=0,
      breakdowns=('question_type', 'subject'),
      metric='accuracy',
      official=official.score_mmvu,
      lmms_eval=lmms_eval.score_mmvu,
      published=_published(5),
    ),
    Benchmark(
      name='charades',
      hub='lmms-lab/charades_sta',
      also=('lmms-eval/charades_sta',),
      config='default',
      split='test',
      rows=('data/test-*.parquet', 'test-*.parquet', '*/test-*.parquet', 'test.json*'),
      columns=('video', 'caption', 'timestamp'),
      optional=(),
      read=questions.charades,
      media=('Charades_v1_480', 'videos', ''),
      depth=1,
      videos='Charades_v1_480_part_*.zip',
      prompt='When does this happen in the video: '
      '"{question}"\nSay it like this: The event happens '
      'in the X - Y seconds.',
      shaped=True,
      subtitle_bytes=0,
      breakdowns=(),
      metric='iou',
      official=official.score_times,
      lmms_eval=lmms_eval.score_times,
      published=_published(6),
    ),
    Benchmark(
      name='longvideo_reason',
      hub='LongVideo-Reason/longvideo-reason',
      also=(),
      config='default',
      split='test',
      rows=(
        'data/test-*.parquet',
        'test-*.parquet',
        '*/test-*.parquet',
        'test.json*',
        '*test*.json*',
      ),
      columns=('problem', 'problem_type', 'videos', 'answer'),
      optional=('problem_id',),
      read=questions.longvideo_reason,
      media=('', 'videos', 'longvila_videos'),
      depth=1,
      videos='longvideo_eval_subset*.tar.gz of LongVideo-Reason/longvideo_eval_videos',
      prompt='{question}',
      shaped=False,
      subtitle_bytes=0,
      breakdowns=('problem_type', 'options'),
      metric='accuracy',
      official=official.score_longvideo_reason,
      lmms_eval=None,
      published={},
    ),
  )
}


def named(name: str) -> Benchmark:
  """Returns the benchmark with this name.

  Raises:
    ConfigError: no benchmark has this name.
  """
  if name not in BENCHMARKS:
    raise ConfigError(
      f'benchmark {name!r}: no such benchmark; wanted one of {", ".join(BENCHMARKS)}'
    )
  return BENCHMARKS[name]
