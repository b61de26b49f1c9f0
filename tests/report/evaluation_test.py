"""The page of an evaluation: scores with intervals, every wrong answer with frames and crops,
filters, and a bounded size.
"""

import dataclasses
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from paravt_jax.errors import DataError, MediaError, ParavtError
from paravt_jax.report import evaluation
from paravt_jax.types import (
  Overview,
  ResultStatus,
  StopReason,
  ToolCall,
  ToolResult,
  Window,
)
from tests import patience
from tests.report import made_run
from tests.report.build_test import _Balance
from tests.report.made_evaluation import EVIL, cards, folder_of, line, page_of, pictures, scored

# Samples


def test_it_shows_what_is_wrong_and_errors_and_right_answers_on_demand(tmp_path):
  folder = folder_of(
    tmp_path,
    line('mlvu', 1, score=1.0),
    line('mlvu', 2),
    line('charades', 3, score=0.4),
    line('mlvu', 4, score=None),
  )
  page = page_of(folder)
  assert [card[:2] for card in cards(page)] == [
    ('wrong', 'mlvu'),
    ('error', 'mlvu'),
    ('partial', 'charades'),
  ]
  assert (
    'Not on this page: 1 right. To see right answers too, give the command '
    '<code>--config.eval.report_right=True</code>.'
  ) in page
  whole = page_of(folder, right=True)
  assert [card[:2] for card in cards(whole)] == [
    ('right', 'mlvu'),
    ('wrong', 'mlvu'),
    ('error', 'mlvu'),
    ('partial', 'charades'),
  ]
  assert 'Not on this page' not in whole


def test_a_sample_has_question_gold_answer_turns_frames_and_crops_on_the_timeline(tmp_path):
  seconds, window = (8.0, 24.0, 40.0, 56.0), (10.0, 11.0, 12.0)
  call = ToolCall('crop_video', {'start_time': 10, 'end_time': 12})
  result = ToolResult(call, ResultStatus.EXECUTED, '11 red', Window(10.0, 12.0), window)
  found = scored(1, seconds=seconds)
  turn = dataclasses.replace(
    found.episode.turns[0],
    results=(result,),
    text='<think>\nI look closer.</think>\n<tool_call>{}</tool_call>',
  )
  found = dataclasses.replace(
    found, episode=dataclasses.replace(found.episode, turns=(turn, found.episode.turns[-1]))
  )
  page = page_of(folder_of(tmp_path, line('mlvu', 1, scored=found)))
  assert cards(page) == [('wrong', 'mlvu', 4, 1)]
  assert found.episode.task.question in html.unescape(page) and 'given: <b>purple</b>' in page
  assert (
    page.count('class="tick"') == 4
    and 'title="crop 1: 10 s – 12 s, executed"' in page
    and page.count('class="shot"') == 3
  )
  assert re.findall(r'role="img" aria-label="frame at ([^"]+)"', page) == [
    f'{t:g} s' for t in (*seconds, *window)
  ]
  assert '11 red' in page and '&lt;tool_call&gt;' in page and len(pictures(page)) == 7
  for word in (
    'accuracy <b>0</b>',
    '<span>time:</span><span>wall <b>1.50 s</b></span>',
    '<span>tokens:</span><span>prompt <b>300</b></span>',
    'duration <b>short</b>',
  ):
    assert word in page


def test_what_the_official_rule_says_is_shown_where_it_differs_and_unknown_numbers_are_left_out(
  tmp_path,
):
  page = page_of(
    folder_of(
      tmp_path, line('mlvu', 1, official={'accuracy': 1.0, 'f1': None}, tokens={'prompt': None})
    )
  )
  assert (
    'official accuracy <b>1</b>' in page
    and 'official f1' not in page
    and '<span>tokens:</span>' not in page
  )
  assert 'official accuracy' not in page_of(folder_of(tmp_path, line('mlvu', 1)))


