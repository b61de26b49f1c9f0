"""Arrow columns of every type the corpora were seen in: the same paths as in Python values,
counted, and back again.
"""

import pyarrow
import pytest

from paravt_jax.data.media_columns import Rewriter
from tests.data import one_value

ROOT = '/data/media'
MESSAGE = pyarrow.struct(
  [
    ('role', pyarrow.string()),
    (
      'content',
      pyarrow.list_(
        pyarrow.struct(
          [
            ('text', pyarrow.string()),
            (
              'video_url',
              pyarrow.struct([('nframes', pyarrow.int32()), ('url', pyarrow.string())]),
            ),
          ]
        )
      ),
    ),
  ]
)
MESSAGES = [
  [
    {
      'role': 'user',
      'content': [
        {'text': 'selfqa/no', 'video_url': None},
        {'text': None, 'video_url': {'nframes': 4, 'url': 'selfqa/é.mp4'}},
        None,
      ],
    },
    None,
  ],
  None,
  [],
  [{'role': None, 'content': None}, {'role': 'a', 'content': []}],
]
TEXTS = ['[{"url": "selfqa/a"}]', None, '', 'plain', '[{"url": "selfqa/a"}]']


def there_and_back(array, name):
  """(what materialize made of the column, its counts), after checking that nothing but the values
  changed.
  """
  table = pyarrow.table(
    {'before': list(range(len(array))), name: array, 'after': ['selfqa/b'] * len(array)}
  )
  to = Rewriter('materialize', [ROOT])
  made = to.table(table)
  made.validate(full=True)
  back = Rewriter('sanitize', [ROOT], to.kept)
  assert back.table(made).equals(table)
  assert (made.schema, made['before'], made['after']) == (
    table.schema,
    table['before'],
    table['after'],
  )
  assert back.changed == to.changed
  one = lambda path: (
    path if '..' in path else one_value.materialize(path, ROOT)
  )  # it refuses what leaves the root
  assert made[name].to_pylist() == [
    one_value.rewrite(value, one, name) for value in table[name].to_pylist()
  ]
  return made[name], to


@pytest.mark.parametrize(
  'kind',
  [
    pyarrow.string(),
    pyarrow.large_string(),
    pyarrow.string_view(),
    pyarrow.json_(),
    pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
  ],
)
def test_json_text_of_any_string_type(kind):
  texts = TEXTS if kind != pyarrow.json_() else [text for text in TEXTS if text]
  made, counted = there_and_back(
    pyarrow.array(texts).cast(kind) if kind != pyarrow.json_() else pyarrow.array(texts, kind),
    'messages',
  )
  assert made[0].as_py() == f'[{{"url": "file://{ROOT}/selfqa/a"}}]'
  assert (counted.changed, counted.left, counted.found) == (2, {}, {'selfqa/a'})


@pytest.mark.parametrize('name', ['messages', 'prompt'])
@pytest.mark.parametrize('outer', [pyarrow.list_, pyarrow.large_list])
def test_nested_messages_with_nulls_everywhere(name, outer):
  _, counted = there_and_back(pyarrow.array(MESSAGES, outer(MESSAGE)), name)
  assert (counted.changed, counted.left, counted.found) == (1, {'elsewhere': 1}, {'selfqa/é.mp4'})


def test_slices_and_several_chunks_are_columns_like_any_other():
  array = pyarrow.array(MESSAGES * 3, pyarrow.list_(MESSAGE))
  there_and_back(
    pyarrow.chunked_array([array.slice(1, 5), array.slice(0, 0), array.slice(4)]), 'messages'
  )
  there_and_back(pyarrow.array(TEXTS * 2).slice(3), 'messages')
  there_and_back(
    pyarrow.array(
      [None, {'video': 'selfqa/a'}, {'video': 'selfqa/b'}, None, {'video': None}]
    ).slice(1),
    'videos',
  )


def test_more_rows_than_are_looked_at_in_one_go():
  made, counted = there_and_back(pyarrow.array(['selfqa/a', '["selfqa/b"]', None] * 3000), 'videos')
  assert (counted.changed, made[8998].as_py()) == (6000, f'["file://{ROOT}/selfqa/b"]')


