"""What the compiler says of an embedded server's programs."""

import dataclasses

import jax
import pytest

from paravt_jax import options
from paravt_jax.orchestrator.plan import ahead, build, engine, table
from paravt_jax.serving.embedded import compiled
from tests.orchestrator.plan.requests import request


def tiny(**changes):
  return request('rl:tiny', 'cpu:1', server__embedded__attention='pages', **changes)


@pytest.fixture(scope='module')
def found():
  """The figures of a tiny server's programs, compiled in this process."""
  asked = tiny()
  section = asked.recipe.server.embedded
  given = {
    'options': options.to_dict(section),
    'model': asked.model.to_hf('bfloat16'),
    'count': 1,
    'platform': 'cpu',
    'dump': '',
    'kept': '',
  }
  return {name: engine.compile_asked({**given, 'program': name}) for name in engine.PROGRAMS}


def test_memory_holds_all_that_a_server_has(found):
  asked = tiny()
  s, weights = engine.shapes_and_weights(asked.recipe.server.embedded, asked.model, 'cpu')
  held = ahead.bytes_of_forms((weights, compiled.pool(s))) / 2**30
  features = ahead.bytes_of_forms(compiled.features(s)) / 2**30
  assert found['decode']['arguments_gib'] == pytest.approx(held, rel=0.05)
  assert found['prefill']['arguments_gib'] == pytest.approx(held + features, rel=0.05)
  for name in engine.PROGRAMS:
    assert found[name]['memory_gib'] >= found[name]['arguments_gib']


def test_the_forms_of_weights_are_those_that_a_server_prepares():
  from paravt_jax.models.qwen3_vl import model as models
  from paravt_jax.serving.embedded import programs

  config = tiny().model
  made = programs.prepare(config, models.init(config, jax.random.key(0)), 'bfloat16')
  forms = programs.abstract_params(config, 'bfloat16')
  assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
    lambda x: (x.shape, x.dtype), forms
  )


def test_figures_are_those_of_a_full_server(found, monkeypatch):
  monkeypatch.setattr(ahead, 'ask', lambda program, name, *rest: {**found[name], 'target': 'cpu:1'})
  plan = build.make_plan(tiny())
  compiler = ahead.Compiler('', 'cpu:1', {})
  got = engine.compile_server(plan, compiler)
  section = plan.request.recipe.server.embedded
  slots = engine.busiest(section)[1]
  text = plan.request.model.text
  token = 2 * text.layers * text.kv_heads * text.head_dim * 4
  pages = (section.pages + 1) * section.chunk_tokens * token
  assert got is not None
  # pages, and weights of float32 beside them
  assert got.least_bytes_per_token * slots > pages
  assert got.least_bytes_per_token * slots < pages + 4 * 10e6
  moved = found['decode']['hbm_tb'] * 1e12 / (slots * section.decode_steps)
  assert got.bytes_per_token == pytest.approx(moved)
  assert got.form == 'pages' and got.error == ''
  assert got.memory_gib >= found['prefill']['memory_gib']
  lines = '\n'.join(table.to_text(plan, (), None, got).splitlines()[-4:])
  assert 'server  compiled for 1 of cpu:1' in lines and 'with one page of each context' in lines
  assert table.to_json(plan, (), None, got)['compiled_server'] == dataclasses.asdict(got)


@pytest.mark.parametrize('scale', ['sft:8b', 'rl:8b', 'rl:8b_split'])
def test_a_recipe_without_an_embedded_server_has_no_figures(scale):
  plan = build.make_plan(request(scale))
  assert engine.compile_server(plan, ahead.Compiler('', 'h100:8', {})) is None