def test_the_last_line_of_a_key_counts_and_a_torn_one_does_not(tmp_path):
  failed, again = line('mlvu', 2, score=None), line('mlvu', 2, score=1.0)
  page = page_of(
    folder_of(tmp_path, failed, line('mlvu', 1), again, torn='{"key": "mlvu/'), right=True
  )
  assert [card[0] for card in cards(page)] == ['wrong', 'right'] and 'media_timeout' not in page


def test_an_error_is_shown_with_its_reason_and_no_invented_answer(tmp_path):
  page = page_of(folder_of(tmp_path, line('mlvu', 3, score=None)))
  assert (
    '<span class="said">media timeout</span>' in page
    and '<p class="fault">a.mp4: not decoded in 30 s</p>' in page
  )
  assert 'instead of' not in page and 'given:' not in page


def test_an_error_is_shown_with_its_question_and_gold_where_the_line_says_them(tmp_path):
  failed = line('mlvu', 3, score=None, question='What appears at 41?', gold='red')
  page = page_of(folder_of(tmp_path, failed))
  assert '<span class="line">What appears at 41?</span>' in page
  assert '<p class="question">What appears at 41?</p>' in page
  assert '<p class="gold">Right answer: <b>red</b></p>' in page
  old = line('mlvu', 3, score=None)
  old.pop('question', None)
  assert f'<span class="line">{old["id"]}</span>' in page_of(folder_of(tmp_path, old))


def test_errors_can_be_chosen_by_reason_where_there_are_several(tmp_path):
  failed = [line('mlvu', n, score=None) for n in (1, 2)]
  assert 'data-of="reason"' not in page_of(folder_of(tmp_path, line('mlvu', 3), *failed))
  other = line('mlvu', 4, score=None, reason='call_timeout')
  page = page_of(folder_of(tmp_path, line('mlvu', 3), *failed, other))
  (group,) = re.findall(r'data-of="reason">(.*?)</fieldset>', page)
  assert re.findall(r'data-value="([^"]*)"', group) == ['call timeout', 'media timeout']
  assert re.findall(r'data-reason="([^"]*)"', page) == ['', *['media timeout'] * 2, 'call timeout']


def test_an_answer_without_a_gold_one_has_no_colour_of_right_or_wrong(tmp_path):
  page = evaluation.write_one(scored(1).episode, tmp_path / 'a.html', None).read_text()
  body = page.partition('<body>')[2]
  assert not re.search(r'class="[^"]*\b(right|wrong|partial)\b', body)
  rules = re.findall(r'^(.*\.answer) \{ (.*) \}$', page, re.MULTILINE)
  assert [rule for rule, style in rules if 'var(--answer' in style] == ['.right .answer']


@pytest.mark.parametrize(
  ('broken', 'said'),
  [
    (
      '{"key": 3}\n',
      'results.jsonl line 2: key, benchmark, id, k, status, fields, metrics missing or of '
      'another type',
    ),
    ('hm\n', 'results.jsonl line 2: got b&#39;hm\\n&#39;, wanted a JSON object'),
    ('[]\n', 'results.jsonl line 2: key, benchmark'),
  ],
)
def test_a_broken_line_is_named_and_the_others_are_shown(tmp_path, broken, said):
  page = page_of(folder_of(tmp_path, line('mlvu', 1), broken, line('mlvu', 2)))
  assert said in page and len(cards(page)) == 2


def test_an_episode_of_another_version_is_named_and_its_sample_shown_without_turns(tmp_path):
  page = page_of(folder_of(tmp_path, line('mlvu', 1, episode={'turns': []}), line('mlvu', 2)))
  assert (
    'results.jsonl, mlvu/w1/k=4: got' in page
    and 'its turns are left out' in page
    and len(cards(page)) == 2
  )


# Size


