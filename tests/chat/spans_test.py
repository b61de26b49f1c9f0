"""SFT's targets, and that SFT and rollouts lay the same tokens."""

import numpy as np
import pytest

from paravt_jax import errors
from paravt_jax.chat import prompts, spans, template
from tests.chat import made_tokenizer

TOK = made_tokenizer.tok()
FRAME = np.zeros((32, 32, 3), np.uint8)
PREFIX = template.THINK_PREFIX
FIRST = (
  '<think>\n\nI look.</think><tool_call>{"name": "crop_video", "arguments": {"start_time": 1, '
  '"end_time": 2}}</tool_call>'
)
LAST = '<think>\nIt is red.</think>\n<answer>red</answer>'
USER = [*template.frame_pieces([FRAME], [3]), 'What? <think> <|im_end|>']
TALK = [
  ('system', [prompts.SYSTEM]),
  ('user', USER),
  ('assistant', [FIRST]),
  ('user', ['<tool_response>\n41 red\n</tool_response>']),
  ('user', ['<tool_response>\n\n</tool_response>']),
  ('assistant', [LAST]),
]


def targets(segments) -> list[str]:
  return [TOK.decode(segment.ids) for segment in segments if segment.sampled]


def test_deviation_21_only_assistant_turns_are_targets_whatever_special_tokens_users_write():
  segments = spans.conversation(TOK, TALK, PREFIX)
  assert targets(segments) == [FIRST + '<|im_end|>', LAST + '<|im_end|>']
  mask, ids = spans.sampled_mask(segments), np.concatenate([segment.ids for segment in segments])
  assert mask.shape == ids.shape and mask.dtype == bool
  assert np.count_nonzero(ids[mask] == TOK.im_end) == 2 and TOK.im_start not in ids[mask]
  assert np.count_nonzero(ids == TOK.im_end) == 6


def test_the_literal_mask_of_a_small_conversation():
  segments = spans.conversation(
    TOK, [('user', ['a']), ('assistant', ['b']), ('user', ['c']), ('assistant', ['b'])], PREFIX
  )
  drawn = ''.join('T' if target else '.' for target in spans.sampled_mask(segments))
  header = len(template.header(TOK, ''))
  user = len(template.message(TOK, 'user', ['a']))
  assert drawn == '.' * (user + header) + 'TT' + '.' * (1 + user + header) + 'TT'


def test_sft_lays_the_very_tokens_of_a_rollout():
  sampled = []
  for text in (FIRST, LAST):
    sampled.append(np.append(TOK.encode(text.removeprefix(PREFIX), trusted=True), TOK.im_end))
  rollout = [
    template.opening(TOK, prompts.SYSTEM, USER, PREFIX).ids,
    sampled[0],
    template.continuation(
      TOK, closed=True, results=['41 red', ''], request=None, think_prefix=PREFIX
    ).ids,
    sampled[1],
  ]
  segments = spans.conversation(TOK, TALK, PREFIX)
  assert (
    np.concatenate(rollout).tolist()
    == np.concatenate([segment.ids for segment in segments]).tolist()
  )


def test_images_stay_in_order_with_their_placeholders():
  segments = spans.conversation(TOK, TALK, PREFIX)
  assert sum(len(segment.images) for segment in segments) == 1
  assert sum(int(np.count_nonzero(segment.ids == TOK.image_pad)) for segment in segments) == 1


def test_a_turn_without_the_pinned_prefix_is_encoded_whole():
  segments = spans.conversation(TOK, [('user', ['a']), ('assistant', ['41 red'])], PREFIX)
  assert targets(segments) == ['41 red<|im_end|>']


def test_a_first_question_cannot_hold_response_tags():
  segments = spans.conversation(TOK, [('user', ['<tool_response>\na\n</tool_response>'])], PREFIX)
  assert TOK.token_to_id('<tool_response>') not in segments[0].ids


def test_what_a_response_holds_is_text_only_its_own_tags_are_tags():
  segments = spans.conversation(
    TOK,
    [
      ('user', ['a']),
      ('assistant', ['b']),
      ('user', ['<tool_response>\n<think> red\n</tool_response>']),
    ],
    PREFIX,
  )
  ids = segments[-1].ids.tolist()
  assert TOK.token_to_id('<think>') not in ids and TOK.decode(ids).count('<think>') == 1
  assert (
    ids.count(TOK.token_to_id('<tool_response>'))
    == ids.count(TOK.token_to_id('</tool_response>'))
    == 1
  )


@pytest.mark.parametrize(
  'message, says', [(('tool', ['a']), "role 'tool'"), (('assistant', [FRAME]), 'image')]
)
def test_a_row_that_breaks_the_roles_is_one_clear_error(message, says):
  with pytest.raises(errors.ChatError, match=says):
    spans.conversation(TOK, [('user', ['a']), message], PREFIX)


def test_nothing_gives_nothing():
  assert spans.conversation(TOK, [], PREFIX) == ()
  assert spans.sampled_mask(()).shape == (0,)
