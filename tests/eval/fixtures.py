"""Small snapshots of every benchmark, in the very schema and layout that its publishers use, with
real videos.

`snapshot(folder, name)` writes one; `GOLD[name]` is what each row should resolve to. Videos are
told apart by their length: the n-th of a benchmark lasts n + 4 seconds.
"""

import functools
import io
import json
import pathlib
import tarfile
import tempfile
import zipfile
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from paravt_jax.testing import clips

SRT = (
  '1\n00:00:00,500 --> 00:00:02,000\n<font color="white" size=".72c">hello '
  'there</font>\n\n2\n00:00:02,000 --> 00:00:03,250\nall\nof you\n'
)

VIDEOS = {
  'videomme': ('fFjv93ACGo8', 'N1cdUjctpG8'),
  'longvideobench': ('86CxyhFV9MI.mp4', 'aOm6tRSNtRk.mp4'),
  'lvbench': ('Cm73ma6Ibcs.mp4', 'TiQBTesZUJQ.mp4'),
  'mlvu': ('order_12.mp4', 'needle_3.mp4'),
  'mmvu': ('Art/0.mp4', 'Biology/0.mp4'),
  'charades': ('3MSZA.mp4', 'X5YFO.mp4'),
  'longvideo_reason': ('a1b2.mp4', 'c3d4.webm'),
}

# What the rows below resolve to: (id, gold, number of options, question type).
GOLD = {
  'videomme': [('001-1', 'C', 4, 'mcq'), ('001-2', 'A', 4, 'mcq'), ('301-1', 'D', 4, 'mcq')],
  'longvideobench': [('86CxyhFV9MI_0', 'B', 4, 'mcq'), ('aOm6tRSNtRk_0', 'E', 5, 'mcq')],
  'lvbench': [('0', 'D', 4, 'mcq'), ('1', 'A', 4, 'mcq')],
  'mlvu': [('order_12-0', 'B', 4, 'mcq'), ('needle_3-1', 'C', 3, 'mcq')],
  'mmvu': [('validation_0', 'E', 5, 'mcq'), ('validation_1', 'depth-first search', 0, 'oe')],
  'charades': [('3MSZA-0', '24.296875,30.40625', 0, 'tvg'), ('X5YFO-1', '0,3.5', 0, 'tvg')],
  'longvideo_reason': [('0', 'B', 4, 'mcq'), ('379', 'C', 0, 'mcq')],
}
GOLD['videomme_wsub'] = GOLD['videomme']


