"""Sentinels and paths: exactly one file://, nothing outside the root, and the way back."""

import json

import pytest

from paravt_jax.data import media_paths
from paravt_jax.data.fields import RowOptions
from paravt_jax.errors import DataError
from tests.data import one_value, rows_test

ROOT = '/data/media'


@pytest.mark.parametrize(
  'value',
  [
    'longvt_source/videor1_3/a b.mp4',
    f'file://{ROOT}/longvt_source/videor1_3/a b.mp4',
    f'{ROOT}/longvt_source/videor1_3/a b.mp4',
    'longvt_source/x/../videor1_3/a b.mp4',
  ],
)
def test_sentinels_uris_and_paths_inside_the_root_are_one_absolute_path(value):
  assert media_paths.resolve(value, ROOT) == f'{ROOT}/longvt_source/videor1_3/a b.mp4'


@pytest.mark.parametrize(
  'value',
  [
    '../secret.mp4',
    'selfqa/../../secret.mp4',
    '/etc/passwd',
    'file:///etc/passwd',
    f'{ROOT}2/a.mp4',
    f'file://{ROOT}/../secret.mp4',
    '.',
    'selfqa/..',
    '',
  ],
)
def test_release_22_nothing_escapes_the_media_root(value):
  with pytest.raises(DataError, match='media path'):
    media_paths.resolve(value, ROOT)


@pytest.mark.parametrize(
  'value', [f'file://file://{ROOT}/a.mp4', 'https://host/a.mp4', 'a\0b.mp4', None, 3]
)
def test_release_22_a_doubled_file_scheme_and_other_values_are_refused(value):
  with pytest.raises(DataError, match='wanted'):
    media_paths.resolve(value, ROOT)


def test_release_22_materializing_twice_gives_exactly_one_file_scheme():
  once = one_value.materialize('museg/charades/a.mp4', ROOT)
  assert once == f'file://{ROOT}/museg/charades/a.mp4'
  assert one_value.materialize(once, ROOT) == once


@pytest.mark.parametrize(
  'value', ['https://host/a.mp4', 'other/a.mp4', 'file:///elsewhere/a.mp4', '']
)
def test_values_that_are_no_sentinels_are_left_alone(value):
  assert one_value.materialize(value, ROOT) == value
  assert one_value.sanitize(value, ROOT) == value


@pytest.mark.parametrize(
  'prefix', ['longvt_source/tvg_1/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/']
)
def test_sanitize_undoes_materialize(prefix):
  assert one_value.sanitize(one_value.materialize(prefix + 'a.mp4', ROOT), ROOT) == prefix + 'a.mp4'


PARTS = [
  {'type': 'text', 'text': 'selfqa/not-a-path.mp4', 'video_url': None},
  {'type': 'video_url', 'text': None, 'video_url': {'url': 'selfqa/a.mp4', 'nframes': 4}},
]
MESSAGES = [{'role': 'user', 'content': PARTS}, {'role': 'assistant', 'content': 'selfqa/b.mp4'}]


@pytest.mark.parametrize(
  'column',
  [
    MESSAGES,
    json.dumps(MESSAGES),
    json.dumps(MESSAGES, indent=3),
    [{'video': 'selfqa/a.mp4'}],
    '[{"video" :  "selfqa/\\u00fc\\"q\\".mp4"}]',
    '[{"video":"selfqa/ü.mp4"}]',
    '[{"url":\r\n\t"selfqa\\/a.mp4"}]',
    '[{"url": "\\u0073elfqa/\\ud83c\\udfac.mp4"}]',
    '{"image_url":"selfqa/x/../a.jpg"}',
    '[{"video": ["selfqa/a.jpg", null, 3]}]',
    [{'video': ['selfqa/a.jpg', None]}],
    '{"a \\"url": "selfqa/no", "url": "selfqa/yes"}',
    '{"text": "\\"url\\": \\"selfqa/no\\"", "video":"selfqa//yes"}',
    ['{"url": "selfqa/a"}'],
  ],
)
def test_a_columns_media_paths_are_rewritten_and_the_round_trip_is_the_identity(column):
  there = one_value.rewrite(column, lambda value: one_value.materialize(value, ROOT))
  assert str(there).count('file://') == 1
  back = one_value.rewrite(there, lambda value: one_value.sanitize(value, ROOT))
  assert back == column


def test_a_root_of_any_characters_can_be_taken_out_again_however_it_is_escaped():
  root = '/data/mé "dia" \U0001f3ac\\x'
  for text in (
    '[{"url": "selfqa/a.mp4"}]',
    '[{"url": "selfqa/\u00fc.mp4"}]',
    '[{"url": "selfqa\\/a.mp4"}]',
  ):
    there = one_value.rewrite(text, lambda value: one_value.materialize(value, root))
    assert json.loads(there)[0]['url'] == f'file://{root}/' + json.loads(text)[0]['url']
    assert one_value.rewrite(there, lambda value: one_value.sanitize(value, root)) == text
  assert '/mé \\"dia' in one_value.rewrite(
    '[{"url": "selfqa/ü"}]', lambda value: one_value.materialize(value, root)
  )
  assert '/m\\u00e9 \\"dia' in one_value.rewrite(
    '[{"url": "selfqa/u"}]', lambda value: one_value.materialize(value, root)
  )
  foreign = json.dumps([{'url': f'file://{root}/selfqa/a.mp4'}]).replace('/', '\\/')
  assert (
    one_value.rewrite(foreign, lambda value: one_value.sanitize(value, root))
    == '[{"url": "selfqa\\/a.mp4"}]'
  )


