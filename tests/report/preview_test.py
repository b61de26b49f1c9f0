"""The preview of a row: what the model is given, pictures and ids and mask, and why a row would be
dropped.
"""

import base64
import html
import io
import re

import numpy as np
import pytest
from PIL import Image

from paravt_jax.chat import prompts
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.data import sft
from paravt_jax.data.conversations import Conversation, ImageRef, Message, VideoRef
from paravt_jax.errors import ParavtError
from paravt_jax.report import preview
from paravt_jax.testing import tiny
from tests.data.sft_test import CALL, OPTIONS, WORKED, Fake
from tests.report.build_test import _Balance

LIMITS = preview.Limits(row_tokens=512, row_images=16, image_patches=24, row_large_images=0)


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tok')
  tiny.build_tokenizer(folder)
  return ChatTokenizer.load(folder)


def view_row(tok, *messages, limits=LIMITS):
  conversation = (
    messages[0]
    if isinstance(messages[0], Conversation)
    else Conversation(
      'paravt_sft_a.parquet:7', tuple(Message(role, parts) for role, parts in messages)
    )
  )
  return preview.view_row('a:7', conversation, tok, Fake(), OPTIONS, limits)


def render(*looks):
  return preview.render('rows of sft:tiny', looks, LIMITS)


def ids(found):
  """The ids of a look, and which of them are targets, as they stand in its tokens."""
  tokens = [token for message in found.tokens for token in message]
  return [i for token in tokens for i in token.ids], [
    token.target for token in tokens for _ in token.ids
  ]


def test_its_tokens_are_those_of_the_sample_in_order_with_their_mask(tok):
  sample = sft.sample(tok, WORKED, sft.decoded(Fake(), OPTIONS), OPTIONS)
  found, targets = ids(view_row(tok, WORKED))
  assert found == sample.ids.tolist() and targets == (sample.extras['mask'] > 0).tolist()


def test_targets_are_the_assistant_s_turns_without_their_headers_and_nothing_else(tok):
  found = view_row(tok, WORKED)
  blue = [''.join(token.text for token in message if token.target) for message in found.tokens]
  assert blue[:3] == ['', '', CALL + '<|im_end|>'] and blue[3:6] == ['', '', '']
  assert [message['role'] for message in found.messages] == [
    'system',
    'user',
    'assistant',
    'user',
    'user',
    'user',
    'assistant',
  ]
  assert (
    ''.join(token.text for token in found.tokens[2] if not token.target)
    == '<|im_start|>assistant\n\n'
  )


def test_every_frame_is_a_picture_with_the_time_that_the_model_reads(tok):
  page = render(
    view_row(tok, ('user', (VideoRef('v', 4, 40.0, 43.0), 'What?')), ('assistant', ('red.',)))
  )
  assert re.findall(r'alt="([^"]+)"', page) == [
    f'{second}.0 s · 32×32 · 1 token' for second in (40, 41, 42, 43)
  ]
  pixels = [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    for data in re.findall(r'jpeg;base64,([^"]+)', page)
  ]
  assert [int(picture.mean().round()) for picture in pixels] == [40, 41, 42, 43]
  assert 'v · 4 frames asked for · from 40 s to 43 s' in page


def test_counts_are_of_the_row_in_the_pack_with_images_expanded(tok, tmp_path):
  Image.new('RGB', (96, 64), (10, 200, 30)).save(tmp_path / 'a.png')
  options = sft.FrameOptions(**{**vars(OPTIONS), 'image_max_pixels': 8192})
  conversation = Conversation(
    'x',
    (
      Message('user', (ImageRef(str(tmp_path / 'a.png')), 'What?')),
      Message('assistant', ('red.',)),
    ),
  )
  found = preview.view_row('a:0', conversation, tok, Fake(), options, LIMITS)
  assert (found.counts['images'], found.counts['image_tokens'], found.counts['targets']) == (
    1,
    6,
    3,
  )
  plain, _ = ids(found)
  assert found.counts['tokens'] == len(plain) + 6 - 1
  page = render(found)
  assert 'title="96×64 · 6 tokens"' in page and 'title="image 1: id' in page and '▣ 1 × 6' in page


