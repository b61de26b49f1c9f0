"""The engine without HTTP: lanes of one shape share their requests, and which of them one gets does
not change its result.
"""

import queue
import threading
from typing import Any

import pytest

from paravt_jax.models.qwen3_vl import weights
from paravt_jax.serving.embedded.engine import Engine, Job
from paravt_jax.serving.embedded.options import ServerOptions
from paravt_jax.serving.embedded.prompts import expand
from paravt_jax.serving.protocol import GenerateRequest, parse_generate
from paravt_jax.testing import tiny
from tests import patience

CHUNK = 16
NEW = 10
JOBS = 6


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp('engine') / 'model'
  tiny.build_model_folder(folder, seed=5)
  return weights.load_hf(folder)


def engine(model, lanes, layout=None, **changes) -> Engine:
  given: dict[str, Any] = {
    'model_path': '',
    'served_name': 'tiny',
    'think_prefix': '',
    'host': '127.0.0.1',
    'port': 0,
    'port_file': None,
    'api_key': None,
    'dtype': 'float32',
    'eos_token_ids': (),
    'lanes': lanes,
    'attention': 'auto',
    'chunk_tokens': CHUNK,
    'prefill_rows': 2,
    'pages': 32,
    'decode_steps': 4,
    'image_batch': 1,
    'image_slots': 1,
    'max_image_patches': 4,
    'bias_rows': 1,
    'max_stop_ids': 1,
    'image_cache_mb': 4,
    'max_body_mb': 1,
    'tensor_parallel': 1,
    'compile_cache': None,
    'parent_pid': None,
  }
  return Engine(*model, 0, ServerOptions(**{**given, **changes}), layout=layout)


def answers(engine: Engine, numbers, prompts=None) -> dict[int, tuple]:
  """(ids, log-probs) by number of the job; all of them wait before the engine starts."""
  done: queue.SimpleQueue = queue.SimpleQueue()
  for n in numbers:
    ids = prompts[n] if prompts else list(range(200 + 20 * n, 200 + 20 * n + 18 + n))
    body = GenerateRequest(str(n), ids, (), 0.7, 1.0, -1, NEW, (), (), n, True).to_json([])
    prompt = expand(ids, (), engine.config.image_id, CHUNK)
    engine.submit(
      Job(
        str(n),
        prompt,
        prompt,
        0,
        parse_generate(body, engine.config.text.vocab),
        n,
        frozenset(),
        lambda reply, _, n=n: done.put((n, (reply.output_ids, reply.logprobs))),
      )
    )
  life = threading.Thread(target=engine.run, daemon=True)
  life.start()
  found = dict(done.get(timeout=patience.seconds(300)) for _ in numbers)
  engine.call(engine.stop, lambda _: None)
  life.join(60)
  return found


def test_lanes_of_one_shape_run_side_by_side_and_give_the_bits_that_one_alone_gives(model):
  together = engine(model, ((64, 2), (64, 2), (64, 2)))
  assert (
    len(together.lanes) == 1 and together.lanes[0].slots == JOBS and together.lanes[0].free == JOBS
  )
  crowd = answers(together, range(JOBS))
  assert together.lanes[0].free == JOBS and together.counts['sampled_tokens'] == JOBS * NEW
  alone = {n: answers(engine(model, ((64, 2),)), [n])[n] for n in (0, 5)}
  assert {n: crowd[n] for n in alone} == alone


def test_a_lane_without_anybody_is_not_decoded(model):
  found = engine(model, ((64, 2), (64, 2), (64, 2)))
  answers(found, range(2))
  assert found.counts['decode_calls'] == 3  # 10 tokens, 4 per dispatch, one lane of three
