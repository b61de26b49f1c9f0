"""What the suite `images` sends: the frames of a step, as often as rollouts show them."""

from configs import bench as recipe
from experiments.bench import images
from tests import recipes


def test_a_step_shows_the_overview_in_each_turn_and_crops_of_whole_seconds():
  knobs = recipes.typed(
    recipe.get_config(),
    images__rollouts=2,
    images__turns=3,
    images__subagents=5,
    images__frames=4,
    images__crop_frames=3,
    images__seconds=10,
    images__side=32,
  ).images
  overview, seconds = video = images.film(knobs, 0)
  assert len({frame.tobytes() for frame in (*overview, *seconds)}) == 14
  waves = list(images.step(knobs, 0, video))
  assert [len(wave) for wave in waves] == [2, 10] * 3
  assert all(shown is overview for wave in waves[::2] for shown in wave)
  places = {id(frame): second for second, frame in enumerate(seconds)}
  for wave in waves[1::2]:
    for crop in wave:
      first = places[id(crop[0])]
      assert [places[id(frame)] for frame in crop] == [first, first + 1, first + 2]


def test_the_servers_sizes_hold_every_context_and_every_frame():
  knobs = recipes.typed(recipe.get_config()).images
  found = images.sizes(knobs, 362)
  (short, many), (long, few) = found['lanes']
  assert short >= 16 * 51 + 32 and long >= 64 * 51 + 32
  assert (many, few) == (40, 8) and found['max_image_patches'] == 196
  assert found['image_slots'] > 362 and found['image_cache_mb'] << 20 > 362 * 224 * 224 * 3