def snapshot(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Writes the snapshot of benchmark `name` into a new folder below `folder`, as a hub download
  lays it out; returns its path.
  """
  root = pathlib.Path(folder) / f'{name}_snapshot'
  root.mkdir(parents=True)
  _WRITERS[name](root)
  return root


@functools.cache
def video(seconds: int) -> bytes:
  """A 32 x 32 mp4 of that length, 2 frames/s."""
  with tempfile.TemporaryDirectory() as folder:
    path = clips.make_clip(
      pathlib.Path(folder) / 'clip.mp4',
      seconds,
      2,
      (32, 32),
      lambda i: clips.counting_frame(i, (32, 32)),
      8,
    )
    return path.read_bytes()


def parquet(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  """Writes rows as a parquet file, its folder too."""
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def zipped(path: pathlib.Path, files: dict[str, bytes]) -> None:
  """Writes a zip archive of {name: content}."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)


def tarred(files: dict[str, bytes], mode: str) -> bytes:
  """A tar archive of {name: content}; mode 'w' or 'w:gz'."""
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return out.getvalue()


def _videomme(root: pathlib.Path) -> None:
  common = {
    'domain': 'Knowledge',
    'sub_category': 'Humanity & History',
    'url': 'https://www.example.org/watch',
  }
  row = lambda video_id, duration, name, number, kind, question, options, answer: {
    'video_id': video_id,
    'duration': duration,
    **common,
    'videoID': name,
    'question_id': f'{video_id}-{number}',
    'task_type': kind,
    'question': question,
    'options': options,
    'answer': answer,
  }
  parquet(
    root / 'videomme/test-00000-of-00001.parquet',
    [
      row(
        '001',
        'short',
        'fFjv93ACGo8',
        1,
        'Counting Problem',
        'When demonstrating the Germany modern Christmas tree is initially '
        'decorated with apples, candles and berries, which kind of the decoration has the '
        'largest number?',
        ['A. Apples.', 'B. Candles.', 'C. Berries.', 'D. The three kinds are of the same number.'],
        'C',
      ),
      row(
        '001',
        'short',
        'fFjv93ACGo8',
        2,
        'Information Synopsis',
        'What is the genre of this video?',
        [
          'A. It is a news report.',
          'B. It is a documentary.',
          'C. It is a film.',
          'D. It is an advert.',
        ],
        'A',
      ),
      row(
        '301',
        'medium',
        'N1cdUjctpG8',
        1,
        'Object Reasoning',
        'Which is not held up?',
        ['A. A cup.', 'B. A book.', 'C. A shoe.', 'D. A lamp.'],
        'D',
      ),
    ],
  )
  zipped(root / 'videos_chunked_01.zip', {'data/fFjv93ACGo8.mp4': video(4)})
  zipped(root / 'videos_chunked_02.zip', {'data/N1cdUjctpG8.mp4': video(5)})
  zipped(root / 'subtitle.zip', {'subtitle/fFjv93ACGo8.srt': SRT.encode()})


def _longvideobench(root: pathlib.Path) -> None:
  row = lambda name, question, options, choice, group, category: {
    'video_id': name.removesuffix('.mp4'),
    'question': question,
    'question_wo_referring_query': question,
    'topic_category': 'KH',
    'question_category': category,
    'level': 'L1-Perception',
    'id': f'{name.removesuffix(".mp4")}_0',
    'video_path': name,
    'subtitle_path': name.replace('.mp4', '_en.json'),
    'duration_group': group,
    'starting_timestamp_for_subtitles': 0,
    'duration': 190.16,
    'view_count': 259852,
    'correct_choice': choice,
    **{f'option{i}': text for i, text in enumerate(options)},
  }
  first, second = VIDEOS['longvideobench']
  parquet(
    root / 'validation-00000-of-00001.parquet',
    [
      row(
        first,
        'On a black screen, what does the man wear?',
        ['a hat', 'a scarf', 'a coat', 'gloves', 'N/A'],
        1,
        60,
        'S2E',
      ),
      row(second, 'Which comes last?', ['one', 'two', 'three', 'four', 'five'], 4, 3600, 'SSS'),
    ],
  )
  parquet(root / 'test-00000-of-00001.parquet', [{'id': 'of another split'}])
  whole = tarred({f'videos/{first}': video(4), f'videos/{second}': video(5)}, 'w')
  (root / 'videos.tar.part.aa').write_bytes(whole[:3000])
  (root / 'videos.tar.part.ab').write_bytes(whole[3000:])
  (root / 'subtitles.tar').write_bytes(tarred({'subtitles/86CxyhFV9MI_en.json': b'[]'}, 'w'))


def _lvbench(root: pathlib.Path) -> None:
  row = lambda uid, name, question, answer, kinds, kind: {
    'uid': uid,
    'question': question,
    'answer': answer,
    'question_type': kinds,
    'time_reference': '00:15-00:19',
    'type': kind,
    'video_path': name,
    'key': name.removesuffix('.mp4'),
  }
  first, second = VIDEOS['lvbench']
  parquet(
    root / 'data/train-00000-of-00001.parquet',
    [
      row(
        '0',
        first,
        'What year appears in the opening caption of the video?\n(A) 1636\n(B) 1366\n(C) '
        '1363\n(D) 1633',
        'D',
        ['key information retrieval'],
        'cartoon',
      ),
      row(
        '1',
        second,
        'Who is she?\n(A) a cook\n(B) a guard\n(C) a teacher\n(D) nobody',
        'A',
        ['entity recognition', 'event understanding'],
        'live',
      ),
    ],
  )
  (root / 'video_chunks').mkdir()
  for number, (name, seconds) in enumerate(((first, 4), (second, 5)), 1):
    zipped(root / f'video_chunks/videos_chunk_{number:03}.zip', {name: video(seconds)})


def _mlvu(root: pathlib.Path) -> None:
  first, second = VIDEOS['mlvu']
  inline = lambda options: '\n'.join(
    f'({letter}) {option}' for letter, option in zip('ABCD', options)
  )
  row = lambda name, question, candidates, answer, kind: {
    'video_name': name,
    'duration': 480.0,
    'question': f'{question}\n{inline(candidates)}',
    'candidates': candidates,
    'answer': answer,
    'task_type': kind,
  }
  parquet(
    root / 'mlvu/test-00000-of-00001.parquet',
    [
      row(
        first,
        'In which order?',
        ['sleep, eat', 'eat, sleep', 'run, eat', 'eat, run'],
        'eat, sleep',
        'order',
      ),
      row(second, 'How many?', ['1', '2', '3'], 'C', 'count'),
    ],
  )
  zipped(root / 'video_part_1.zip', {first: video(4)})
  zipped(root / 'video_part_2.zip', {second: video(5)})


def _mmvu(root: pathlib.Path) -> None:
  row = lambda number, name, kind, question, choices, answer, subject: {
    'id': f'validation_{number}',
    'video': f'https://hub.example.org/datasets/yale-nlp/MMVU/resolve/main/videos/{name}',
    'youtube_url': '',
    'question_type': kind,
    'metadata': {'subject': subject, 'textbook': '', 'rationale': ''},
    'question': question,
    'choices': choices,
    'answer': answer,
  }
  first, second = VIDEOS['mmvu']
  (root / 'validation.json').write_text(
    json.dumps(
      [
        row(
          0,
          first,
          'multiple-choice',
          'Which style is this?',
          dict(zip('ABCDE', ('baroque', 'gothic', 'pop', 'rococo', 'cubism'))),
          'E',
          'Art',
        ),
        row(
          1,
          second,
          'open-ended',
          'Which search is shown?',
          dict.fromkeys('ABCDE', ''),
          'depth-first search',
          'Biology',
        ),
      ]
    )
  )
  for place, seconds in ((first, 4), (second, 5)):
    (root / 'videos' / place).parent.mkdir(parents=True)
    (root / 'videos' / place).write_bytes(video(seconds))


def _charades(root: pathlib.Path) -> None:
  first, second = VIDEOS['charades']
  parquet(
    root / 'data/test-00000-of-00001.parquet',
    [
      {
        'video': first,
        'caption': 'person turn a light on.',
        'timestamp': [np.float16(24.3), np.float16(30.4)],
      },
      {
        'video': second,
        'caption': 'a person opens the door.',
        'timestamp': [np.float16(0.0), np.float16(3.5)],
      },
    ],
  )
  zipped(root / 'Charades_v1_480_part_1.zip', {f'Charades_v1_480/{first}': video(4)})
  zipped(root / 'Charades_v1_480_part_2.zip', {f'Charades_v1_480/{second}': video(5)})


def _longvideo_reason(root: pathlib.Path) -> None:
  first, second = VIDEOS['longvideo_reason']
  row = lambda number, problem, kind, name, gold: {
    'problem_id': number,
    'problem': problem,
    'data_type': 'video',
    'problem_type': kind,
    'reasoning': '',
    'videos': f'longvila_videos/{name}',
    'answer': f'<answer>{gold}</answer>',
  }
  parquet(
    root / 'data/test-00000-of-00001.parquet',
    [
      row(
        0,
        'What happens next?\nA. He runs.\nB. He sits.\nC. He waits.\nD. He leaves.',
        'goal',
        first,
        'B',
      ),
      row(379, 'Who is the man interacting with the car?\n\n', 'plot', second, 'C'),
    ],
  )
  videos = root / 'longvideo_eval_videos'  # another repository, put into the folder of this one
  videos.mkdir()
  for number, (name, seconds) in enumerate(((first, 4), (second, 5))):
    content = tarred({f'longvideo_eval_subset{number}/{name}': video(seconds)}, 'w:gz')
    (videos / f'longvideo_eval_subset{number}.tar.gz').write_bytes(content)


_WRITERS = {
  'videomme': _videomme,
  'videomme_wsub': _videomme,
  'longvideobench': _longvideobench,
  'lvbench': _lvbench,
  'mlvu': _mlvu,
  'mmvu': _mmvu,
  'charades': _charades,
  'longvideo_reason': _longvideo_reason,
}
