"""The reward of an episode: every row of the specification's table, then each knob."""

import dataclasses

import pytest

from paravt_jax import errors, seeds, types
from paravt_jax.rewards import form, total
from paravt_jax.types import ResultStatus
from tests.rewards import made
from tests.rewards.made import CALL, LONG, episode, turn

RAN, FAILED = ResultStatus.EXECUTED, ResultStatus.MEDIA_ERROR
RIGHT, WRONG = '</think>\n<answer>B</answer>', '</think>\n<answer>A</answer>'
CALLED = LONG + '</think>\n' + CALL

TABLE = {
  1: (episode(LONG + RIGHT), 1.0, 0.0, 2.0),
  2: (episode(LONG + '\n<answer>B</answer>'), 0.55, 0.0, 1.55),
  4: (episode(LONG + '</think>\nB'), 0.5, 0.0, 1.5),
  5: (episode(turn(CALLED, RAN), LONG + RIGHT), 1.0, 0.8, 2.8),
  6: (episode(turn(CALLED, RAN), LONG + WRONG), 1.0, 0.3, 1.3),
  7: (episode(turn(CALLED, FAILED), LONG + RIGHT), 1.0, 0.6, 2.6),
  9: (episode(LONG + '</think>\n<answer> </answer>'), 0.5, 0.0, 0.5),
  10: (episode(turn(CALLED, RAN)), 0.8, 0.3, 1.1),
}


def parts(scored: types.Episode, **knobs) -> dict[str, float]:
  return total.score(scored, dataclasses.replace(total.PUBLISHED, **knobs))[1]


@pytest.mark.parametrize('row', TABLE)
def test_the_rows_of_the_reward_table(row):
  scored, fmt, tool, reward = TABLE[row]
  value, terms = total.score(scored, total.PUBLISHED)
  assert (terms['format'], terms['tool'], value) == pytest.approx((fmt, tool, reward))
  assert terms['total'] == value and set(terms) == set(total.PARTS)


def test_row_1_is_1_15_before_the_cap():
  terms = parts(TABLE[1][0])
  assert terms['base'] + 0.5 * terms['anchor'] == pytest.approx(
    1.15
  )  # .2 + .3 + .2 + .1, and .5 * (.4 + .3)


def test_deviation_4_closing_the_think_scores_more_than_leaving_it_open():
  closed, opened = parts(episode(LONG + RIGHT)), parts(episode(LONG + '<answer>B</answer>'))
  assert closed['format'] - opened['format'] == pytest.approx(0.45)
  without_prefix = parts(
    episode('I look at the window of the cue.' + RIGHT)
  )  # what the release scored
  assert without_prefix['format'] == pytest.approx(0.5) and without_prefix['anchor'] == 0.0


def test_deviation_5_a_hallucinated_response_earns_nothing_and_a_result_does():
  dreamt = LONG + '</think>\n<tool_response>\n41 red\n</tool_response>'
  assert parts(episode(dreamt))['tool'] == 0.0
  assert parts(episode(CALLED + '<tool_response>\n41 red\n</tool_response>'))[
    'tool'
  ] == pytest.approx(0.1)
  assert parts(episode(turn(CALLED, RAN)))['tool'] == pytest.approx(0.3)


def test_deviation_8_one_malformed_call_does_not_void_its_sibling():
  text = LONG + '</think><tool_call>oops</tool_call>' + CALL
  assert parts(episode(turn(text, ResultStatus.PARSE_FAILURE, RAN)))['tool'] == pytest.approx(0.3)


def test_deviation_14_better_episodes_are_told_apart_above_2_2():
  assert (
    total.score(TABLE[5][0], total.PUBLISHED)[0]
    > total.score(TABLE[7][0], total.PUBLISHED)[0]
    > 2.2
  )


def test_the_tool_bonus_may_ask_for_an_executed_call():
  assert parts(TABLE[7][0], tool_bonus='executed')['tool'] == pytest.approx(0.1)
  assert parts(TABLE[5][0], tool_bonus='executed')['tool'] == pytest.approx(0.8)


def test_an_unknown_tools_name_is_parseable_too_a_failure_is_not():
  unknown = CALLED.replace('crop_video', 'zoom')
  assert parts(episode(turn(unknown, ResultStatus.UNKNOWN_TOOL), LONG + RIGHT))[
    'tool'
  ] == pytest.approx(0.6)
  assert (
    parts(episode(turn(CALLED.replace('}}', ''), ResultStatus.PARSE_FAILURE), LONG + RIGHT))['tool']
    == 0.0
  )


def test_calls_in_the_forced_turn_earn_nothing():
  terms = parts(episode(LONG + '</think>', turn(CALLED + '<answer>B</answer>', forced=True)))
  assert terms['tool'] == 0.0 and terms['accuracy'] == 1.0
  assert terms['base'] == pytest.approx(0.8)  # no .3 for a think before a call


def test_the_threshold_is_exceeded_not_reached():
  task = dataclasses.replace(made.MCQ, question_type='oe', answer='blue red car')
  said = episode(turn(CALLED, RAN), LONG + '</think><answer>red car</answer>', task=task)  # F1 = .8
  assert parts(said, tool_threshold=0.8)['tool'] == pytest.approx(0.3)
  assert parts(said, tool_threshold=0.79)['tool'] == pytest.approx(0.8)