def test_the_same_frame_of_a_video_stands_on_the_page_once(tmp_path):
  seconds = (8.0, 24.0, 40.0, 56.0)
  same = [
    line('mlvu', 1, scored=scored(1, seconds=seconds, turns=()), key=f'mlvu/{i}') for i in range(3)
  ]
  page = page_of(folder_of(tmp_path, *same))
  assert len(cards(page)) == 3 and page.count('role="img"') == 12 and len(pictures(page)) == 4


def test_frames_of_one_video_are_decoded_once_for_all_its_questions(tmp_path):
  asked = []

  def load(video, seconds):
    asked.append((video, seconds))
    return made_run.frames(video, seconds)

  same = [line('mlvu', 1, scored=scored(1, turns=()), key=f'mlvu/{i}') for i in range(3)]
  page_of(folder_of(tmp_path, *same), load)
  assert len(asked) == 1


def test_pictures_are_bounded_and_what_is_left_out_is_said(tmp_path):
  rows = [line('mlvu', number, scored=scored(number, turns=())) for number in (1, 2, 3)]
  page = page_of(folder_of(tmp_path, *rows), pictures=9)
  assert (
    page.count('role="img"') == 8
    and '1 of 3 samples are shown without pictures, for a page holds 9 at most.' in page
  )
  assert page.count('pictures left out') == 1 and len(cards(page)) == 3


def test_samples_are_bounded_and_benchmarks_share_them(tmp_path):
  rows = [line('mlvu', number) for number in range(1, 7)] + [
    line('charades', 7),
    line('lvbench', 8),
    line('lvbench', 9),
  ]
  page = page_of(folder_of(tmp_path, *rows), samples=5)
  assert [benchmark for _, benchmark, _, _ in cards(page)] == [
    'mlvu',
    'mlvu',
    'charades',
    'lvbench',
    'lvbench',
  ]
  assert 'Not on this page: 4 wrong.' in page


def test_right_answers_take_no_place_from_wrong_ones(tmp_path):
  rows = [
    *(line('mlvu', number, score=1.0) for number in range(1, 5)),
    line('mlvu', 5),
    line('mlvu', 6),
  ]
  page = page_of(folder_of(tmp_path, *rows), right=True, samples=3)
  assert [outcome for outcome, *_ in cards(page)] == [
    'right',
    'wrong',
    'wrong',
  ] and 'Not on this page: 3 right.' in page


def test_a_long_overview_is_thinned_but_its_timeline_is_not(tmp_path):
  page = page_of(folder_of(tmp_path, line('mlvu', 1, k=64, scored=scored(1, 64, turns=()))))
  assert (
    page.count('role="img"') == 16
    and page.count('class="tick"') == 64
    and '16 of 64 frames shown' in page
  )
  assert re.findall(r'aria-label="frame at ([^"]+)"', page)[::15] == ['0.5 s', '63.5 s']


def test_several_videos_share_the_overview_s_pictures(tmp_path):
  one = scored(1, 32, turns=())
  task = dataclasses.replace(one.episode.task, videos=(one.episode.task.video, 'videos/002.mp4'))
  half = tuple(range(1, 33))
  two = dataclasses.replace(
    one,
    episode=dataclasses.replace(
      one.episode, task=task, seconds=half, others=(Overview(half, 64.0),)
    ),
  )
  page = page_of(folder_of(tmp_path, line('mlvu', 1, k=64, scored=two)))
  assert page.count('role="img"') == 16 and page.count('aria-label="frame at Video 2, ') == 8


def test_frames_that_cannot_be_loaded_are_times_with_a_note(tmp_path):
  def load(video, seconds):
    raise MediaError(f'{video}: no such file', 'missing')

  page = page_of(folder_of(tmp_path, line('mlvu', 1, scored=scored(1, turns=()))), load)
  assert (
    'no frames: videos/001.mp4: no such file' in page
    and pictures(page) == []
    and '<i></i>8 s' in page
  )
  plain = page_of(folder_of(tmp_path, line('mlvu', 1, scored=scored(1, turns=()))), None)
  assert (
    'no frames' not in plain
    and '<i></i>8 s' in plain
    and 'not complete' in plain
    and 'without pictures' not in plain
  )


