"""Rows of the corpus: what each kind holds."""

import re

import pytest

from paravt_jax.chat import prompts
from paravt_jax.data.world import corpus
from paravt_jax.errors import ConfigError
from tests.data.world.small import WORLD, with_corpus

OPTIONS = with_corpus(
  sft_rows={'trace': 200, 'subagent': 300, 'lookup1': 100, 'lookup5': 50, 'glance16': 50}
)
MAKER = corpus.Writer(OPTIONS, corpus.draw_scenes(OPTIONS, 0), 0)
SCENES = {corpus.sentinel(i, OPTIONS.corpus): drawn for i, drawn in enumerate(MAKER.scenes)}


def video(messages):
  return next(
    part['video_url']
    for message in messages
    for part in message['content']
    if part['type'] == 'video_url'
  )


def texts(messages, role):
  parts = [part for message in messages if message['role'] == role for part in message['content']]
  return [part['text'] for part in parts if part['type'] == 'text']


def test_traces_open_as_the_agent_does_and_spread_over_the_budgets():
  found = list(MAKER.sft_rows('trace'))
  assert {video(messages)['nframes'] for messages in found} == {4, 8, 16, 32, 64}
  for messages in found:
    assert texts(messages, 'system') == [prompts.SYSTEM]
    assert texts(messages, 'user')[0].endswith(tuple(prompts.FORMAT_HINTS.values()))
    assert [m['role'] for m in messages][:2] == ['system', 'user'] and messages[-1][
      'role'
    ] == 'assistant'


def test_subagent_rows_hold_the_window_in_prompt_and_part_and_a_true_answer():
  kinds = set()
  for messages in MAKER.sft_rows('subagent'):
    part = video(messages)
    prompt = texts(messages, 'user')[0]
    reply = texts(messages, 'assistant')[0]
    start, end = part['video_start'], part['video_end']
    assert (
      f'{start:.1f} to {end:.1f} seconds' in prompt
      and 2 <= part['nframes'] <= 16
      and part['nframes'] == end - start + 1
    )
    scene = SCENES[part['url']]
    for second, name in re.findall(r'(?:^|, )(\d+) ([a-z]+)(?=,|$)', reply):
      assert start <= int(second) <= end and name == (
        scene.at(int(second)).colour if scene.at(int(second)) else 'nothing'
      )
    kinds.add(
      reply if reply == 'not in view' else 'span' if re.match(r'\d+ \d+', reply) else 'looked'
    )
  assert kinds == {'not in view', 'span', 'looked'}


def test_look_ups_ask_only_for_frames_that_are_there_and_are_answered_truly():
  for kind, frames in (('lookup1', 1), ('lookup5', 5), ('glance16', 16)):
    for messages in MAKER.sft_rows(kind):
      part = video(messages)
      question = texts(messages, 'user')[0]
      reply = texts(messages, 'assistant')[0]
      asked = [int(s) for s in re.findall(r'\d+', question)]
      there = (
        range(4, 128, 8)
        if kind == 'glance16'
        else range(int(part['video_start']), int(part['video_start']) + frames)
      )
      assert part['nframes'] == frames and set(asked) <= set(there) and len(asked) <= 10
      scene = SCENES[part['url']]
      assert reply == ' '.join(
        f'{s} {scene.at(s).colour if scene.at(s) else "nothing"}.' for s in asked
      )


def test_single_frames_show_an_event_about_as_often_as_not():
  replies = [texts(messages, 'assistant')[0] for messages in MAKER.sft_rows('lookup1')]
  assert 0.45 < sum('nothing' not in reply for reply in replies) / 100 < 0.85


def test_a_row_depends_on_its_number_alone():
  fewer = corpus.Writer(with_corpus(sft_rows={'trace': 5}), MAKER.scenes, 0)
  assert list(fewer.sft_rows('trace')) == list(MAKER.sft_rows('trace'))[:5]
  assert corpus.frames_of('lookup16') == 16 and corpus.frames_of('trace') == 0
  assert WORLD.corpus.videos_per_archive == 2 and corpus.archive_of(2, WORLD.corpus) == 2


def test_rows_about_one_kind_of_question_hold_no_other():
  maker = corpus.Writer(
    with_corpus(sft_rows={'trace_mcq': 20, 'subagent_tvg': 20}), MAKER.scenes, 0
  )
  assert all(
    'Answer with the letter.' in texts(messages, 'user')[0]
    for messages in maker.sft_rows('trace_mcq')
  )
  assert all(
    'start and end?' in texts(messages, 'user')[0] for messages in maker.sft_rows('subagent_tvg')
  )
  for kind in ('trace_hard', 'choice', 'lookup0'):
    with pytest.raises(ConfigError, match='trace_mcq'):
      corpus.check(with_corpus(sft_rows={kind: 1}))


def test_a_choice_row_shows_the_cue_and_names_the_letter_of_what_is_there():
  maker = corpus.Writer(with_corpus(sft_rows={'choice3': 30}), MAKER.scenes, 0)
  for messages in maker.sft_rows('choice3'):
    part = video(messages)
    question = texts(messages, 'user')[0]
    reply = texts(messages, 'assistant')[0]
    second, seen, letter = re.fullmatch(
      r'<think>\nSeen: (\d+) (\w+)\.\n\w\n</think>\n<answer>(\w)</answer>', reply
    ).groups()
    event = SCENES[part['url']].at(int(second))
    assert seen == (event.colour if event else 'nothing') and f'\n{letter}. {seen}\n' in question
    assert part['nframes'] == 3 and part['video_start'] <= int(second) <= part['video_end']


def test_letters_rows_name_every_option_with_its_letter_and_hold_no_video():
  maker = corpus.Writer(with_corpus(sft_rows={'letters': 20}), MAKER.scenes, 0)
  for messages in maker.sft_rows('letters'):
    question, reply = texts(messages, 'user')[0], texts(messages, 'assistant')[0]
    pairs = re.findall(r' (\w+)\.\n([A-Z])', reply)
    assert (
      sorted(f'{letter}. {name}' for name, letter in pairs) == question.splitlines()[1:-1]
      and len(pairs) == 9
    )
