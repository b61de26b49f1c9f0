"""What servers do differently: refusals as they are worded, errors and texts as they are
wrapped.
"""

import json

import pytest

from paravt_jax.rollout.chat_dialect import Dialect, blames, error_in, message_text

OWN = {'max_tokens': 64, 'temperature': 0, 'seed': 0, 'stream': False}
SENT = {'model', 'messages', *OWN}


def openai(message, param=None):
  return json.dumps(
    {'error': {'message': message, 'type': 'invalid_request_error', 'param': param, 'code': None}}
  )


@pytest.mark.parametrize(
  ('name', 'refusal'),
  [
    (
      'max_tokens',
      openai(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
        "'max_completion_tokens' instead."
      ),
    ),
    ('max_tokens', openai('this model is not supported with this parameter', 'max_tokens')),
    ('max_tokens', '`max_tokens` is deprecated in favor of `max_completion_tokens`'),
    (
      'max_tokens',
      'Unsupported parameter for this model: max_tokens; set the maximum with '
      'max_completion_tokens',
    ),
    (
      'temperature',
      openai(
        "Unsupported value: 'temperature' does not support 0 with this model. Only the "
        'default (1) value is supported.'
      ),
    ),
    ('temperature', 'Input validation error: `temperature` must be strictly positive'),
    ('temperature', '`temperature` is deprecated for this model.'),
    ('temperature', '`temperature` may only be set to 1 when thinking is enabled.'),
    ('seed', 'Unrecognized request argument supplied: seed'),
    ('seed', openai("property 'seed' is unsupported")),
    ('seed', 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'),
    (
      'seed',
      '{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs '
      'are not permitted", "input": 0}]}',
    ),
    ('seed', "create() got an unexpected keyword argument 'seed'"),
    ('stream', "Unknown parameter: 'stream'."),
  ],
)
def test_a_refusal_blames_the_parameter_that_it_names(name, refusal):
  assert blames(refusal, name, SENT) and not any(
    blames(refusal, other, SENT) for other in SENT - {name}
  )


@pytest.mark.parametrize(
  'refusal',
  [
    '',
    'no',
    'max_tokens',
    openai(
      "This model's maximum context length is 4096 tokens; you requested max_tokens=512: not "
      'supported.'
    ),
    "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context "
    'length is 1024 tokens.',
    'max_tokens is too large: 100000. This model supports at most 16384 completion tokens',
    openai('Could not finish the message because max_tokens or model output limit was reached.'),
    openai('Unsupported image', 'messages'),
    openai(
      "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
      'messages[0].role',
    ),
    "Unknown parameter: 'response_format'",
    'The model `m` does not exist',
    'temperature must be between 0 and 2',
    json.dumps(
      {
        'detail': [
          {
            'type': 'value_error',
            'msg': 'unexpected image',
            'input': {'messages': [], 'max_tokens': 64, 'seed': 0},
          }
        ]
      }
    ),
  ],
)
def test_a_refusal_of_this_very_request_blames_none(refusal):
  assert not any(blames(refusal, name, SENT) for name in OWN)


def test_a_parameter_is_renamed_once_and_then_left_out():
  dialect = Dialect()
  assert dialect.translate(OWN) == OWN
  assert (
    dialect.learn("Unsupported parameter: 'max_tokens'", OWN, SENT)
    == 'max_tokens is sent as max_completion_tokens'
  )
  assert dialect.translate(OWN) == {
    'max_completion_tokens': 64,
    'temperature': 0,
    'seed': 0,
    'stream': False,
  }
  sent = {'model', 'messages', *dialect.translate(OWN)}
  assert (
    dialect.learn("Unsupported parameter: 'max_tokens'", OWN, sent) == ''
  )  # is not sent any more
  assert 'max_completion_tokens is left out' in dialect.learn(
    "Unknown parameter: 'max_completion_tokens'", OWN, sent
  )
  assert dialect.translate(OWN) == {'temperature': 0, 'seed': 0, 'stream': False}


@pytest.mark.parametrize(
  ('body', 'status'),
  [
    (b'{"error": {"message": "busy", "code": 429}}', 429),
    (b'{"error": {"code": "502"}}', 502),
    (b'{"error": "busy"}', 500),
    (b'{"error": {"code": "rate_limit"}}', 500),
    (b'{"error": {"code": 7}}', 500),
    (b'{"error": null, "choices": []}', 200),
    (b'{"error": {"code": 500}, "choices": [{}]}', 200),
    (b'{"choices": []}', 200),
    (b'"error"', 200),
    (b'{"error"', 200),
    (b'', 200),
  ],
)
def test_an_error_within_a_reply_has_its_status(body, status):
  assert error_in(body) == status


def test_texts_in_parts_are_joined_without_thoughts():
  assert message_text('a') == 'a' and message_text(None) is None and message_text([]) == ''
  assert (
    message_text(
      [{'type': 'text', 'text': 'a'}, {'type': 'thinking', 'thinking': 'x'}, {'text': 'b'}]
    )
    == 'ab'
  )
  assert message_text([{'type': 'image'}]) == [{'type': 'image'}] and message_text(['a']) == ['a']
