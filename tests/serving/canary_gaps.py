"""Prints how far engines are from float32 on the same weights: 28 layers, random, a few seeds.

    python -m tests.serving.canary_gaps          # with the embedded server: some minutes

Rows are engines by dtype. Columns are mean / largest |log-prob - log-prob in float32| in nats of
the most likely token and of tokens sampled at temperature 1, after a prompt with a picture and
after the same words without one.
"""

import functools
import os
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import Qwen3VLForConditionalGeneration

from paravt_jax.models.qwen3_vl import model, weights
from paravt_jax.serving.embedded import launch
from paravt_jax.serving.protocol import GenerateRequest
from paravt_jax.testing import tiny
from tests.models.qwen3_vl import oracle
from tests.serving import canary_kinds as kinds
from tests.serving.contract import drive

WORDS = 8  # prompts of each seed
NEW = 12  # tokens after each


def prompts(seed: int, picture: bool) -> list[list[int]]:
  """Expanded ids of WORDS prompts."""
  drawn = np.random.default_rng([seed, 7]).integers(100, 500, (WORDS, 10)).tolist()
  image = [kinds.START, *[kinds.IMAGE] * 16, kinds.END] if picture else []
  return [[*ids[:3], *image, *ids[3:]] for ids in drawn]


@functools.partial(jax.jit, static_argnames=('dtype', 'backend'))
def _logprobs(params, inputs, dtype, backend):
  x_BTD = model.hidden(
    kinds.CONFIG,
    params,
    inputs,
    dtype=jnp.dtype(dtype),
    remat='none',
    freeze_vision=True,
    backend=backend,
  )
  kernel_DV = model.head(params, kinds.CONFIG).astype(dtype)
  logits_TV = jnp.einsum('TD,DV->TV', x_BTD[0], kernel_DV, preferred_element_type=jnp.float32)
  return jax.nn.log_softmax(logits_TV.at[:, jnp.asarray(kinds.BANNED)].set(-jnp.inf))


def scorer(params, images, dtype, backend):
  """Returns `f(ids) -> float32[T, V]`, log-probs after each id."""

  def run(ids):
    inputs = model.single_inputs(kinds.CONFIG, np.array(ids, np.int32), images)
    return np.asarray(_logprobs(params, inputs, dtype=dtype, backend=backend))

  return run


def torch_scorer(folder, images, dtype):
  """The same of transformers."""
  theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

  def run(ids):
    with torch.no_grad():
      logits = oracle.torch_logits(theirs, ids, images=images).float()
    logits[:, list(kinds.BANNED)] = -torch.inf
    return torch.log_softmax(logits, -1).numpy()

  return run


def say(exact, prompt, temperature, seed):
  """NEW ids after a prompt, by the float32 scorer."""
  rng, ids = np.random.default_rng(seed), list(prompt)
  for _ in range(NEW):
    # padded to one length, so that one program serves all
    last_V = exact([*ids, *[100] * (len(prompt) + NEW - len(ids))])[len(ids) - 1]
    noise = rng.gumbel(size=last_V.shape) * temperature
    ids.append(int((last_V + noise).argmax()))
  return ids


def gaps_of(found, exact, texts, start) -> list[float]:
  """|log-prob - in float32| of all ids after the prompts."""
  gaps = []
  for ids in texts:
    places = np.arange(start - 1, len(ids) - 1)
    chosen = np.array(ids)[start:]
    gaps += np.abs(found(ids) - exact(ids))[places, chosen].tolist()
  return gaps


def served_gaps(server, exact, given, images, temperature) -> list[float]:
  """The same of a server's own replies, which samples by itself."""
  gaps = []
  for number, prompt in enumerate(given):
    plain = [x for i, x in enumerate(prompt) if x != kinds.IMAGE or prompt[i - 1] != kinds.IMAGE]
    asked = GenerateRequest(
      f'g{number}', plain, images, temperature, 1.0, -1, NEW, (), kinds.BANNED, number, True
    )
    status, reply = server.call('/generate', asked.to_json())
    assert status == 200, reply
    ids = [*prompt, *reply['output_ids']]
    own = np.array([one[0] for one in reply['meta_info']['output_token_logprobs']])
    places = np.arange(len(prompt) - 1, len(ids) - 1)
    gaps += np.abs(own - exact(ids)[places, reply['output_ids']]).tolist()
  return gaps


def measure(seeds: int, embedded: bool) -> dict[str, dict[str, list[float]]]:
  """Gaps in nats by engine and token class."""
  table: dict[str, dict[str, list[float]]] = {}
  with tempfile.TemporaryDirectory() as name:
    root = pathlib.Path(name)
    tiny.build_tokenizer(root / 'files')
    for seed in range(seeds):
      params, folder = kinds.weights(seed), root / str(seed)
      weights.save_hf(folder, kinds.CONFIG, params, root / 'files')
      servers = _servers(folder, root) if embedded and seed == 0 else {}
      for picture in (True, False):
        images = (kinds.PICTURE,) if picture else ()
        exact = scorer(params, images, 'float32', 'xla')
        engines = {
          'learner, float32': scorer(params, images, 'float32', 'chunked'),
          'learner, bfloat16': scorer(params, images, 'bfloat16', 'chunked'),
          'transformers, float32': torch_scorer(folder, images, torch.float32),
          'transformers, bfloat16': torch_scorer(folder, images, torch.bfloat16),
        }
        given = prompts(seed, picture)
        for temperature, kind in ((0.0, 'most likely'), (1.0, 'sampled')):
          column = f'{kind}, {"picture" if picture else "text"}'
          texts = [say(exact, prompt, temperature, seed) for prompt in given]
          for engine, found in engines.items():
            gaps = gaps_of(found, exact, texts, len(given[0]))
            table.setdefault(engine, {}).setdefault(column, []).extend(gaps)
          for engine, server in servers.items():
            gaps = served_gaps(server, exact, given, images, temperature)
            table.setdefault(engine, {}).setdefault(column, []).extend(gaps)
      for server in servers.values():
        server.process.stop(5.0)
  return table


def _servers(folder: pathlib.Path, root: pathlib.Path) -> dict[str, drive.Served]:
  made = {}
  for dtype in ('float32', 'bfloat16'):
    options = drive.embedded_options(
      folder, dtype=dtype, max_image_patches=64, lanes=((128, 4),), pages=32
    )
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(drive.ROOT)}
    process = launch.launch(
      options,
      env=environment,
      log=root / f'{dtype}.log',
      deadline_s=900,
      parent_pid=os.getpid(),
    )
    made[f'embedded server, {dtype}'] = drive.Served(
      'embedded', process, folder, kinds.CONFIG, {}, root
    )
  return made


def text_of(table: dict[str, dict[str, list[float]]]) -> str:
  """The table in Markdown."""
  columns = list(next(iter(table.values())))
  lines = [f'| engine | {" | ".join(columns)} |', '|---' * (len(columns) + 1) + '|']
  for engine, row in sorted(table.items()):
    cells = [f'{np.mean(row[name]):.1g} / {np.max(row[name]):.1g}' for name in columns]
    lines.append(f'| {engine} | {" | ".join(cells)} |')
  return '\n'.join(lines)


if __name__ == '__main__':
  print(text_of(measure(2, '--no-server' not in sys.argv)))