def test_a_picture_keeps_its_shape(tmp_path):
  wide = lambda video, seconds: dataclasses.replace(
    made_run.frames(video, seconds), frames=np.zeros((len(seconds), 90, 200, 3), np.uint8)
  )
  page = page_of(folder_of(tmp_path, line('mlvu', 1, scored=scored(1, turns=()))), wide)
  assert re.findall(r'\.thumb \.p0\{aspect-ratio:([\d/]+);', page) == ['144/65']


# Numbers


# The page


def test_filters_are_those_kinds_in_which_samples_differ_with_their_counts(tmp_path):
  page = page_of(
    folder_of(tmp_path, line('mlvu', 1), line('mlvu', 2, k=64, score=None), line('mlvu', 3, k=64))
  )
  kinds = re.findall(r'<fieldset data-of="(\w+)">', page)
  assert 'benchmark' not in kinds and kinds[:2] == ['outcome', 'k']
  assert re.findall(r'data-value="(\w+)" class="\w*">\w+ <small>(\d+)</small>', page)[:4] == [
    ('wrong', '2'),
    ('error', '1'),
    ('4', '1'),
    ('64', '2'),
  ]


def test_the_page_is_well_formed_needs_no_network_and_takes_nothing_for_markup(tmp_path):
  found = scored(1)
  task = dataclasses.replace(found.episode.task, question=EVIL, id=EVIL, facts={})
  turns = tuple(dataclasses.replace(turn, text=EVIL) for turn in found.episode.turns)
  found = dataclasses.replace(
    found, episode=dataclasses.replace(found.episode, task=task, turns=turns)
  )
  evil = line(EVIL, 1, scored=found, answer=EVIL, gold=EVIL, fields={EVIL: EVIL})
  page = page_of(
    folder_of(tmp_path, evil, line('mlvu', 2), line('mlvu', 3, score=None, error=EVIL, reason=EVIL))
  )
  assert '<script>alert' not in page and '<img src=x' not in page
  parser = _Balance()
  parser.feed(page)
  assert parser.open == []
  assert (
    not re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(?:https?:)?//', page)
    and '<link' not in page
    and '@import' not in page
  )


def test_a_text_that_utf8_cannot_hold_does_not_lose_the_page(tmp_path):
  assert len(cards(page_of(folder_of(tmp_path, line('mlvu', 1, answer='\ud800'))))) == 1


def test_an_empty_evaluation_is_a_page_too(tmp_path):
  assert 'No samples to show.' in page_of(folder_of(tmp_path))


def test_a_folder_that_holds_no_results_is_refused(tmp_path):
  with pytest.raises(
    DataError, match=r'results.jsonl: no such file; wanted the results folder that an evaluation'
  ):
    evaluation.write(tmp_path, tmp_path / 'p.html', None)


def test_it_is_written_in_one_go_or_not_at_all(tmp_path):
  folder = folder_of(tmp_path, line('mlvu', 1))
  path = evaluation.write(folder, tmp_path / 'new' / 'p.html', None)
  assert [p.name for p in path.parent.iterdir()] == ['p.html']
  (tmp_path / 'taken').mkdir()
  with pytest.raises(ParavtError, match='taken: could not write the report'):
    evaluation.write(folder, tmp_path / 'taken', None)


def test_one_episode_is_a_page_of_its_own_without_gold_or_table(tmp_path):
  found = scored(1, 4).episode
  page = evaluation.write_one(found, tmp_path / 'one.html', made_run.frames).read_text()
  assert '<article class="card sample">' in page and '<details' not in page
  assert '1 of' not in page and '<table>' not in page and 'class="filters"' not in page
  assert (
    'Right answer' not in page
    and 'This page is not complete' not in page
    and 'data:image/jpeg' in page
  )
  failed = dataclasses.replace(found, turns=(), stop=StopReason.ERROR, error='the server went away')
  assert (
    'the server went away' in evaluation.write_one(failed, tmp_path / 'one.html', None).read_text()
  )


