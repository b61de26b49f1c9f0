"""The model of an evaluation: finds its files, identifies it, and serves it for agents."""

import asyncio
import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

import paravt_jax
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.errors import CheckpointError, ConfigError, DataError
from paravt_jax.eval import chat_model, protocols, results
from paravt_jax.models import lora
from paravt_jax.models.qwen3_vl import lora_export, weights
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.options import extended
from paravt_jax.orchestrator import canary, parts, rollouts, saved, suites
from paravt_jax.orchestrator.host import Host
from paravt_jax.orchestrator.recipes import EvalRecipe
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.rollout import chat_server
from paravt_jax.rollout.agent import Agent
from paravt_jax.rollout.control import Control
from paravt_jax.rollout.sampler import Sampler
from paravt_jax.train import checkpoint, state
from paravt_jax.train.optimizer import partition
from paravt_jax.video.store import FrameStore

# The files of a checkpoint folder that a server reads.
KEPT = ('.safetensors', '.json', '.jinja', '.txt')
# Packages whose code determines scores.
CODE = (
  'chat',
  'data',
  'eval',
  'models',
  'rewards',
  'rollout',
  'serving',
  'video',
)
BLOCK = 1 << 22
PIXELS = 16 * 16  # of one patch


@dataclasses.dataclass(frozen=True)
class Model:
  """The model to evaluate.

  parts: what identifies it, independent of its path.
  folder: its Hugging Face files. None for a server by URL, and for a run whose record `step` must
  be exported first.
  """

  name: str
  parts: Mapping[str, Any]
  folder: pathlib.Path | None
  run: pathlib.Path | None = None
  step: int | None = None


def identify(recipe: EvalRecipe) -> Model:
  """Finds the model that the recipe names, and hashes its files.

  Raises:
    ConfigError: the recipe does not name exactly one model, or a server's name or tokenizer is
    missing.
    DataError: a folder contains no model.
  """
  section = recipe.model
  given = [name for name in ('folder', 'run', 'url') if getattr(section, name)]
  if len(given) != 1:
    raise ConfigError(
      f'--config.model: got {", ".join(given) or "nothing"}, wanted one of model.folder=DIR '
      '(Hugging Face), model.run=RUN (of '
      f'experiments.rl or sft), model.url=URL with model.name and model.tokenizer'
    )
  # A model behind a server is identified by its name and its tokenizer.
  if section.url:
    if not section.name or not section.tokenizer:
      raise ConfigError(
        '--config.model.url: wanted model.name and model.tokenizer (a folder that holds '
        'tokenizer.json) with it'
      )
    parts = {
      'kind': 'chat',
      'name': section.name,
      'tokenizer': content([_file(section.tokenizer, 'tokenizer.json')]),
    }
    return Model(section.name.replace('/', '_'), parts, None)
  if section.folder:
    return _of_folder(pathlib.Path(section.folder), '--config.model.folder')
  # A run is evaluated by its export, or by its newest record if there is no export yet.
  run = pathlib.Path(section.run)
  if (run / 'hf').is_dir():
    return _of_folder(run / 'hf', '--config.model.run')
  step = checkpoint.latest(run / 'checkpoints')
  if step is None or not (run / 'config.json').is_file():
    raise DataError(
      f'--config.model.run: {run} holds neither hf/ nor config.json with a record in '
      'checkpoints/; is it a run folder?'
    )
  files = sorted(
    path for path in checkpoint.folder(run / 'checkpoints', step).rglob('*') if path.is_file()
  )
  return Model(run.resolve().name, {'kind': 'record', 'files': content(files)}, None, run, step)


def check_url(recipe: EvalRecipe) -> None:
  """Raises ConfigError if the extra request fields are not a JSON object."""
  chat_model.more(recipe.chat.more)


def _of_folder(folder: pathlib.Path, knob: str) -> Model:
  _file(folder, 'config.json', knob)
  files = sorted(path for path in folder.iterdir() if path.suffix in KEPT and path.is_file())
  if not any(path.suffix == '.safetensors' for path in files):
    raise DataError(
      f'{knob}: {folder} holds no *.safetensors; wanted a Hugging Face checkpoint folder'
    )
  resolved = folder.resolve()
  name = resolved.parent.name if resolved.name == 'hf' else resolved.name
  return Model(name, {'kind': 'folder', 'files': content(files)}, folder)


def _file(
  folder: str | pathlib.Path, name: str, knob: str = '--config.model.tokenizer'
) -> pathlib.Path:
  path = pathlib.Path(folder) / name
  if not path.is_file():
    raise DataError(f'{knob}: {path} does not exist; wanted a Hugging Face checkpoint folder')
  return path


def content(files: Sequence[pathlib.Path]) -> str:
  """Returns a fingerprint of the contents of files, with each file's last name."""

  def one(path: pathlib.Path) -> str:
    found = hashlib.blake2b(digest_size=16)
    with path.open('rb') as file:
      while block := file.read(BLOCK):
        found.update(block)
    return found.hexdigest()

  with ThreadPoolExecutor(4) as pool:
    return results.digest(list(zip([path.name for path in files], pool.map(one, files))))


def code() -> str:
  """Returns a fingerprint of the source of all packages that determine scores."""
  root = pathlib.Path(paravt_jax.__file__).parent
  modules = [path for package in CODE for path in (root / package).rglob('*.py')]
  return content(sorted([*root.glob('*.py'), *modules, pathlib.Path(suites.__file__)]))