@pytest.mark.parametrize(
  ('limits', 'reason', 'words'),
  [
    (preview.Limits(30, 16, 4, 0), 'too_long', 'tokens; a row holds 30 (train.row_tokens)'),
    (preview.Limits(512, 3, 4, 0), 'too_many_images', '4 images; a row holds 3 (train.row_images)'),
    (
      preview.Limits(512, 3, 0, 3),
      'too_many_images',
      '4 large images; a row holds 3 (train.row_large_images)',
    ),
    (LIMITS, '', ''),
  ],
)
def test_a_row_that_no_pack_holds_says_why_and_is_shown_all_the_same(tok, limits, reason, words):
  found = view_row(tok, WORKED, limits=limits)
  page = preview.render('x', [found], limits)
  assert found.reason == reason and words in found.fault and found.tokens and 'data:image' in page
  assert ('dropped: ' + reason if reason else 'fits') in page


def test_media_that_cannot_be_read_give_the_reason_and_the_texts(tok):
  found = view_row(
    tok,
    ('user', (VideoRef('v', 2, None, None), VideoRef('missing', None, None, None), 'What?')),
    ('assistant', ('red.',)),
  )
  page = render(found)
  assert (found.reason, found.tokens, found.counts) == ('media_missing', (), {})
  assert (
    page.count('data:image') == 2
    and 'missing · could not be read' in page
    and '>What?<' in page
    and '>red.<' in page
  )


def test_a_row_that_breaks_the_schema_is_its_fault_and_no_more():
  page = render(
    preview.unreadable('a:3', 'a.parquet:3', 'schema', 'messages: got 3, wanted a list')
  )
  assert (
    'dropped: schema' in page
    and 'messages: got 3, wanted a list' in page
    and 'class="message' not in page
  )


def test_our_system_text_stands_where_the_row_s_has_no_tools_and_that_is_said(tok):
  page = render(
    view_row(tok, ('system', ('Be good.',)), ('user', ('What?',)), ('assistant', ('red.',)))
  )
  assert html.escape(prompts.SYSTEM[:60], quote=False) in page and 'Be good.' not in page
  assert 'the model is given this one instead' in page
  kept = render(
    view_row(
      tok, ('system', ('Mine. <tools>[]</tools>',)), ('user', ('What?',)), ('assistant', ('red.',))
    )
  )
  assert 'Mine. &lt;tools&gt;' in kept and 'instead' not in kept


def test_a_character_cut_into_several_tokens_is_shown_whole_with_all_its_ids(tok):
  found = view_row(tok, ('user', ('Wo ist ß 🙂?',)), ('assistant', ('日本 \ufffd',)))
  texts = [token.text for token in found.tokens[0] if len(token.ids) > 1]
  assert texts == ['ß', '🙂'] and [
    len(token.ids) for token in found.tokens[0] if token.text == '🙂'
  ] == [4]
  assert [token.text for token in found.tokens[1] if token.target and token.ids != (tok.im_end,)][
    :2
  ] == ['日', '本']
  sample = sft.sample(
    tok,
    Conversation('x', (Message('user', ('Wo ist ß 🙂?',)), Message('assistant', ('日本 \ufffd',)))),
    sft.decoded(Fake(), OPTIONS),
    OPTIONS,
  )
  assert ids(found)[0] == sample.ids.tolist()  # a real replacement character loses no id either


def test_nothing_a_row_holds_becomes_markup(tok):
  evil = '</span><script>alert(1)</script>"><img src=x onerror=alert(1)>'
  found = view_row(
    tok,
    ('system', (evil + '<tools>',)),
    ('user', (VideoRef('v', 1, None, None), evil)),
    ('assistant', (evil,)),
  )
  page = render(found, preview.unreadable(evil, evil, evil, evil))
  assert '<script>alert' not in page and '<img src=x' not in page
  parser = _Balance()
  parser.feed(page)
  assert parser.open == []


def test_the_page_needs_no_network_and_shows_line_ends(tok):
  page = render(view_row(tok, WORKED))
  assert (
    not re.findall(r'(?:src|href|url\()\s*=?\s*["\']?(?:https?:)?//', page)
    and '<link' not in page
    and '@import' not in page
  )
  assert re.search(r'<span class="g" title="\d+">⏎\n</span>', page)
  assert re.search(r'<span class="t" title="\d+">&lt;think&gt;</span>', page)


def test_it_is_written_in_one_go_or_not_at_all(tok, tmp_path):
  found = view_row(tok, WORKED)
  path = preview.write(tmp_path / 'new' / 'p.html', 't', [found], LIMITS)
  assert path.read_text().startswith('<!doctype html>') and [
    p.name for p in path.parent.iterdir()
  ] == ['p.html']
  (tmp_path / 'taken').mkdir()
  with pytest.raises(ParavtError, match='taken: could not write the preview'):
    preview.write(tmp_path / 'taken', 't', [found], LIMITS)