@pytest.mark.parametrize(
  ('values', 'kind'),
  [
    (
      [[{'video': 'selfqa/a', 'fps': 1.0}], None],
      pyarrow.list_(pyarrow.struct([('video', pyarrow.string()), ('fps', pyarrow.float64())])),
    ),
    ([['selfqa/a', None]], pyarrow.list_(pyarrow.string())),
    ([[['selfqa/a'], []], None], pyarrow.list_(pyarrow.list_(pyarrow.string()))),
    (['selfqa/a'], pyarrow.string()),
    ([['selfqa/a', 'x/b'], None], pyarrow.list_(pyarrow.string(), 2)),
    (
      [{'image_url': {'url': 'selfqa/a'}}],
      pyarrow.struct([('image_url', pyarrow.struct([('url', pyarrow.string())]))]),
    ),
    (
      [[{'video': ['selfqa/a', 'x/b']}]],
      pyarrow.list_(pyarrow.struct([('video', pyarrow.list_(pyarrow.string()))])),
    ),
  ],
)
def test_videos_in_any_nesting(values, kind):
  assert there_and_back(pyarrow.array(values, kind), 'videos')[1].changed == 1


def test_values_that_are_left_alone_are_counted_by_kind():
  values = [
    f'file://{ROOT}/selfqa/a',
    'https://host/a',
    'selfqa/../../a',
    '',
    '/a',
    'x/a',
    f'file://file://{ROOT}/selfqa/a',
    'file:///a',
  ]
  left = {
    'in_root': 1,
    'url': 1,
    'leaves_root': 1,
    'empty': 1,
    'absolute_path': 1,
    'relative_path': 1,
    'doubled_scheme': 1,
    'other_file_uri': 1,
  }
  made, counted = there_and_back(pyarrow.array([values]), 'videos')
  assert (counted.changed, counted.left, made[0].as_py()) == (0, left, values)
  structs = pyarrow.array([[{'url': value} for value in values] * 2])
  assert there_and_back(structs, 'messages')[1].left == dict.fromkeys(left, 2)


def test_sentinels_where_no_path_is_looked_for_and_bytes_are_counted():
  text = '[{"text": "selfqa/a", "video": "selfqa/b"}, {"text": "see \\"selfqa/c\\""}]'
  assert there_and_back(pyarrow.array([text]), 'messages')[1].left == {'elsewhere': 2}
  assert there_and_back(pyarrow.array([b'selfqa/a', None]), 'images')[1].left == {'other_type': 1}
  maps = pyarrow.array(
    [[('url', 'selfqa/a')], None], pyarrow.map_(pyarrow.string(), pyarrow.string())
  )
  assert there_and_back(maps, 'images')[1].left == {'other_type': 1}
  assert there_and_back(pyarrow.array([1, None]), 'images')[1].left == {}


def test_uris_that_stood_there_before_materialize_stay_in_sanitize_and_only_they():
  mine = f'file://{ROOT}/selfqa/a'
  rows = [[{'url': 'selfqa/a'}, {'url': mine}], None, [{'url': mine}, {'url': 'selfqa/a'}]]
  _, counted = there_and_back(pyarrow.array(rows), 'messages')
  assert counted.kept == {'messages.url': [[1, 3]]}
  _, counted = there_and_back(
    pyarrow.array([f'{{"url": "{mine}"}}', '{"url": "selfqa/a"}', f'{{"url": "{mine}"}}']),
    'messages',
  )
  assert counted.kept == {'messages': [[0, 1], [2, 3]]}


def test_without_that_knowledge_every_uri_under_any_name_of_the_root_becomes_a_sentinel():
  rows = pyarrow.table({'videos': [f'file://{ROOT}/selfqa/a', 'file:///real/selfqa/b']})
  back = Rewriter('sanitize', [ROOT, '/real'])
  assert back.table(rows)['videos'].to_pylist() == ['selfqa/a', 'selfqa/b']
  assert back.changed == 2


def test_materializing_again_keeps_what_the_first_time_knew():
  table = pyarrow.table({'videos': ['selfqa/a', f'file://{ROOT}/selfqa/b']})
  first = Rewriter('materialize', [ROOT])
  second = Rewriter('materialize', [ROOT], first.kept if (made := first.table(table)) else None)
  assert second.table(made).equals(made)
  assert second.kept == {'videos': [[1, 2]]}