def hf_folder(model: Model, folder: pathlib.Path) -> pathlib.Path:
  """Returns the Hugging Face folder of a model that is not served yet.

  This is the model's own folder. For a training record, it is an export into the results folder.

  Raises:
    CheckpointError: the record cannot be read.
    DataError: the run's recipe is broken.
  """
  if model.folder is not None:
    return model.folder
  if model.run is None or model.step is None:
    raise DataError(f'{model.name}: a server by URL has no files')
  target = folder / f'hf_{model.step:08d}'
  if target.is_dir():
    return target
  wanted = 'wanted the recipe of experiments.rl or experiments.sft'
  recipe, _ = saved.read(saved.TrainedModel, model.run, wanted)
  # The record's model has the sizes and the tokenizer of this folder.
  base = recipe.first.model.folder or str(parts.tiny_model(recipe.first.seed))
  params = _recorded_params(model.run / 'checkpoints', model.step, recipe, base)
  config, dtype = weights.read_config(base), weights.stored_dtype(base)
  if lora.PART in params:
    params = lora_export.folded(_config(recipe, base), params)
  weights.save_hf(target, config, params, base, dtype=dtype)
  return target


def _config(recipe: saved.TrainedModel, base: str) -> Config:
  """Returns the sizes of the model that a run trained, with its adapter."""
  config, adapter = weights.read_config(base), recipe.train.adapter
  return config if adapter is None else parts.with_adapter(config, adapter)


def _recorded_params(
  records: pathlib.Path, step: int, recipe: saved.TrainedModel, base: str
) -> dict[str, Any]:
  """Returns the parameters of a record, on the CPU and without the optimizer.

  Those that the record leaves out come from the model folder that it names.

  Raises:
    CheckpointError: the record cannot be read, or that folder is gone or has
    other parameters.
  """
  config, mesh, train = _config(recipe, base), canary.cpu(), recipe.train
  optimizer = parts.make_optimizer(
    recipe.optimizer, config, freeze_vision=train.freeze_vision, dtype=train.dtype
  )
  template = state.abstract(config, optimizer, mesh)
  left_out = checkpoint.base(records, step)
  if left_out is None:
    wanted = {'params': template.params}
    return checkpoint.restore(records, wanted, step=step, partial=True).state['params']
  trained, kept = partition(template.params, left_out.names)
  record = checkpoint.restore(records, {'params': trained}, step=step, partial=True)
  where = checkpoint.folder(records, step)
  if not pathlib.Path(left_out.folder).is_dir():
    raise CheckpointError(
      f'{where}: leaves out {", ".join(left_out.names)}, which is in {left_out.folder}; that '
      'folder does not exist, put it back'
    )
  places = jax.tree.map(lambda leaf: leaf.sharding, kept)
  added = weights.load_sharded(left_out.folder, places, optimizer.frozen_dtype)[1]
  checkpoint.refuse_other_base(where, left_out, state.fingerprint(added), left_out.folder)
  return {**record.state['params'], **added}


@dataclasses.dataclass(frozen=True)
class ServedModel:
  """A running model."""

  agent: Agent
  frames: FrameStore
  check: Callable[[], None]  # raises RolloutError if no server is left or it failed too often
  control: Control | None  # None: a server by URL that speaks the OpenAI protocol
  urls: tuple[str, ...]  # servers that report their load


@contextlib.asynccontextmanager
async def open_model(
  recipe: EvalRecipe,
  model: Model,
  protocol: protocols.Protocol,
  host: Host,
  folder: pathlib.Path,
) -> AsyncIterator[ServedModel]:
  """Starts a server for the model, or connects to the given one, and closes it afterwards.

  Raises:
    ConfigError, DataError, RolloutError: the server cannot be started or does not answer.
  """
  setup, video = AgentSetup.of(recipe), recipe.video

  def agent(sampler: Sampler | chat_model.ChatModel, frames: FrameStore) -> Agent:
    dispatch = recipe.protocol.dispatch
    return protocols.agent(protocol, dispatch, sampler, frames, recipe.agent, recipe.subagent)

  if recipe.model.url:
    options = extended(
      chat_server.ServerOptions,
      recipe.chat_server,
      url=recipe.model.url,
      model=recipe.model.name,
    )
    tok = ChatTokenizer.load(recipe.model.tokenizer)
    with parts.decode_pool(video) as pool:
      async with chat_server.Server(options, '--config.model') as server:
        await server.check()
        frames = FrameStore(video.cache_folder or None, pool, video.cache_mb << 20)
        context = rollouts.context(setup, recipe.sampling.temperature)
        sampler = chat_model.ChatModel(server, tok, context, recipe.chat)
        yield ServedModel(agent(sampler, frames), frames, server.check_up, None, ())
    return
  served = hf_folder(model, folder)
  vocab = weights.load_hf(served, only=())[0].text.vocab
  tok, proof = ChatTokenizer.load(served), None
  # The weights of a server by URL are unknown, so a canary proves them.
  if recipe.server.kind == 'url' and recipe.eval.canary_tokens:
    patches, tokens = video.max_pixels // PIXELS, recipe.eval.canary_tokens
    proof = await asyncio.to_thread(canary.of_folder, served, patches, tokens)
  opening = rollouts.open_rollouts(setup, host, served, tok, vocab, folder, proof, always=True)
  async with opening as server:
    urls = tuple(member.url for member in server.fleet.members)
    made = agent(server.samplers[0], server.frames)
    yield ServedModel(made, server.frames, server.check, server.control, urls)
