"""R_base, R_anchor and compliance, term by term."""

import pytest

from paravt_jax.rewards import form
from tests.rewards.made import CALL, LONG, episode, turn

SHORT = '<think>\nI look.'  # 7 characters


def base(*texts: str, suffix: bool = True) -> float:
  return form.base(form.read(episode(*texts).turns), answer_suffix=suffix)


def anchor(*texts: str) -> float:
  return form.anchor(form.read(episode(*texts).turns), unclosed_penalty=0.3)


def test_ten_characters_make_a_think_substantive():
  assert base('<think>\n 123456789 \n</think>') == 0.0
  assert base('<think>\n 1234567890 \n</think>') == pytest.approx(0.3)  # .2 and balance
  assert anchor('<think>\n 123456789 \n</think>') == 0.0 and anchor(
    '<think>\n1234567890</think>'
  ) == pytest.approx(0.4)


@pytest.mark.parametrize(
  'suffix, values', [(True, (0.3, 0.6, 0.5, 0.8)), (False, (0.4, 0.4, 0.5, 0.7))]
)
def test_the_answer_suffix_sets_what_think_answer_and_its_closing_are_worth(suffix, values):
  texts = ('</think>', None, '</think><answer>B', '</think><answer>B</answer>')
  earned = [
    base(LONG + text if text else SHORT + '</think><answer>B</answer>', suffix=suffix)
    for text in texts
  ]
  # on: .2+.1, .3+.2+.1, .2+.3 without balance, .2+.3+.2+.1; off: .3+.1, .2+.1+.1, .3+.2,
  # .3+.2+.1+.1
  assert earned == pytest.approx(list(values))


def test_a_blank_answer_earns_nothing():
  assert (
    base(LONG + '</think><answer> \n</answer>') == base(LONG + '</think>') == pytest.approx(0.3)
  )


def test_an_answer_inside_a_closed_think_is_text():
  assert base(LONG + '<answer>B</answer></think>') == pytest.approx(0.3)
  assert anchor(LONG + '<answer>B</answer></think>') == pytest.approx(0.4)


def test_a_substantive_think_before_a_call_earns_more_even_from_an_earlier_turn():
  assert base(LONG + '</think>' + CALL) == pytest.approx(0.6)  # .2 + .3 + .1
  assert base(LONG + '</think>', SHORT + '</think>' + CALL) == pytest.approx(0.6)
  assert base(SHORT + '</think>' + CALL, LONG + '</think>') == pytest.approx(0.3)
  assert base(SHORT + '</think>' + CALL, LONG + '</think>' + CALL) == pytest.approx(0.6)
  assert base(LONG + '</think>' + CALL, LONG + '</think>') == pytest.approx(0.6)
  assert base(LONG + CALL) == pytest.approx(
    0.5
  )  # a think that is never closed counts too, but does not balance
  assert base(CALL + LONG) == pytest.approx(0.2)


def test_a_call_that_is_no_call_or_forced_earns_no_flow():
  assert base(LONG + '</think><tool_call>oops</tool_call>') == pytest.approx(
    0.2
  )  # nor the .1 of the balance
  assert form.base(
    form.read((turn(LONG + '</think>' + CALL, forced=True),)), answer_suffix=True
  ) == pytest.approx(0.3)


@pytest.mark.parametrize(
  'sloppy',
  [
    CALL.replace('{"name', '```json\n{"name').replace('</tool', '\n```</tool'),
    CALL.removesuffix('</tool_call>'),
    CALL.replace('"', "'"),
    CALL.replace('"start_time": 1', '"start_time": "1.0s"'),
    '<tool_code>crop_video("v", 1, 2)</tool_code>',
    '<function=crop_video><parameter=start_time>1</parameter><parameter=end_time>2</parameter></function>',
  ],
)
def test_a_call_that_is_not_well_formed_earns_no_flow_no_balance_and_is_not_compliant(sloppy):
  assert base(LONG + '</think>' + sloppy) == pytest.approx(0.2) and base(
    LONG + '</think>' + CALL
  ) == pytest.approx(0.6)
  assert not form.turn_compliant(LONG + '</think>' + sloppy) and form.turn_compliant(
    LONG + '</think>' + CALL
  )


