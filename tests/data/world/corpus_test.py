"""Rows of the corpus: what each kind holds."""

import re

from paravt_jax.chat import prompts
from paravt_jax.data.world import corpus
from tests.data.world.small import WORLD, with_corpus

OPTIONS = with_corpus(sft_rows={'trace': 200, 'subagent': 300, 'lookup1': 100, 'lookup5': 50, 'glance16': 50})
MAKER = corpus.Writer(OPTIONS, corpus.draw_scenes(OPTIONS, 0), 0)
SCENES = {corpus.sentinel(i, OPTIONS.corpus): drawn for i, drawn in enumerate(MAKER.scenes)}


def video(messages):
  return next(part['video_url'] for message in messages for part in message['content'] if part['type'] == 'video_url')


def texts(messages, role):
  parts = [part for message in messages if message['role'] == role for part in message['content']]
  return [part['text'] for part in parts if part['type'] == 'text']


def test_traces_open_as_the_agent_does_and_spread_over_the_budgets():
  found = list(MAKER.sft_rows('trace'))
  assert {video(messages)['nframes'] for messages in found} == {4, 8, 16, 32, 64}
  for messages in found:
    assert texts(messages, 'system') == [prompts.SYSTEM]
    assert texts(messages, 'user')[0].endswith(tuple(prompts.FORMAT_HINTS.values()))
    assert [m['role'] for m in messages][:2] == ['system', 'user'] and messages[-1]['role'] == 'assistant'


def test_subagent_rows_hold_the_window_in_prompt_and_part_and_a_true_answer():
  kinds = set()
  for messages in MAKER.sft_rows('subagent'):
    part, prompt, reply = video(messages), texts(messages, 'user')[0], texts(messages, 'assistant')[0]
    start, end = part['video_start'], part['video_end']
    assert f'{start:.1f} to {end:.1f} seconds' in prompt and 2 <= part['nframes'] <= 16 and part['nframes'] == end - start + 1
    scene = SCENES[part['url']]
    for second, name in re.findall(r'(?:^|, )(\d+) (\w+)(?=,|$)', reply):
      assert start <= int(second) <= end and name == (scene.at(int(second)).colour if scene.at(int(second)) else 'nothing')
    kinds.add(reply if reply == 'not in view' else 'span' if ' to ' in reply else 'looked')
  assert kinds == {'not in view', 'span', 'looked'}


def test_look_ups_ask_only_for_frames_that_are_there_and_are_answered_truly():
  for kind, frames in (('lookup1', 1), ('lookup5', 5), ('glance16', 16)):
    for messages in MAKER.sft_rows(kind):
      part, question, reply = video(messages), texts(messages, 'user')[0], texts(messages, 'assistant')[0]
      asked = [int(s) for s in re.findall(r'\d+', question)]
      there = range(4, 128, 8) if kind == 'glance16' else range(int(part['video_start']), int(part['video_start']) + frames)
      assert part['nframes'] == frames and set(asked) <= set(there) and len(asked) <= 10
      scene = SCENES[part['url']]
      assert reply == ' '.join(f'{s} {scene.at(s).colour if scene.at(s) else "nothing"}.' for s in asked)


def test_single_frames_show_an_event_about_as_often_as_not():
  replies = [texts(messages, 'assistant')[0] for messages in MAKER.sft_rows('lookup1')]
  assert 0.45 < sum('nothing' not in reply for reply in replies) / 100 < 0.85


def test_a_row_depends_on_its_number_alone():
  fewer = corpus.Writer(with_corpus(sft_rows={'trace': 5}), MAKER.scenes, 0)
  assert list(fewer.sft_rows('trace')) == list(MAKER.sft_rows('trace'))[:5]
  assert corpus.frames_of('lookup16') == 16 and corpus.frames_of('trace') == 0
  assert WORLD.corpus.videos_per_archive == 2 and corpus.archive_of(2, WORLD.corpus) == 2