def test_r_tool_can_be_off_and_the_format_weight_scales_r_fmt():
  assert parts(TABLE[5][0], tool=False)['total'] == pytest.approx(2.0)
  assert parts(TABLE[2][0], format_weight=0.5)['total'] == pytest.approx(1.275)
  assert parts(TABLE[2][0], anchor_weight=0.0)['format'] == pytest.approx(0.7)


def test_open_ended_is_scored_as_the_knob_says():
  task = dataclasses.replace(made.MCQ, question_type='oe', answer='blue red car')
  said = episode(LONG + '</think><answer>the red car</answer>', task=task)
  assert parts(said)['accuracy'] == pytest.approx(0.8)
  assert parts(said, open_ended='exact')['accuracy'] == 0.0
  judge = dataclasses.replace(total.PUBLISHED, open_ended='judge')
  assert total.score(said, judge, judged=0.25)[1]['accuracy'] == 0.25
  with pytest.raises(errors.ConfigError, match='no verdict for task t'):
    total.score(said, judge)
  assert total.score(TABLE[1][0], judge)[1]['accuracy'] == 1.0  # only open-ended tasks are judged


def test_grounding_pays_iou_or_whether_a_threshold_is_reached():
  task = dataclasses.replace(made.MCQ, question_type='tvg', answer='2,4')
  said = episode(LONG + '</think><answer>[1, 4]</answer>', task=task)  # 2/3
  assert parts(said)['accuracy'] == pytest.approx(2 / 3)
  assert parts(said, grounding_threshold=2 / 3)['accuracy'] == 1.0
  assert parts(said, grounding_threshold=0.7)['accuracy'] == 0.0


def test_the_answer_is_that_of_the_last_turn():
  assert parts(episode(LONG + RIGHT, LONG + '</think>'))['accuracy'] == 0.0
  assert parts(episode(LONG + WRONG, LONG + RIGHT))['accuracy'] == 1.0
  assert parts(episode())['total'] == 0.0


def test_a_choice_task_without_known_options_allows_a_to_j():
  task = dataclasses.replace(made.MCQ, options=(), answer='J')
  assert parts(episode(LONG + '</think><answer>J</answer>', task=task))['accuracy'] == 1.0


def test_weights_may_be_a_mapping_and_a_wrong_knob_or_value_is_one_clear_error():
  assert total.score(TABLE[2][0], {'format_weight': 0.0})[0] == 1.0
  assert total.options(total.PUBLISHED) is total.PUBLISHED
  assert total.options(dataclasses.asdict(total.PUBLISHED)) == total.PUBLISHED
  with pytest.raises(
    errors.ConfigError, match=r'reward\.tool_bonos: no such knob; did you mean tool_bonus'
  ):
    total.options({'tool_bonos': 'call'})
  with pytest.raises(
    errors.ConfigError, match=r'RewardOptions\.open_ended=.*wanted one of f1, exact, judge'
  ):
    total.options({'open_ended': 'f2'})


_PIECES = [
  LONG,
  CALL,
  RIGHT,
  '<think>',
  '</think>',
  '<answer>',
  '</answer>',
  '<tool_call>',
  '</tool_call>',
  '<tool_code>',
  '</tool_code>',
  'crop_video("v", 1, 2)',
  'B',
  ' ',
  '<|im_end|>',
  '{',
  '<tool_response>',
  '\0',
  '\ud800',
  '[1, 2]',
]


def test_random_turns_never_raise_and_stay_in_range():
  rng = seeds.rng(0, 'score fuzz')
  for _ in range(4000):
    drawn = [rng.integers(len(_PIECES), size=rng.integers(0, 9)) for _ in range(rng.integers(0, 4))]
    texts = [''.join(_PIECES[i] for i in indices) for indices in drawn]
    turns = [turn(text, forced=bool(rng.random() < 0.2)) for text in texts]
    kind = ('mcq', 'tvg', 'oe')[rng.integers(3)]
    task = dataclasses.replace(made.MCQ, question_type=kind, answer='1,2')
    value, terms = total.score(episode(*turns, task=task), total.PUBLISHED)
    assert (
      -0.15 - 1e-9 <= terms['format'] <= 1.0
      and 0 <= terms['tool'] <= 0.8
      and -0.3 - 1e-9 <= terms['anchor'] <= 0.7 + 1e-9
    )
    assert value == pytest.approx(terms['accuracy'] + terms['format'] + terms['tool'])
    if terms['compliant']:
      assert not form.read(turns).open_think


def test_the_penalty_for_an_open_think_is_the_methods_unless_a_recipe_changes_it():
  text = (
    LONG + '<answer>B</answer>'
  )  # never closed: .2 + .3 + .2 of R_base, and the anchor's penalty
  assert parts(episode(text))['anchor'] == pytest.approx(-0.3) and parts(episode(text))[
    'format'
  ] == pytest.approx(0.55)
  assert parts(episode(text), unclosed_penalty=0.0)['anchor'] == 0.0
  assert parts(episode(text), unclosed_penalty=0.0)['format'] == pytest.approx(0.7)
