"""Sentinels and paths: exactly one file://, nothing outside the root, and the way back."""

import collections
import json

import pytest

from paravt_jax.data import media_paths
from paravt_jax.errors import DataError

ROOT = '/data/media'


@pytest.mark.parametrize('value', ['longvt_source/videor1_3/a b.mp4', f'file://{ROOT}/longvt_source/videor1_3/a b.mp4',
                                   f'{ROOT}/longvt_source/videor1_3/a b.mp4', 'longvt_source/x/../videor1_3/a b.mp4'])
def test_sentinels_uris_and_paths_inside_the_root_are_one_absolute_path(value):
  assert media_paths.resolve(value, ROOT) == f'{ROOT}/longvt_source/videor1_3/a b.mp4'


@pytest.mark.parametrize('value', ['../secret.mp4', 'selfqa/../../secret.mp4', '/etc/passwd', 'file:///etc/passwd',
                                   f'{ROOT}2/a.mp4', f'file://{ROOT}/../secret.mp4', '.', 'selfqa/..', ''])
def test_release_22_nothing_escapes_the_media_root(value):
  with pytest.raises(DataError, match='media path'):
    media_paths.resolve(value, ROOT)


@pytest.mark.parametrize('value', [f'file://file://{ROOT}/a.mp4', 'https://host/a.mp4', 'a\0b.mp4', None, 3])
def test_release_22_a_doubled_file_scheme_and_other_values_are_refused(value):
  with pytest.raises(DataError, match='wanted'):
    media_paths.resolve(value, ROOT)


def test_release_22_materializing_twice_gives_exactly_one_file_scheme():
  once = media_paths.materialize('museg/charades/a.mp4', ROOT)
  assert once == f'file://{ROOT}/museg/charades/a.mp4'
  assert media_paths.materialize(once, ROOT) == once


@pytest.mark.parametrize('value', ['https://host/a.mp4', 'other/a.mp4', 'file:///elsewhere/a.mp4', ''])
def test_values_that_are_no_sentinels_are_left_alone(value):
  assert media_paths.materialize(value, ROOT) == value
  assert media_paths.sanitize(value, ROOT) == value


@pytest.mark.parametrize('prefix', ['longvt_source/tvg_1/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/'])
def test_sanitize_undoes_materialize(prefix):
  assert media_paths.sanitize(media_paths.materialize(prefix + 'a.mp4', ROOT), ROOT) == prefix + 'a.mp4'


PARTS = [{'type': 'text', 'text': 'selfqa/not-a-path.mp4', 'video_url': None},
         {'type': 'video_url', 'text': None, 'video_url': {'url': 'selfqa/a.mp4', 'nframes': 4}}]
MESSAGES = [{'role': 'user', 'content': PARTS}, {'role': 'assistant', 'content': 'selfqa/b.mp4'}]


@pytest.mark.parametrize('column', [MESSAGES, json.dumps(MESSAGES), json.dumps(MESSAGES, indent=3), [{'video': 'selfqa/a.mp4'}],
                                    '[{"video" :  "selfqa/\\u00fc\\"q\\".mp4"}]', '[{"video":"selfqa/ü.mp4"}]'])
def test_a_columns_media_paths_are_rewritten_and_the_round_trip_is_the_identity(column):
  there = media_paths.rewrite(column, lambda value: media_paths.materialize(value, ROOT))
  assert str(there).count('file://') == 1
  back = media_paths.rewrite(there, lambda value: media_paths.sanitize(value, ROOT))
  assert back == column


def test_only_media_keys_are_media():
  assert list(media_paths.media(MESSAGES)) == list(media_paths.media(json.dumps(MESSAGES))) == ['selfqa/a.mp4']


def test_missing_files_are_counted_by_bucket(tmp_path):
  (tmp_path / 'longvt_source/tvg_1').mkdir(parents=True)
  (tmp_path / 'longvt_source/tvg_1/here.mp4').touch()
  values = ['longvt_source/tvg_1/here.mp4', 'longvt_source/tvg_1/a.mp4',
            'longvt_source/tvg_2/b.mp4', 'longvt_source/tvg_2/c.mp4']
  assert media_paths.missing(values, tmp_path) == collections.Counter({'longvt_source/tvg_1': 1, 'longvt_source/tvg_2': 2})
