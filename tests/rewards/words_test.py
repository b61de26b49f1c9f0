"""Which short texts are the same answer: signs that change a meaning stay, decoration goes."""

import pytest

from paravt_jax.rewards.words import exact_match, normalise, token_f1


@pytest.mark.parametrize(
  'said, gold',
  [
    ('7', '-7'),
    ('7', '7%'),
    ('7', '$7'),
    ('€7', '$7'),
    ('20', '20°'),
    ('1/4', '14'),
    ('A/C', 'AC'),
    ('C', 'C#'),
    ('C', 'C++'),
    ('3-5', '35'),
    ('2:30', '230'),
    ('104', '10^4'),
    ('x2', 'x²'),
    ('1.2.3', '123'),
    ('<5', '5'),
    ('a', 'the'),
    ('+', '-'),
  ],
)
def test_signs_that_make_another_answer_stay(said, gold):
  assert exact_match(said, gold) == 0.0
  assert token_f1(said, gold) == 0.0


@pytest.mark.parametrize(
  'said, gold',
  [
    ('7.0', '7'),
    ('.5', '0.50'),
    ('1,000', '1000'),
    ('$1,000.00', '$1000'),
    ('7 %', '7%'),
    ('(−7)', '-7'),
    ('7.', '7'),
    ('3–5', '3-5'),
    ('10³', '10^3'),
    ('red-blue', 'Red, blue!'),
    ('red,blue', 'red blue'),
    ('it’s', "it's"),
    ('cafe\u0301', 'café'),
    ('A', 'a'),
    ('the', 'the'),
    ('+', '+'),
    ('-', '-'),
    ('- 7', '7'),
    ('20 °C', '20°C'),
    ('"7"', '7'),
  ],
)
def test_what_only_decorates_goes(said, gold):
  assert exact_match(said, gold) == token_f1(said, gold) == 1.0


def test_a_comma_or_hyphen_separates_words_and_articles_go_where_something_is_left():
  assert normalise('The well-known, red C++ of an A/B') == [
    'well',
    'known',
    'red',
    'c++',
    'of',
    'a/b',
  ]
  assert normalise('the a') == ['the', 'a']
  assert normalise('covid-19') == ['covid-19']


def test_a_currency_sign_behind_its_number_holds_across_a_space_and_per_mille_is_a_unit():
  assert normalise('5 €') == normalise('5€') == ['5€']
  assert normalise('5‰') != normalise('5')