FILTER = r"""
const elements = {};
const element = (dataset, extra) => ({dataset, hidden: false, open: false, attributes: {}, getAttribute(k) { return this.attributes[k]; },
  setAttribute(k, v) { this.attributes[k] = String(v); }, ...extra});
const made = [['a', 'wrong', '4', '0'], ['a', 'error', '64', '1'], ['b', 'wrong', '64', '2']].map(([benchmark, outcome, k, calls]) =>
  element({benchmark, outcome, k, calls}, {querySelector: () => ({textContent: `Question of ${benchmark} ${k}`})}));
const group = (of, values) => {
  const buttons = values.map(value => element({value})), pressed = b => b.attributes['aria-pressed'] === 'true';
  return element({of}, {buttons, querySelectorAll: q => q === 'button' ? buttons : buttons.filter(pressed)});
};
const kinds = [group('outcome', ['wrong', 'error']), group('k', ['4', '64'])];
for (const id of ['theme', 'words', 'shown', 'none', 'all']) elements[id] = {value: '', textContent: ''};
globalThis.document = {getElementById: id => elements[id], querySelector: () => ({querySelectorAll: () => kinds}),
  querySelectorAll: q => q === '.sample' ? made : []};
globalThis.location = {hash: '#outcome=wrong'};
globalThis.history = {replaceState: (a, b, url) => { elements.url = url; }};
globalThis.matchMedia = () => ({matches: false});
SCRIPT
const shown = () => made.map(s => s.hidden ? 0 : 1).join('');
const told = [shown(), elements.shown.textContent];
kinds[1].buttons[1].onclick(); told.push(shown(), elements.url);
kinds[0].buttons[0].onclick(); told.push(shown());
elements.words.value = ' QUESTION a '; elements.words.oninput(); told.push(shown());
elements.all.onclick({target: elements.all}); told.push(made.map(s => s.open ? 1 : 0).join(''), elements.all.textContent);
elements.words.value = 'zebra'; elements.words.oninput(); told.push(shown(), String(elements.none.hidden));
console.log(JSON.stringify(told));
"""


@pytest.mark.skipif(shutil.which('node') is None, reason="needs node to run the page's script")
def test_values_of_one_kind_widen_kinds_narrow_and_the_address_keeps_the_choice():
  here = Path(evaluation.__file__).parent
  script = (here / 'page.js').read_text() + (here / 'evaluation.js').read_text()
  done = subprocess.run(
    ['node', '-e', FILTER.replace('SCRIPT', script)],
    capture_output=True,
    text=True,
    timeout=patience.seconds(60),
    check=True,
  )
  assert json.loads(done.stdout) == [
    '101',
    '2 of 3',
    '001',
    '#outcome=wrong&k=64',
    '011',
    '010',
    '010',
    'close all shown',
    '000',
    'false',
  ]


def test_a_call_that_ran_and_is_not_well_formed_is_marked(tmp_path):
  call = ToolCall('crop_video', {'start_time': '1.0s', 'end_time': 2}, False)
  sloppy = ToolResult(call, ResultStatus.EXECUTED, 'red', Window(1, 2), (1.0, 2.0))
  made = scored(1)
  turn = dataclasses.replace(
    made.episode.turns[0],
    results=(sloppy, dataclasses.replace(sloppy, call=dataclasses.replace(call, well_formed=True))),
  )
  made = dataclasses.replace(made, episode=dataclasses.replace(made.episode, turns=(turn,)))
  page = page_of(folder_of(tmp_path, line('mlvu', 1, scored=made)))
  assert re.findall(r'· ([^<]*?)(?: · <span class="form">([^<]*)</span>)?</div><p>red', page) == [
    ('1 s – 2 s', 'not well-formed'),
    ('1 s – 2 s', ''),
  ]