def test_a_value_that_is_replaced_altogether_is_written_as_json():
  assert (
    one_value.rewrite('[{"url": "selfqa/a"}]', lambda value: 'né"w') == '[{"url": "n\\u00e9\\"w"}]'
  )


def test_text_that_is_no_json_is_left_as_it_is():
  for text in (
    '',
    'plain',
    '{"url": "selfqa/\\x"}',
    '{"url": "selfqa/a',
    '"url"',
    '{"url": 3}',
    '{"url": {"url": null}}',
  ):
    assert one_value.rewrite(text, lambda value: 'changed') == text


@pytest.mark.parametrize(
  'column',
  [
    'selfqa/a b.mp4',
    '["selfqa/a b.mp4"]',
    ' [ "selfqa/a b.mp4" ]\r\n',
    '"selfqa/a b.mp4"',
    ['selfqa/a b.mp4'],
    [['selfqa/a b.mp4']],
    '[{"video": "selfqa/a b.mp4"}]',
  ],
)
def test_bare_strings_are_paths_in_the_path_columns_only(column):
  assert list(one_value.media(column, 'videos')) == ['selfqa/a b.mp4']
  assert list(one_value.media(column, 'messages')) == (
    ['selfqa/a b.mp4'] if 'video' in str(column) else []
  )
  there = one_value.rewrite(column, lambda value: one_value.materialize(value, ROOT), 'videos')
  assert one_value.rewrite(there, lambda value: one_value.sanitize(value, ROOT), 'videos') == column


def test_the_filesystem_root_can_be_the_media_root():
  assert one_value.materialize('selfqa/a.mp4', '/') == 'file:///selfqa/a.mp4'
  assert one_value.sanitize('file:///selfqa/a.mp4', '/') == 'selfqa/a.mp4'


@pytest.mark.parametrize(
  ('value', 'kind'),
  [
    ('selfqa/a', 'sentinel'),
    ('selfqa/x/../a..b', 'sentinel'),
    ('selfqa/../../a', 'leaves_root'),
    ('selfqa/..', 'leaves_root'),
    ('selfqa/\0', 'leaves_root'),
    (f'file://{ROOT}/selfqa/a', 'in_root'),
    (f'file://{ROOT}/other/a', 'other_file_uri'),
    (f'file://{ROOT}/selfqa/../../a', 'other_file_uri'),
    (f'file://{ROOT}2/selfqa/a', 'other_file_uri'),
    (f'file://file://{ROOT}/selfqa/a', 'doubled_scheme'),
    ('https://host/selfqa/a', 'url'),
    ('data:image/png;base64,aa', 'url'),
    ('/selfqa/a', 'absolute_path'),
    ('museg/other/a', 'relative_path'),
    ('', 'empty'),
  ],
)
def test_every_value_has_one_kind(value, kind):
  assert media_paths.kind(value, [media_paths.prefix(ROOT)]) == kind


@pytest.mark.parametrize(
  ('sentinel', 'bucket'),
  [
    ('longvt_source/videor1_12/a/b.mp4', 'longvt_source/videor1'),
    ('longvt_source/videor1/b.mp4', 'longvt_source/videor1'),
    ('longvt_source/a_b_1/c', 'longvt_source/a_b'),
    ('longvt_source/v2/c', 'longvt_source/v2'),
    ('longvt_source/a.mp4', 'longvt_source'),
    ('museg/charades/a_1.mp4', 'museg/charades'),
    ('museg/et_instruct_164k/a/b.mp4', 'museg/et_instruct_164k'),
    ('selfqa/x/a.mp4', 'selfqa'),
    ('longvt_source/../selfqa/a', 'selfqa'),
    ('other/a', 'other'),
  ],
)
def test_a_bucket_is_the_corpus_without_the_number_of_its_part(sentinel, bucket):
  assert media_paths.bucket(sentinel) == bucket


def test_only_media_keys_are_media():
  assert (
    list(one_value.media(MESSAGES))
    == list(one_value.media(json.dumps(MESSAGES)))
    == ['selfqa/a.mp4']
  )


@pytest.fixture
def spaced(tmp_path):
  """A media root, its name with a space, that holds `selfqa/sp ace.mp4` and, literally,
  `selfqa/100%25.mp4`.
  """
  folder = tmp_path / 'my media' / 'selfqa'
  folder.mkdir(parents=True)
  (folder / 'sp ace.mp4').touch()
  (folder / '100%25.mp4').touch()
  return tmp_path / 'my media'


