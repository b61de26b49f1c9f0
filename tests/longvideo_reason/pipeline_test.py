"""The pipeline: real videos, a real socket, and what is done again after which change."""

import asyncio
import collections
import dataclasses
import hashlib
import json
import os
import shutil

import pyarrow.parquet as pq
import pytest

from paravt_jax.data import conversations, provenance
from paravt_jax.data import rows as data_rows
from paravt_jax.data.fields import RowOptions
from paravt_jax.errors import RolloutError
from paravt_jax.longvideo_reason import ask, caption, cutting, pipeline, rows, split
from paravt_jax.longvideo_reason.items import Failed
from paravt_jax.rollout import chat_server as server
from paravt_jax.testing import clips
from paravt_jax.video.decode import DecodePool
from tests.longvideo_reason.chat_server import (
  CAPTION,
  QUESTION,
  REWRITTEN,
  ChatServer,
  Raw,
  completion,
  good,
  kind,
)

OPTIONS = pipeline.Options(
  steps=pipeline.STEPS,
  media_root='',
  seed=0,
  split_workers=2,
  cut=cutting.CutOptions(2.0, 0.25, 0.5, 30.0, 18, 60.0),
  caption=caption.CaptionOptions('Describe.', 'frames', 2, 1024, 4096, 90, 64, 0.0, 10),
  ask=ask.AskOptions('{captions}\nAsk.', 99, 0.6, 0.5),
  rewrite=ask.RewriteOptions(
    'Tell these reasons again {question} {options} {answer} {reasons}', 99, 0.6, 10
  ),
  trace=rows.TraceOptions(True, 5, 3),
)
NOTHING = collections.Counter()
ROW_OPTIONS = RowOptions(skip_bad_rows=False, require_media=True)


@pytest.fixture(scope='module')
def pool():
  with DecodePool(2, 60.0, 'pyav') as pool:
    yield pool


