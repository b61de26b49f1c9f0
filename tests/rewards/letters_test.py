"""Which letter a text chooses: the kinds of evidence, and what is set aside."""

import time

import pytest

from paravt_jax.rewards.letters import chosen_letter


@pytest.mark.parametrize(
  'said, letter',
  [
    ('The correct answer is D. Option B is incorrect because nobody runs.', 'D'),
    ('Answer: C\nReason: option E shows a cat, but there is none.', 'C'),
    ('The best option is **A. The cat**. Option **D** shows a dog.', 'A'),
    ('B is correct.', 'B'),
    ('Option A is incorrect. Option B is correct.', 'B'),
    ('I choose C over A.', 'C'),
    ('I would choose option C rather than D', 'C'),
    ("I'd go with D", 'D'),
    ('My choice: D', 'D'),
    ('The answer would be E', 'E'),
    ('The answer to the question, based on the video, is C.', 'C'),
    ('So the final answer is:\n**D**', 'D'),
    ('C is the answer; D is not.', 'C'),
    ('Therefore, B is the most likely answer', 'B'),
    ('$\\boxed{B}$ since A shows', 'B'),
    ('The correct answer is indeed C', 'C'),
    ('the correct option is (b)', 'B'),
  ],
)
def test_the_last_answer_statement_decides_whatever_is_said_of_others(said, letter):
  assert chosen_letter(said) == letter


@pytest.mark.parametrize(
  'said',
  ['The answer is A or B', 'A or C is correct', 'Both A and B are correct', 'The answer is A, B'],
)
def test_a_statement_that_joins_two_letters_chooses_none(said):
  assert chosen_letter(said) is None


@pytest.mark.parametrize(
  'said, letter',
  [
    ('The answer is not A, it is B.', 'B'),
    ("The answer isn't A; option C", 'C'),
    ('answer is B rather than D', 'B'),
    ('neither A nor C; B', 'B'),
    ('A is right and B is wrong', 'A'),
    ('The answer is B, A and C are wrong.', 'B'),
    ('A, C, and D are wrong. B', 'B'),
    ('B, since A cannot be', 'B'),
    ('C fits. The other options (A, B, D) do not.', 'C'),
    ('Option A (the cat) is not supported; option B is.', 'B'),
    ('I am confident that it is D, not B or C', 'D'),
    ('(C) the dog, unlike (A)', 'C'),
    ('The remaining option is B', 'B'),
  ],
)
def test_a_letter_that_is_set_aside_is_no_answer(said, letter):
  assert chosen_letter(said) == letter


@pytest.mark.parametrize(
  'said, letter',
  [
    ('B. The man opens the door. Option A is wrong since he never leaves.', 'B'),
    ('B. Vitamin C', 'B'),
    ('A: the man', 'A'),
    ('First A, then C.\nB. The man', 'B'),
    ('First A, then C.\n**B**', 'B'),
    ('B\n\nA shows a dog, C a cat.', 'B'),
  ],
)
def test_a_letter_that_leads_the_text_or_its_last_line_comes_before_other_mentions(said, letter):
  assert chosen_letter(said) == letter


def test_a_mention_as_an_option_comes_before_bare_letters_and_two_mentions_choose_none():
  assert chosen_letter('With vitamin C in mind, option B fits') == 'B'
  assert chosen_letter('With vitamin C in mind, option B and option D fit') is None


@pytest.mark.parametrize(
  'said, letter',
  [
    ("I don't think the answer is A, so B.", 'B'),
    ('I would not choose A.', None),
    ('We should not select (A). (B) fits.', 'B'),
    ('The answer is unlikely to be A. It is B', 'B'),
    ('B as opposed to A', 'B'),
    ('Option A, the red car, is wrong. Option B, the blue car, is right.', 'B'),
  ],
)
def test_a_denied_choice_and_an_option_with_its_text_between_commas_are_set_aside(said, letter):
  assert chosen_letter(said) == letter


@pytest.mark.parametrize(
  'said',
  [
    'The answer is A (or B)',
    'the answer is A or possibly B',
    'The answer is A and/or B',
    'Answer: A+B',
    'A, B is correct',
  ],
)
def test_letters_that_are_joined_in_other_ways_choose_none_either(said):
  assert chosen_letter(said) is None


@pytest.mark.parametrize(
  'said, letter',
  [
    ('Of the options A, B, C and D, B is correct.', 'B'),
    ('The answer is D, since both A and B are correct.', 'D'),
    ('Option A: wrong\nOption B: correct\nOption C: wrong', None),
  ],
)
def test_a_list_of_options_before_the_praised_one_is_no_statement_of_its_own(said, letter):
  assert chosen_letter(said) == letter


@pytest.mark.parametrize(
  'said, letter',
  [
    ('答案是B', 'B'),
    ('选择D。', 'D'),
    ('答案是B，而不是C', 'B'),
    ('（b）', 'B'),
    ('B、狗。选项A是猫', 'B'),
    ('选项 A 是正确的', 'A'),
  ],
)
def test_chinese_text_around_a_letter_leaves_it_alone(said, letter):
  assert chosen_letter(said) == letter


@pytest.mark.parametrize(
  'piece',
  ['A, ', 'options A, B, C and ', 'A or ', 'not A' + ' ' * 5000, "don't think the answer is "],
)
def test_a_long_hostile_text_takes_linear_time(piece):
  began = time.process_time()
  chosen_letter(piece * (100_000 // len(piece)))
  assert time.process_time() - began < 2.0
