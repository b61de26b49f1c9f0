"""Several crops of a turn against a single one, on a real video."""

import dataclasses

from paravt_jax.orchestrator.survival_crops import CropCase, parallel_crops

CASE = CropCase(crops=3, workers=2, repeats=1, size=(48, 64), latency_s=1.0, deadline_s=60.0)


def test_the_ratio_is_that_of_the_two_times_and_latency_is_shared(tmp_path):
  found = parallel_crops(tmp_path, CASE)
  assert found['time_ratio'] == found['several_seconds'] / found['one_seconds']
  assert found['one_seconds'] >= 1.0 and found['time_ratio'] < 2  # in turn: 3


def test_without_latency_decoding_is_what_takes_time(tmp_path):
  found = parallel_crops(tmp_path, dataclasses.replace(CASE, latency_s=0.0))
  assert found['one_seconds'] > 0
  assert found['time_ratio'] == found['several_seconds'] / found['one_seconds']
