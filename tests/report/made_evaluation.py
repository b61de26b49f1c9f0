"""A results folder and its page."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
from PIL import Image

from paravt_jax.report import episodes, evaluation
from tests.report import made_run

EVIL = '</summary><script>alert(1)</script>"><img src=x onerror=alert(1)>'


def scored(number, budget=4, seed=0, **changes):
  """A made-up episode whose score is that of its text; further fields of the episode by name."""
  found = made_run.episode(made_run.task(number), budget, 1.0, 0, np.random.default_rng(seed))
  return dataclasses.replace(found, episode=dataclasses.replace(found.episode, **changes))


def line(benchmark, number, k=4, score=0.0, **changes):
  """A line of results.jsonl, as an object. score None: an error."""
  found = changes.pop('scored', None) or scored(number, k)
  name = found.episode.task.id
  row = {
    'key': f'{benchmark}/{name}/k={k}',
    'benchmark': benchmark,
    'id': name,
    'k': k,
    'status': 'answered',
    'reason': '',
    'error': '',
    'score': score,
    'metrics': {'accuracy': score},
    'official': {'accuracy': score},
    'answer': 'purple',
    'gold': found.episode.task.answer,
    'fields': {'duration': 'short'},
    'seconds': {'wall': 1.5},
    'tokens': {'prompt': 300, 'sampled': 40},
    'episode': episodes.to_json(0, found),
  }
  if score is None:
    row.update(
      {
        'status': 'error',
        'reason': 'media_timeout',
        'error': 'a.mp4: not decoded in 30 s',
        'metrics': {},
        'official': None,
        'episode': None,
      }
    )
  return {**row, **changes}


def folder_of(tmp_path, *lines, summary=None, torn=''):
  text = ''.join(json.dumps(one) + '\n' if isinstance(one, dict) else one for one in lines)
  (tmp_path / 'results.jsonl').write_text(text + torn)
  if summary is not None:
    (tmp_path / 'summary.json').write_text(json.dumps(summary))
  return tmp_path


def page_of(folder, load=made_run.frames, **options):
  return evaluation.write(folder, folder / 'report.html', load, **options).read_text()


def cards(page):
  """(outcome, benchmark, K, calls) of the samples, in the order of the page."""
  found = re.findall(
    r'<details class="card sample ?(\w*)" data-benchmark="(\w*)" data-outcome="\w*" '
    r'data-k="(\d+)" data-calls="(\d+)"',
    page,
  )
  return [(outcome, benchmark, int(k), int(calls)) for outcome, benchmark, k, calls in found]


def pictures(page):
  """The pictures that the page holds, as arrays."""
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    for data in re.findall(r'url\(data:image/jpeg;base64,([^)]+)\)', page)
  ]
