"""An order that a seed fixes and one integer resumes."""

import pytest

from paravt_jax.data.order import EpochOrder
from paravt_jax.errors import ConfigError


def test_every_epoch_holds_each_item_once_in_an_order_of_its_own():
  pairs = EpochOrder(50, 0).take(150)
  assert [epoch for epoch, _ in pairs] == [0] * 50 + [1] * 50 + [2] * 50
  epochs = [[item for epoch, item in pairs if epoch == e] for e in range(3)]
  assert all(sorted(items) == list(range(50)) for items in epochs)
  assert len({tuple(items) for items in epochs} | {tuple(range(50))}) == 4


def test_the_seed_fixes_the_order():
  assert EpochOrder(50, 3).take(60) == EpochOrder(50, 3).take(60)
  assert EpochOrder(50, 3).take(60) != EpochOrder(50, 4).take(60)
  assert [item for _, item in EpochOrder(6, 3).take(6)] == [1, 2, 5, 4, 0, 3]


@pytest.mark.parametrize('cut', [0, 7, 10, 23])
def test_a_position_continues_the_same_sequence(cut):
  whole = EpochOrder(10, 1).take(30)
  first = EpochOrder(10, 1)
  first.take(cut)
  assert first.position == cut
  assert EpochOrder(10, 1, first.position).take(30 - cut) == whole[cut:]


def test_looking_does_not_move():
  order = EpochOrder(10, 1)
  assert order.at(12) == order.take(13)[12]
  assert order.position == 13


def test_an_empty_data_set_is_refused():
  with pytest.raises(ConfigError, match='at least one'):
    EpochOrder(0, 1)
