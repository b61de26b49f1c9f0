"""What binds a run that continues: every knob that trains is on one of two lists."""

import importlib

import pytest

from paravt_jax.orchestrator import binding, run_folder
from tests.recipes import typed

CASES = [('para_grpo', scale) for scale in ('tiny', '2b', '8b', '8b_split')] + [
  ('sft', scale) for scale in ('tiny', '2b', '8b')
]
# What changes the numbers: knobs, or sections with a dot at the end; below cold_start the same.
BOUND = (
  'name',
  'seed',
  'model.folder',
  'data.kind',
  'data.train',
  'data.eval',
  'data.manifest',
  'data.question_types',
  'data.sources',
  'data.max_rows',
  'video.min_pixels',
  'video.max_pixels',
  'video.backend',
  'frames.',
  'sources.',
  'sources',
  'sampling.',
  'agent.',
  'subagent.',
  'reward.',
  'judge.model',
  'judge.more',
  'judge.max_tokens',
  'rollout.prompts',
  'rollout.group_size',
  'rollout.staleness',
  'rollout.subagent_credit',
  'rl.',
  'optimizer.',
  'train.dtype',
  'train.freeze_vision',
  'train.row_tokens',
  'train.row_images',
  'train.image_patches',
  'train.row_large_images',
  'train.large_image_patches',
  'batches.lookahead',
  'batches.refill',
  'publish.dtype',
  'eval.questions',
  'eval.budgets',
  'eval.grounding_threshold',
  'eval.bootstrap',
  'world.seed',
  'world.scene.',
  'world.questions.',
  'world.traces.',
  'world.corpus.',
)
CUT = ('train.rows', 'train.micro_batches')  # free in RL; their product binds SFT
STEPS = {'para_grpo': 'rollout.steps', 'sft': 'steps'}


def recipe(name, scale):
  return run_folder.to_json(typed(importlib.import_module(f'configs.{name}').get_config(scale)))


def other(value):
  """Another value of the same type."""
  kinds = {
    bool: lambda v: not v,
    int: lambda v: v + 1,
    float: lambda v: v + 0.5,
    str: lambda v: f'{v}x',
    list: lambda v: [*v, 1],
  }
  return kinds.get(type(value), lambda v: 1)(value)


def changed(values, **knobs):
  """The recipe with other values of some knobs, '__' for dots."""
  out = dict(values)
  for name, value in knobs.items():
    section, _, rest = name.partition('__')
    out[section] = changed(out[section], **{rest: value}) if rest else value
  return out


@pytest.mark.parametrize(('name', 'scale'), CASES)
def test_every_knob_binds_or_is_free_as_it_is_listed(name, scale):
  before = recipe(name, scale)
  for knob, value in binding.flat(before).items():
    bare = knob.removeprefix('cold_start.')
    listed = [one for one in BOUND if bare == one or (one.endswith('.') and bare.startswith(one))]
    bound, free = binding.changes(
      before, changed(before, **{knob.replace('.', '__'): other(value)})
    )
    if bare in CUT and (name == 'sft' or bare != knob):
      assert bound and not free
    elif (
      bare == 'optimizer.total_steps'
      and binding.value(before, knob.replace('total_steps', 'schedule')) == 'constant'
    ):
      assert free and not bound
    elif knob == 'cold_start.steps':
      assert bound and not free  # another model to begin from
    elif knob == 'run.folder':
      assert not free and not bound  # where it lies is no news
    elif bare == 'train.adapter.rank':
      assert f'{knob}: None -> 1' in bound and not free  # none before
    elif bare.startswith('train.adapter.'):
      assert free and not bound  # of an adapter that is not there
    elif listed:
      assert bound[0] == f'{knob}: {value} -> {other(value)}' and not free
    else:
      assert free and not bound, f'{knob}: list it in BOUND of this test, or in binding.FREE'
      assert binding.is_free(knob) or bare in CUT or knob == STEPS[name]


def test_the_cut_of_a_batch_is_free_where_the_batch_stays_the_same():
  sft, rl = recipe('sft', '8b'), recipe('para_grpo', '8b')
  assert binding.changes(sft, changed(sft, train__rows=16, train__micro_batches=2)) == (
    [],
    ['train.micro_batches: 4 -> 2', 'train.rows: 8 -> 16'],
  )
  assert binding.changes(sft, changed(sft, train__micro_batches=8))[0] == [
    'train.rows x train.micro_batches: 32 -> 64'
  ]
  assert binding.changes(rl, changed(rl, train__rows=16, train__micro_batches=2))[0] == []


def test_an_adapter_binds_and_an_older_run_without_the_section_goes_on():
  plain, adapted = (recipe('para_grpo', scale) for scale in ('8b', '8b_lora'))
  older = {**plain, 'train': {k: v for k, v in plain['train'].items() if k != 'adapter'}}
  assert binding.changes(older, plain)[0] == []
  for knob, value in (('rank', 64), ('alpha', 16.0), ('products', ['q', 'v'])):
    bound, free = binding.changes(adapted, changed(adapted, **{f'train__adapter__{knob}': value}))
    assert len(bound) == 1 and bound[0].startswith(f'train.adapter.{knob}: ') and not free


def test_the_8b_recipe_goes_on_split_and_on_fewer_devices():
  assert binding.changes(recipe('para_grpo', '8b'), recipe('para_grpo', '8b_split'))[0] == []
  assert binding.changes(recipe('sft', '8b'), recipe('sft', '2b'))[0] == []


def test_a_constant_schedule_has_no_end_and_a_cosine_has():
  rl = recipe('para_grpo', 'tiny')
  assert binding.changes(rl, changed(rl, optimizer__total_steps=500)) == (
    [],
    ['optimizer.total_steps: 120 -> 500'],
  )
  cosine = changed(rl, optimizer__schedule='cosine')
  assert binding.changes(cosine, changed(cosine, optimizer__total_steps=500))[0] == [
    'optimizer.total_steps: 120 -> 500'
  ]
  assert binding.changes(rl, cosine)[0] == [
    'optimizer.schedule: constant -> cosine',
    'optimizer.total_steps: None -> 120',
  ]


def test_a_recipe_is_compared_as_json_whatever_it_came_from():
  assert binding.changes({'a': (1, (2, 3))}, {'a': [1, [2, 3]]}) == ([], [])
  assert binding.changes({'a': {}}, {'a': {'b': 1}})[0] == ['a: {} -> None', 'a.b: None -> 1']


def test_what_makes_steps_says_how_many():
  assert (
    binding.steps_knob(recipe('sft', 'tiny')) == 'steps'
    and binding.steps_knob(recipe('para_grpo', 'tiny')) == 'rollout.steps'
  )
  assert binding.steps_knob({'steps': 'split,caption'}) is None
