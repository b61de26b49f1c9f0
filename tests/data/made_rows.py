"""Rows with media paths, and the two commands over them."""

import pyarrow
import pyarrow.parquet as parquet

from paravt_jax.data import provenance
from paravt_jax.data.materialize import rewrite_files

SENTINELS = ('longvt_source/', 'museg/charades/', 'museg/et_instruct_164k/', 'selfqa/')
PART = pyarrow.struct(
  [
    ('type', pyarrow.string()),
    ('text', pyarrow.string()),
    ('video_url', pyarrow.struct([('url', pyarrow.string()), ('nframes', pyarrow.int64())])),
    ('image_url', pyarrow.struct([('url', pyarrow.string())])),
  ]
)
LISTS = pyarrow.list_(
  pyarrow.struct([('role', pyarrow.string()), ('content', pyarrow.list_(PART))])
)


def write(path, columns, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  parquet.write_table(
    columns if isinstance(columns, pyarrow.Table) else pyarrow.table(columns), path, **options
  )
  return path


def there(place, **options):
  return rewrite_files('materialize', place / 'root', place / 'in', place / 'out', **options)


def back(place):
  return rewrite_files('sanitize', place / 'root', place / 'out', place / 'back')


def same(first, second):
  """Whether two files agree in rows, schema, form and the user's metadata."""
  one, two = parquet.ParquetFile(first), parquet.ParquetFile(second)
  groups = lambda file: [
    file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)
  ]
  form = lambda file: [
    (
      group.sorting_columns,
      [
        (
          column.path_in_schema,
          column.physical_type,
          column.compression,
          column.num_values,
          'RLE_DICTIONARY' in column.encodings,
          column.is_stats_set,
          column.has_offset_index,
        )
        for column in map(group.column, range(group.num_columns))
      ],
    )
    for group in groups(file)
  ]
  own = lambda file: {
    key: value
    for key, value in (file.metadata.metadata or {}).items()
    if key not in (b'ARROW:schema', provenance.KEY)
  }
  bare = lambda file: file.schema_arrow.with_metadata(
    {
      key: value
      for key, value in (file.schema_arrow.metadata or {}).items()
      if key != provenance.KEY
    }
  )
  assert one.read().equals(two.read())
  assert bare(one).equals(bare(two), check_metadata=True)
  assert (form(one), own(one), one.metadata.format_version) == (
    form(two),
    own(two),
    two.metadata.format_version,
  )
