"""Pools forget the oldest idle thing and never a held one; equal beginnings have equal keys."""

import numpy as np
import pytest

from paravt_jax.serving.embedded.cache import Pool, chain_keys


def test_a_held_thing_stays_and_the_longest_idle_goes_first():
  pool = Pool(3)
  places = {key: pool.acquire(key) for key in 'abc'}
  assert sorted(place for place, new in places.values()) == [0, 1, 2] and all(
    new for _, new in places.values()
  )
  pool.release('b')
  pool.release('a')
  assert pool.acquire('d') == (places['b'][0], True)
  assert 'a' in pool and 'b' not in pool
  assert pool.acquire('a') == (places['a'][0], False)
  with pytest.raises(IndexError, match='all 3 places are in use'):
    pool.acquire('e')


def test_a_thing_held_twice_is_idle_after_two_releases():
  pool = Pool(1)
  pool.acquire('a')
  assert pool.acquire('a') == (0, False)
  pool.release('a')
  assert pool.used('a') and not pool.fits(['b'])
  pool.release('a')
  assert pool.fits(['b']) and pool.available == 1


def test_fits_counts_new_things_against_places_that_the_others_leave():
  pool = Pool(2)
  pool.acquire('a')
  pool.release('a')
  assert pool.fits(['a', 'b']) and pool.fits(['b', 'c']) and not pool.fits(['a', 'b', 'c'])


def test_clearing_forgets_all_but_refuses_while_something_is_held():
  pool = Pool(2)
  pool.acquire('a')
  with pytest.raises(RuntimeError, match='1 places'):
    pool.clear()
  pool.release('a')
  pool.clear()
  assert 'a' not in pool and pool.available == 2


def test_keys_agree_exactly_as_far_as_contents_do():
  first = np.arange(10, dtype=np.int64)
  second = first.copy()
  second[5] = 99
  a, b = chain_keys(first, 4), chain_keys(second, 4)
  assert len(a) == 3 and a[0] == b[0] and a[1] != b[1] and a[2] != b[2]
  assert chain_keys(first[:9], 4)[:2] == a[:2] and chain_keys(first[:9], 4)[2] != a[2]


def test_a_place_that_one_user_had_for_itself_is_free_at_once():
  pool = Pool(2)
  kept, _ = pool.acquire('kept')
  place, new = pool.acquire('own')
  assert new and not pool.fits([], 1)
  pool.discard('own')
  assert 'own' not in pool and pool.available == 1
  assert pool.fits(['kept', 'other']) and pool.fits(['kept'], 1) and not pool.fits(['other'], 1)
  assert pool.acquire('other') == (place, True) and pool.place('kept') == kept
  pool.acquire('other')
  with pytest.raises(RuntimeError, match='has other users'):
    pool.discard('other')


def test_dropped_entries_are_those_that_nobody_uses():
  pool = Pool(3)
  pool.acquire('held')
  for key in ('a', 'b'):
    pool.acquire(key)
    pool.release(key)
  pool.drop_idle()
  assert 'held' in pool and 'a' not in pool and 'b' not in pool
  assert pool.available == 2 and pool.fits(['c', 'd'])