@pytest.mark.parametrize(
  'uri',
  [
    'file://{quoted}/selfqa/sp%20ace.mp4',
    'file://localhost{root}/selfqa/sp ace.mp4',
    'file://localhost{quoted}/selfqa/sp%20ace.mp4',
    'file:{quoted}/selfqa/sp%20ace.mp4',
  ],
)
def test_uris_by_the_standard_are_read(spaced, uri):
  quoted = str(spaced).replace(' ', '%20')
  assert (
    media_paths.resolve(uri.format(root=spaced, quoted=quoted), spaced)
    == f'{spaced}/selfqa/sp ace.mp4'
  )


def test_the_literal_name_comes_before_the_decoded_one(spaced):
  assert (
    media_paths.resolve(f'file://{spaced}/selfqa/100%25.mp4', spaced)
    == f'{spaced}/selfqa/100%25.mp4'
  )
  (spaced / 'selfqa' / '100%.mp4').touch()
  assert (
    media_paths.resolve(f'file://{spaced}/selfqa/100%25.mp4', spaced)
    == f'{spaced}/selfqa/100%25.mp4'
  )
  assert (
    media_paths.resolve(f'file://{spaced}/selfqa/none%20here.mp4', spaced)
    == f'{spaced}/selfqa/none%20here.mp4'
  )
  assert (
    media_paths.resolve(f'file://localhost{spaced}/selfqa/none.mp4', spaced)
    == f'{spaced}/selfqa/none.mp4'
  )


@pytest.mark.parametrize(
  'uri',
  [
    'file://{root}/selfqa/%2e%2e/%2e%2e/%2e%2e/etc/passwd',
    'file://{root}/selfqa%2f..%2f..%2fx.mp4',
    'file://{root}/selfqa/sp%20ace.mp4%00',
    'file://localhost/etc/passwd',
    'file:/etc/passwd',
    'file:///etc/pass%77d',
    'file://localhost{root}/../x.mp4',
    'file://file%3A//{root}/selfqa/a.mp4',
  ],
)
def test_no_form_of_a_uri_leaves_the_root(spaced, uri):
  with pytest.raises(DataError, match='media path'):
    media_paths.resolve(uri.format(root=str(spaced)), spaced)


def test_the_scheme_of_a_uri_is_read_in_either_case(spaced):
  quoted = str(spaced).replace(' ', '%20')
  for uri in (
    f'FILE://{quoted}/selfqa/sp%20ace.mp4',
    f'File://LOCALHOST{quoted}/selfqa/sp%20ace.mp4',
  ):
    assert media_paths.resolve(uri, spaced) == f'{spaced}/selfqa/sp ace.mp4'


def test_data_uris_are_no_paths(spaced):
  with pytest.raises(DataError, match='media path'):
    media_paths.resolve('data:image/png;base64,iVBORw0KGgo=', spaced)


def test_links_stay_inside_the_root_which_may_be_one_itself(tmp_path):
  (tmp_path / 'real/in').mkdir(parents=True)
  (tmp_path / 'outside').mkdir()
  for name in ('real/in/a.mp4', 'outside/b.mp4'):
    (tmp_path / name).write_bytes(b'')
  root = tmp_path / 'root'
  root.symlink_to('real')
  (root / 'near.mp4').symlink_to('in/a.mp4')
  (root / 'folder').symlink_to('in')
  (root / 'far.mp4').symlink_to(tmp_path / 'outside/b.mp4')
  (root / 'twice.mp4').symlink_to('far.mp4')
  (root / 'out').symlink_to(tmp_path / 'outside')
  (root / 'up').symlink_to('..')
  for value in ('in/a.mp4', 'near.mp4', 'folder/a.mp4', 'in/not there.mp4'):
    media_paths.refuse_link_outside(media_paths.resolve(value, root), root)
  for value in ('far.mp4', 'twice.mp4', 'out/b.mp4', 'up/outside/b.mp4', 'out/not there.mp4'):
    with pytest.raises(
      DataError, match=r'symbolic links lead to .*outside.*data\.follow_links=True'
    ):
      media_paths.refuse_link_outside(media_paths.resolve(value, root), root)


def test_a_video_behind_a_link_out_of_the_root_is_taken_only_where_links_are_followed(tmp_path):
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'elsewhere/a.mp4').touch()
  (tmp_path / 'media').mkdir()
  (tmp_path / 'media/selfqa').symlink_to(tmp_path / 'elsewhere')
  strict = RowOptions(skip_bad_rows=False, require_media=True)
  with pytest.raises(DataError, match=r'row 0 of .*symbolic links lead to .*elsewhere/a\.mp4'):
    rows_test._tasks(tmp_path, rows_test._rl(), options=strict)
  lax = RowOptions(skip_bad_rows=False, require_media=True, follow_links=True)
  assert len(rows_test._tasks(tmp_path, rows_test._rl(), options=lax)) == 1