def test_balance_needs_a_positive_score_and_every_turn():
  assert base('') == base(SHORT + '</think>') == 0.0
  assert base(LONG + '</think>', '<answer>') == pytest.approx(0.2)
  assert base(LONG + '</think></think>') == pytest.approx(0.2) and base(
    LONG + '</think><tool_code>'
  ) == pytest.approx(0.2)
  assert base(LONG + ' a <tool_call> or <answer>?</think>') == pytest.approx(
    0.3
  )  # inside a closed think it is text


def test_the_anchor_pays_the_flow_only_for_a_closed_answer_with_text_after_the_think():
  assert anchor(LONG + '</think><answer>B</answer>') == pytest.approx(0.7)
  assert anchor(LONG + '</think>', '<answer>B</answer>') == pytest.approx(0.7)
  assert anchor(LONG + '</think><answer>B') == pytest.approx(0.4)
  assert anchor(LONG + '</think><answer> </answer>') == pytest.approx(0.4)
  assert anchor('<answer>B</answer>' + LONG + '</think>') == pytest.approx(0.4)


def test_one_think_left_open_in_any_turn_costs():
  assert anchor(LONG + '</think><answer>B</answer>', '<think>') == pytest.approx(0.4)
  assert anchor('<think>') == pytest.approx(-0.3)
  assert form.form_reward(
    form.read(episode('<think>').turns), answer_suffix=True, anchor_weight=0.5, unclosed_penalty=0.3
  ) == pytest.approx(-0.15)


@pytest.mark.parametrize(
  'text',
  [
    '<think>\nhm</think>\n<answer>B</answer>',
    LONG + '</think>' + CALL,
    LONG + '</think>\n' + CALL + '\n' + CALL + '\n',
    '<think>\nuse <answer> or <tool_call></think><answer>red car</answer>',
    ' <think></think><answer>B</answer>',
  ],
)
def test_a_compliant_turn(text):
  assert form.turn_compliant(text)


@pytest.mark.parametrize(
  'text',
  [
    '',
    'B',
    '<answer>B</answer>',
    LONG + '<answer>B</answer>',
    'so ' + LONG + '</think>' + CALL,
    *(
      LONG + '</think>' + rest
      for rest in (
        '',
        'B',
        '<answer>B',
        '<answer> </answer>',
        '<answer>A</answer><answer>B</answer>',
        '<answer>B</answer>.',
        '<answer>B</answer><|endoftext|>',
        '<answer>' + CALL + '</answer>',
        '<answer><think></answer>',
        '</think>' + CALL,
        'so ' + CALL,
        CALL + '<answer>B</answer>',
        CALL + '<tool_call>oops</tool_call>',
        CALL + '</tool_call>',
        LONG + '</think>' + CALL,
      )
    ),
  ],
)
def test_a_turn_that_is_not_compliant(text):
  assert not form.turn_compliant(text)


def test_every_turn_of_an_episode_must_comply():
  good, bad = LONG + '</think>' + CALL, LONG + '</think>'
  assert form.compliant(episode(good, LONG + '</think><answer>B</answer>'))
  assert not form.compliant(episode(good, bad)) and not form.compliant(episode())


def test_the_penalty_for_a_think_left_open_is_a_knob():
  shape = form.read(episode(LONG + '</think><answer>B</answer>', '<think>').turns)
  assert form.anchor(shape, unclosed_penalty=0.3) == pytest.approx(0.4) and form.anchor(
    shape, unclosed_penalty=0.0
  ) == pytest.approx(0.7)
  rewards = [
    form.form_reward(shape, answer_suffix=False, anchor_weight=0.5, unclosed_penalty=penalty)
    for penalty in (0.0, 0.3)
  ]
  assert rewards == pytest.approx(
    [0.95, 0.8]
  )  # .3 + .2 + .1 without balance, and half of .7 or of .4
