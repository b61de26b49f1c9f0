"""Small worlds for tests."""

import dataclasses

from paravt_jax.data.world import corpus, questions, scene, traces

SCENE = scene.SceneOptions(
  seconds=128,
  fps=4,
  pixels=64,
  events=(6, 10),
  event_seconds=(3, 4),
  gap=4,
  margin=6,
  colours=8,
  shapes=False,
  noise=14.0,
)
QUESTIONS = questions.QuestionOptions(
  weights={'oe1': 4, 'oe2': 2, 'oe3': 1, 'mcq': 2, 'tvg': 2}, nothing=0.1, clearance=2, choices=4
)
TRACES = traces.TraceOptions(
  tolerance=1, always_call=0.1, reach=2, grounding_reach=5, recovery=0.05, walk_options=False
)
CORPUS = corpus.CorpusOptions(
  videos=4,
  heldout_videos=2,
  rl_tasks=24,
  heldout_tasks=10,
  sft_rows={'trace': 30, 'subagent': 20, 'lookup1': 6, 'lookup5': 6, 'glance16': 6},
  budgets=(4, 8, 16, 32, 64),
  loose=0.3,
  stray=0.1,
  asked=10,
  videos_per_archive=2,
)
WORLD = corpus.WorldOptions(SCENE, QUESTIONS, TRACES, CORPUS)


def with_corpus(**changes) -> corpus.WorldOptions:
  """WORLD with other row counts."""
  return dataclasses.replace(WORLD, corpus=dataclasses.replace(CORPUS, **changes))
