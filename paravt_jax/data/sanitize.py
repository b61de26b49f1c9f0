"""Absolute `file://` URIs of parquet files, written as sentinel media paths again: the inverse of
`paravt_jax.data.materialize`.

Run: python -m paravt_jax.data.sanitize --root DIR --parquet-dir DIR --output-dir DIR

What `materialize` wrote becomes what it had read, row for row, with the file's own metadata; URIs
under the root that it had found there stay. In files that it did not write every URI of a known
bucket under the root becomes a sentinel. The outputs name no folder of this machine. Exit status: 0
done; 1 nothing found (no parquet file, or no such URI: the outputs are copies then); 2 refused, a
line each (no such root, a damaged file, a full disk).
"""

import sys

from paravt_jax.data import materialize


def main(arguments: list[str] | None = None) -> int:
  """Runs the command and returns its exit status."""
  return materialize.command('sanitize', __doc__ or '', arguments)


if __name__ == '__main__':
  sys.exit(main())
