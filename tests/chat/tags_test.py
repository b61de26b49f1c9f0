"""Thinks and answers in one turn."""

from paravt_jax.chat import tags


def test_a_think_is_closed_when_its_end_comes_before_the_next_beginning():
  first, second = tags.thinks('<think>a<think>b</think>c')
  assert (first.body, first.closed) == ('a', False)
  assert (second.body, second.closed) == ('b', True)


def test_an_unclosed_think_runs_to_the_next_tag_or_the_end():
  assert tags.thinks('<think>ab<answer>B</answer>')[0].body == 'ab'
  assert tags.thinks('<think>ab <b>')[0].body == 'ab <b>'


def test_other_tags_inside_a_closed_think_are_text():
  text = '<think>an <answer>A</answer> <tool_call></think><answer>B</answer>'
  assert [answer.body for answer in tags.answers(text)] == ['B']
  assert all(tags.balanced(text, name) for name in ('think', 'answer', 'tool_call'))


def test_an_answer_is_closed_when_its_end_comes_before_the_next_answer():
  assert [(a.body, a.closed) for a in tags.answers('<answer>A<answer>B</answer>')] == [
    ('A', False),
    ('B', True),
  ]
  assert [(a.body, a.closed) for a in tags.answers('<answer>A b')] == [('A b', False)]
  assert tags.answers('</answer>') == ()


def test_balance_is_in_order():
  assert tags.balanced('', 'answer') and tags.balanced('<answer></answer>', 'answer')
  assert not tags.balanced('</answer><answer>', 'answer')
  assert not tags.balanced('<answer>', 'answer') and not tags.balanced(
    '<answer></answer></answer>', 'answer'
  )
  assert not tags.balanced('<think>a', 'think') and not tags.balanced('a</think>', 'think')


def test_a_turn_has_an_answer_when_its_last_block_holds_text():
  assert tags.has_answer('<think>a</think><answer>B</answer>') and tags.has_answer(
    '<think>a <answer>B'
  )
  assert not tags.has_answer('<think>a</think><answer> </answer>') and not tags.has_answer(
    '<answer>B</answer></think>'
  )
  assert not tags.has_answer('<answer>B</answer><answer></answer>') and not tags.has_answer('B')


def test_after_think_is_the_whole_turn_without_a_closed_think():
  assert tags.after_think('<think>abc') == 0
  assert tags.after_think('<think>a</think>b</think>c') == len('<think>a</think>b</think>')
