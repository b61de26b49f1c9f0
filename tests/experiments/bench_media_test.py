"""What the data suite generates: the stated mix, in the published schema, made once."""

import collections
import json
import zipfile

import pyarrow.parquet
import pytest
from PIL import Image

from experiments.bench import media as bench_media
from experiments.bench.recipe import ClipBench, Mix
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import conversations
from paravt_jax.data.conversations import ImageRef, VideoRef
from paravt_jax.data.fields import RowOptions
from paravt_jax.testing import tiny
from paravt_jax.video.readers import PyavReader

MIX = Mix(frames=(1, 64), text=(50, 1500), image_share=0.3)


@pytest.mark.parametrize('tokens', [1, 2, 3, 50, 1499])
def test_words_are_as_many_tokens_as_asked_for(tmp_path, tokens):
  tiny.build_tokenizer(tmp_path)
  assert (
    len(ChatTokenizer.load(tmp_path).encode(bench_media.words(tokens), trusted=False)) == tokens
  )


def test_rows_hold_the_stated_mix_and_are_read_by_the_library(tmp_path):
  rows = bench_media.mixed_rows(
    400, MIX, lambda n: f'{bench_media.BUCKET}/{n}.mp4', [f'{bench_media.BUCKET}/i.jpg'], 180.0, 0
  )
  file = bench_media.parquet(tmp_path / 'paravt_sft_bench.parquet', rows)
  found = conversations.sft_conversations(
    [file], tmp_path, RowOptions(skip_bad_rows=False, require_media=False), collections.Counter()
  )
  media = [message.parts[0] for row in found for message in row.messages if message.role == 'user']
  images, videos = (
    [part for part in media if isinstance(part, kind)] for kind in (ImageRef, VideoRef)
  )
  whole, windows = (
    [v for v in videos if v.start is None],
    [v for v in videos if v.start is not None],
  )
  assert (
    len(found) == 400
    and 80 < len(images) < 160
    and 80 < len(whole) < 200
    and 80 < len(windows) < 200
  )
  assert {v.num_frames for v in whole} <= set(range(1, 65)) and all(
    0 <= v.start < v.end <= 180 for v in windows
  )
  assert len({video.path for video in videos}) == len(videos)
  assert rows == bench_media.mixed_rows(
    400, MIX, lambda n: f'{bench_media.BUCKET}/{n}.mp4', [f'{bench_media.BUCKET}/i.jpg'], 180.0, 0
  )


def test_rows_are_json_text_in_row_groups(tmp_path):
  file = bench_media.parquet(
    tmp_path / 'a.parquet', [[{'role': 'user', 'content': 'x'}]] * 5, row_group=2
  )
  assert pyarrow.parquet.ParquetFile(file).num_row_groups == 3
  assert json.loads(pyarrow.parquet.read_table(file)['messages'][4].as_py()) == [
    {'role': 'user', 'content': 'x'}
  ]


def test_archives_hold_about_the_bytes_asked_for_in_their_bucket_half_deflated_and_are_made_once(
  tmp_path,
):
  files = bench_media.archives(tmp_path, 'jpgs', 1_000_000, 2)
  made = [file.stat().st_mtime_ns for file in files]
  members = [member for file in files for member in zipfile.ZipFile(file).infolist()]
  assert 1_000_000 <= sum(member.file_size for member in members) < 1_100_000
  assert {member.compress_type for member in members} == {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
  assert len({member.filename for member in members}) == len(members) and all(
    m.filename.startswith('longvt_source/') for m in members
  )
  assert [
    file.stat().st_mtime_ns for file in bench_media.archives(tmp_path, 'jpgs', 1_000_000, 2)
  ] == made
  assert bench_media.archives(tmp_path, 'jpgs', 900_000, 2) != files


def test_pictures_are_from_few_to_many_tokens(tmp_path):
  found = bench_media.make_images(tmp_path, 5, (64, 1024))
  tokens = [width * height // 1024 for width, height in (Image.open(file).size for file in found)]
  assert abs(tokens[0] - 64) <= 8 and abs(tokens[-1] - 1024) <= 32 and tokens == sorted(tokens)


def test_the_clip_is_an_h264_video_as_the_knobs_have_it(tmp_path):
  knobs = ClipBench(seconds=2, height=64, width=96, fps=10, gop=250, grain=8)
  info = PyavReader(str(bench_media.clip(tmp_path, knobs))).info
  assert (info.width, info.height, info.num_frames, info.fps, info.duration) == (
    96,
    64,
    20,
    10.0,
    2.0,
  )