def clip(path, seconds=4, first=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  return clips.make_clip(
    path, seconds, 10, (64, 64), lambda i: clips.counting_frame(first + i, (64, 64)), 10
  )


@pytest.fixture
def videos(tmp_path):
  clip(tmp_path / 'videos' / 'a.mp4')
  clip(tmp_path / 'videos' / 'ü b' / 'c.mp4')
  return tmp_path / 'videos'


def run(
  folder,
  videos,
  pool,
  script=good,
  *,
  model='m',
  concurrency=2,
  retries=0,
  max_failures=100,
  **changes,
):
  """(tallies, kinds of the requests that came); changes: of OPTIONS, 'caption.prompt' by
  'caption__prompt'.
  """
  options = dataclasses.replace(OPTIONS, media_root=str(videos))
  for name, value in changes.items():
    part, _, field = name.partition('__')
    options = dataclasses.replace(
      options,
      **{part: dataclasses.replace(getattr(options, part), **{field: value}) if field else value},
    )
  line = pipeline.Pipeline(folder, split.find(videos)[0], options, lambda *_: None)

  async def go(url):
    made = server.ServerOptions(
      url=url,
      model=model,
      api_key='',
      timeout_s=60.0,
      retries=retries,
      backoff_s=0.001,
      max_backoff_s=0.001,
      concurrency=concurrency,
      max_reply_bytes=100_000,
      max_failures=max_failures,
    )
    async with (
      server.Server(made, '--config.vision') as vision,
      server.Server(made, '--config.reasoner') as reasoner,
    ):
      await line.run(pipeline.Servers(vision, reasoner), pool)

  with ChatServer(script) as served:
    try:
      asyncio.run(go(served.url))
    finally:
      run.bodies = served.bodies
  assert served.most_at_once <= 2 * concurrency
  return line.tallies, collections.Counter(kind(body) for body in served.bodies)


def outputs(folder):
  """{file name: bytes} of what a run leaves for others."""
  return {
    path.name: path.read_bytes()
    for path in folder.iterdir()
    if path.suffix in ('.json', '.parquet')
  }


def recorded(folder):
  """{file name: record} of provenance.json."""
  return json.loads((folder / 'provenance.json').read_text())


def used(record):
  """{step: [(model, digest of the prompt)]} of a record."""
  return {
    step: [(each['model'], each['prompt']) for each in found]
    for step, found in record['options'].items()
    if step in ('caption', 'ask', 'rewrite')
  }


def prompt_digest(text):
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def rejected(folder, step):
  path = folder / 'rejected' / f'{step}.jsonl'
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def broken(bad_kind, reply, when=lambda body, number: True):
  """A script that answers requests of one kind with `reply`, and is good otherwise."""
  return lambda body, number: (
    reply if kind(body) == bad_kind and when(body, number) else good(body, number)
  )


def test_six_steps_make_rows_that_sft_and_rl_read(tmp_path, videos, pool):
  (videos / 'empty.mp4').write_bytes(b'')
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert asked == {'caption': 4, 'ask': 2, 'rewrite': 2}
  assert [(step, each.items, each.done, each.kept) for step, each in tallies.items()] == [
    ('split', 3, 2, 0),
    ('caption', 4, 4, 0),
    ('merge', 2, 2, 0),
    ('ask', 2, 2, 0),
    ('parse', 2, 2, 0),
    ('rewrite', 2, 2, 0),
  ]
  assert (
    tallies['split'].rejected == {'not_video': 1}
    and rejected(tmp_path / 'out', 'split')[0]['item'] == 'empty.mp4'
  )
  files = rows.file_names(tmp_path / 'out')
  tasks = data_rows.rl_tasks([files['rl']], videos, ROW_OPTIONS, NOTHING)
  assert [(task.id, task.answer, task.options) for task in tasks] == [
    (f'longvideoreason/{name}', 'A', ('It counts', 'It rains', 'It is night', 'It is broken'))
    for name in ('a.mp4', 'ü b/c.mp4')
  ]
  talks = conversations.sft_conversations([files['sft']], videos, ROW_OPTIONS, NOTHING)
  assert [message.role for message in talks[1].messages] == [
    'system',
    'user',
    'assistant',
    'user',
    'user',
    'assistant',
  ]
  assert talks[1].messages[3].parts == (f'<tool_response>\n{CAPTION}\n</tool_response>',)
  assert talks[1].messages[-1].parts == (f'<think>\n{REWRITTEN}\n</think>\n<answer>A</answer>',)
  captions = json.loads((tmp_path / 'out' / 'captions.json').read_text())
  assert captions[1] == {
    'id': 'ü b/c.mp4',
    'captions': [
      {'start_time': 0.0, 'end_time': 2.0, 'caption': CAPTION},
      {'start_time': 2.0, 'end_time': 4.0, 'caption': CAPTION},
    ],
  }
  assert [
    each['REASONS'] for each in json.loads((tmp_path / 'out' / 'longvideo_reason.json').read_text())
  ] == [REWRITTEN] * 2
  records = recorded(tmp_path / 'out')
  assert (
    records.keys() == outputs(tmp_path / 'out').keys() - {'provenance.json'} and len(records) == 5
  )
  assert {
    tuple(os.path.basename(each['path']) for each in record['inputs'])
    for record in records.values()
  } == {('a.mp4', 'c.mp4')}


def test_a_second_run_asks_nothing_and_writes_the_same_bytes(tmp_path, videos, pool):
  run(tmp_path / 'out', videos, pool)
  before = outputs(tmp_path / 'out')
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert asked == {} and outputs(tmp_path / 'out') == before and len(before) == 6
  assert [tallies[step].kept for step in ('split', 'caption', 'ask', 'rewrite')] == [2, 4, 2, 2]


def test_the_order_in_which_replies_come_changes_nothing(tmp_path, videos, pool):
  run(tmp_path / 'one', videos, pool, concurrency=1, split_workers=1)
  run(tmp_path / 'many', videos, pool, concurrency=8)
  assert outputs(tmp_path / 'one') == outputs(tmp_path / 'many')


@pytest.mark.parametrize(
  'changes, asked, step, name',
  [
    ({'caption__prompt': 'Describe it.'}, {'caption': 4}, 'caption', 'prompt'),
    ({'ask__prompt': '{captions}\nAsk hard.'}, {'ask': 2}, 'ask', 'prompt'),
    ({'rewrite__min_chars': 11}, {'rewrite': 2}, 'rewrite', 'min_chars'),
    ({'model': 'n'}, {'caption': 4, 'ask': 2, 'rewrite': 2}, 'ask', 'model'),
    ({'cut__clip_seconds': 1.0}, {'caption': 8, 'ask': 2}, 'split', 'options'),
    ({'cut__deadline_s': 61.0}, {}, '', ''),
  ],
)
def test_what_was_made_from_something_else_is_made_again_and_said(
  tmp_path, videos, pool, changes, asked, step, name
):
  run(tmp_path / 'out', videos, pool)
  tallies, found = run(tmp_path / 'out', videos, pool, **changes)
  assert found == asked and (not step or name in tallies[step].again)
  assert len(list((tmp_path / 'out' / 'clips').iterdir())) == 2  # none of other options are left


def test_a_changed_video_is_noticed_and_a_touched_one_is_not_changed(tmp_path, videos, pool):
  run(tmp_path / 'out', videos, pool)
  os.utime(videos / 'a.mp4', (1, 1))
  assert run(tmp_path / 'out', videos, pool)[1] == {}
  clip(videos / 'a.mp4', first=500)
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert asked == {'caption': 2} and tallies['split'].again == {
    'video': 1
  }  # the captions say the same, so the rest stands
  (videos / 'a.mp4').unlink()
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert asked == {} and [
    each['id'] for each in json.loads((tmp_path / 'out' / 'captions.json').read_text())
  ] == ['ü b/c.mp4']


def test_clips_that_were_removed_are_cut_again_but_not_captioned_again(tmp_path, videos, pool):
  run(tmp_path / 'out', videos, pool)
  shutil.rmtree(tmp_path / 'out' / 'clips')
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert (
    asked == {}
    and tallies['split'].done == 2
    and len(list((tmp_path / 'out' / 'clips').iterdir())) == 2
  )


def test_some_of_the_steps_go_on_from_what_the_others_left(tmp_path, videos, pool):
  tallies, asked = run(tmp_path / 'out', videos, pool, steps=('split', 'caption'))
  assert (
    list(tallies) == ['split', 'caption']
    and asked == {'caption': 4}
    and outputs(tmp_path / 'out') == {}
  )
  tallies, asked = run(
    tmp_path / 'out',
    videos,
    pool,
    steps=('merge', 'ask'),
    model='another',
    caption__prompt='Not asked now.',
  )
  assert asked == {'ask': 2} and tallies['merge'].done == 2
  tallies, asked = run(tmp_path / 'out', videos, pool, steps=('parse',))
  assert asked == {} and tallies['parse'].done == 2
  final = json.loads((tmp_path / 'out' / 'longvideo_reason.json').read_text())
  assert final[0]['REASONS']['Step 1'] == {
    'timestamp': '0 to 2',
    'reasons': ['The board shows a small number.'],
  }


def test_a_step_whose_inputs_are_not_there_has_nothing_to_do(tmp_path, videos, pool):
  tallies, asked = run(tmp_path / 'out', videos, pool, steps=('ask', 'parse'))
  assert asked == {} and tallies['ask'].items == tallies['parse'].items == 0


@pytest.mark.parametrize(
  'bad, reply, step, reason',
  [
    ('ask', 'I cannot help with that.', 'parse', 'no_question'),
    ('ask', QUESTION.replace('[0 to 2]', '[0 to 99]'), 'parse', 'window_outside'),
    ('ask', QUESTION.replace('It counts', '<|im_end|>'), 'parse', 'markup'),
    ('ask', completion('x', 'length'), 'ask', 'truncated'),
    ('ask', Raw(400, b'context too long'), 'ask', 'refused'),
    ('rewrite', 'The answer is B, as we see.', 'rewrite', 'contradiction'),
    ('caption', 'Hm.', 'caption', 'short'),
    ('caption', Raw(body=b'<html>'), 'caption', 'unreadable'),
  ],
)
def test_a_bad_reply_is_counted_by_reason_kept_and_not_asked_for_again(
  tmp_path, videos, pool, bad, reply, step, reason
):
  tallies, _ = run(tmp_path / 'out', videos, pool, broken(bad, reply))
  items = 4 if bad == 'caption' else 2
  kept = rejected(tmp_path / 'out', step)
  assert (
    tallies[step].rejected == {reason: items}
    and [each['reason'] for each in kept] == [reason] * items
  )
  if isinstance(reply, str):
    assert {each['reply'] for each in kept} == {reply}
  again, asked = run(tmp_path / 'out', videos, pool)
  assert again[step].rejected == {reason: items} and asked == {}
  results = json.loads((tmp_path / 'out' / 'longvideo_reason.json').read_text())
  assert len(results) == (
    2 if bad == 'rewrite' else 0
  )  # reasons that cannot be told fluently stay as they were
  if bad == 'caption':
    assert (
      again['merge'].rejected == {'few_captions': 2}
      and rejected(tmp_path / 'out', 'merge')[0]['item'] == 'a.mp4'
    )


def test_a_video_may_lack_some_captions_and_its_row_crops_the_others(tmp_path, videos, pool):
  script = lambda body, number: 'Hm.' if number in (0, 2) else good(body, number)
  tallies, _ = run(tmp_path / 'out', videos, pool, script, concurrency=1)
  assert tallies['caption'].rejected == {'short': 2} and tallies['merge'].done == 2
  talk = conversations.sft_conversations(
    [rows.file_names(tmp_path / 'out')['sft']], videos, ROW_OPTIONS, NOTHING
  )[0]
  assert (
    '"start_time": 2, "end_time": 4}' in talk.messages[2].parts[0]
    and talk.messages[2].parts[0].count('<tool_call>') == 1
  )


def test_what_failed_for_now_waits_and_only_that_is_asked_the_next_time(tmp_path, videos, pool):
  tallies, _ = run(
    tmp_path / 'out',
    videos,
    pool,
    lambda body, number: Raw(503) if number == 3 else good(body, number),
    concurrency=1,
  )
  assert tallies['caption'].failed == {'status': 1} and (
    tallies['merge'].waiting,
    tallies['merge'].done,
  ) == (1, 1)
  tallies, asked = run(tmp_path / 'out', videos, pool)
  assert asked == {'caption': 1, 'ask': 1, 'rewrite': 1} and tallies['parse'].done == 2


def test_results_of_other_settings_do_not_stand_in_for_what_failed(
  tmp_path, videos, pool, monkeypatch
):
  run(tmp_path / 'out', videos, pool)
  tallies, _ = run(
    tmp_path / 'out', videos, pool, broken('caption', Raw(503)), caption__prompt='Describe it.'
  )
  assert (
    tallies['caption'].failed == {'status': 4}
    and tallies['merge'].waiting == 2
    and tallies['ask'].items == 0
  )

  async def crash(*_):
    return None, Failed('crashed', 'code 1')

  monkeypatch.setattr(pipeline.split, 'split', crash)
  tallies, asked = run(tmp_path / 'out', videos, pool, cut__clip_seconds=1.0)
  assert tallies['split'].failed == {'crashed': 2} and tallies['caption'].items == 0 and asked == {}


def test_a_server_that_goes_away_ends_the_run_and_what_was_done_stays(tmp_path, videos, pool):
  script = lambda body, number: good(body, number) if number < 2 else Raw(close=True)
  with pytest.raises(RolloutError, match='1 requests in a row failed'):
    run(tmp_path / 'out', videos, pool, script, concurrency=1, max_failures=1)
  assert run(tmp_path / 'out', videos, pool)[1] == {'caption': 2, 'ask': 2, 'rewrite': 2}


def test_rows_name_videos_below_the_media_root_that_was_given(tmp_path, videos, pool):
  run(tmp_path / 'out', videos, pool, media_root=str(tmp_path))
  tasks = data_rows.rl_tasks(
    [rows.file_names(tmp_path / 'out')['rl']], tmp_path, ROW_OPTIONS, NOTHING
  )
  assert [task.video for task in tasks] == [str(videos / 'a.mp4'), str(videos / 'ü b/c.mp4')]


def test_every_file_is_recorded_with_the_models_and_prompts_of_what_went_into_it(
  tmp_path, videos, pool
):
  out = tmp_path / 'out'
  digests = {
    name: prompt_digest(getattr(OPTIONS, name).prompt) for name in ('caption', 'ask', 'rewrite')
  }
  run(out, videos, pool, model='seer', steps=('split', 'caption', 'merge'))
  records = recorded(out)
  assert list(records) == ['captions.json'] and used(records['captions.json']) == {
    'caption': [('seer', digests['caption'])]
  }
  run(
    out,
    videos,
    pool,
    model='thinker',
    steps=('ask', 'parse', 'rewrite'),
    caption__prompt='Not asked now.',
  )
  asked = {'caption': [('seer', digests['caption'])], 'ask': [('thinker', digests['ask'])]}
  told = {**asked, 'rewrite': [('thinker', digests['rewrite'])]}
  files = {kind: path.name for kind, path in rows.file_names(out).items()}
  found = {name: used(record) for name, record in recorded(out).items()}
  assert found == {
    'captions.json': {'caption': asked['caption']},
    'questions.json': asked,
    'longvideo_reason.json': told,
    files['rl']: asked,
    files['sft']: told,
  }
  for name, record in recorded(out).items():
    assert record.pop('blake2b') == provenance.digest(out / name)
    if name.endswith('.parquet'):
      assert json.loads(pq.read_schema(out / name).metadata[provenance.KEY]) == record


def test_captions_made_again_are_recorded_anew_and_what_came_of_the_old_ones_keeps_its_record(
  tmp_path, videos, pool
):
  run(tmp_path / 'out', videos, pool, model='old')
  before = recorded(tmp_path / 'out')
  run(
    tmp_path / 'out',
    videos,
    pool,
    model='new',
    steps=('split', 'caption', 'merge'),
    caption__prompt='Describe it.',
  )
  after = recorded(tmp_path / 'out')
  assert used(after.pop('captions.json')) == {'caption': [('new', prompt_digest('Describe it.'))]}
  assert (
    used(before.pop('captions.json')) == {'caption': [('old', prompt_digest('Describe.'))]}
    and after == before
  )


def test_captions_of_two_models_are_recorded_as_both_and_unused_ones_not_at_all(
  tmp_path, videos, pool
):
  run(tmp_path / 'out', videos, pool, model='old', steps=('split', 'caption', 'merge'))
  script = lambda body, number: (good(body, number), 'Hm.', Raw(503), Raw(503))[number]
  run(tmp_path / 'out', videos, pool, script, concurrency=1, model='new', steps=('caption',))
  run(tmp_path / 'out', videos, pool, steps=('merge',))
  record = recorded(tmp_path / 'out')['captions.json']
  assert used(record) == {
    'caption': [('new', prompt_digest('Describe.')), ('old', prompt_digest('Describe.'))]
  }
  run(tmp_path / 'out', videos, pool, steps=('merge',), ask__max_missing=0.0)
  record = recorded(tmp_path / 'out')[
    'captions.json'
  ]  # the video with the short caption is not in it now
  assert (
    used(record) == {'caption': [('old', prompt_digest('Describe.'))]}
    and len(record['inputs']) == 1
  )


@pytest.mark.parametrize(
  'content', [b'', b'\xff{', b'[]', b'{"tool": "x", "inputs": []}', b'{"questions.json": 3}']
)
def test_records_that_cannot_be_read_or_are_not_true_are_replaced(tmp_path, videos, pool, content):
  run(tmp_path / 'out', videos, pool)
  (tmp_path / 'out' / 'questions.json').write_text('[]')
  run(tmp_path / 'out', videos, pool, steps=('merge',))
  assert len(recorded(tmp_path / 'out')) == 4 and 'questions.json' not in recorded(tmp_path / 'out')
  (tmp_path / 'out' / 'provenance.json').write_bytes(content)
  run(tmp_path / 'out', videos, pool, steps=('merge',))
  assert list(recorded(tmp_path / 'out')) == ['captions.json']
