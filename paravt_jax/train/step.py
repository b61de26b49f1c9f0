"""The learner's step: one jitted SPMD program over a mesh (data, fsdp, context, tensor), the same
at every scale.

A batch is a dict of arrays [M, R, ...]: M micro-batches of R packed rows
(packing.Packed.micro_batches), of which `used` are run. Gradients are summed in float32 over the
micro-batches of a loss that is normalised by the token count of the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from paravt_jax.errors import ConfigError
from paravt_jax.models import sharding
from paravt_jax.models.qwen3_vl import model
from paravt_jax.models.qwen3_vl.config import Config
from paravt_jax.options import COUNT, INSIDE, POSITIVE, Options, above, from_, one_of
from paravt_jax.rl import advantages, losses
from paravt_jax.train import head, metric_sums, placement
from paravt_jax.train.optimizer import Optimizer, at_step, partition
from paravt_jax.train.state import State, referred, shardings

Batch = Mapping[str, jax.Array]
INPUTS = (
  'tokens',
  'positions',
  'segments',
  'branches',
  'visual_index',
  'predecessor',
  'patches',
  'grids',
)
LARGE_IMAGES = (
  'large_images',
  'large_image_grids',
)  # in addition to INPUTS, where rows have slots for large images
SFT_EXTRAS = {'mask': np.float32}
RL_EXTRAS = {
  'mask': np.float32,
  'advantage': np.float32,
  'behavior': np.float32,
  'token_class': np.int32,
  'current': np.float32,  # 1 on tokens that the version now trained has sampled
}


@dataclasses.dataclass(frozen=True)
class ModelOptions:
  """How a step runs the model and scores tokens."""

  dtype: str  # of matrix products, 'float32' or 'bfloat16'
  remat: str  # what layers keep for the backward pass, a name of models/remat.POLICIES
  backend: str  # of attention, one of attention.BACKENDS
  head_chunk: int  # tokens per row whose logits are in memory at once
  temperature: float  # of the scored distribution, 1 in SFT
  banned: tuple[int, ...]  # ids that the scored distribution excludes, () in SFT


@dataclasses.dataclass(frozen=True)
class RLOptions(Options):
  """Numbers of the policy update."""

  clip: Annotated[float, INSIDE]  # epsilon: the ratio is clipped to 1 - clip .. 1 + clip
  weight_cap: Annotated[float, above(1)]  # bound of the weight between behavior and proximal policy
  beta: Annotated[float, from_(0, '0: no reference')]  # weight of the KL term to the reference
  kl_limit: Annotated[float, POSITIVE]  # a token's KL estimate is clipped here, in nats
  batch_norm: Annotated[str, one_of(*advantages.BATCH_NORMS)]  # scaling of the advantages
  updates_per_batch: Annotated[int, COUNT]  # above 1 the proximal policy is computed first

  @classmethod
  def published(cls) -> 'RLOptions':
    """The numbers of the paper."""
    return cls(
      clip=0.2, weight_cap=5.0, beta=0.01, kl_limit=10.0, batch_norm='std', updates_per_batch=1
    )


def put_batch(mesh: Mesh, arrays: Mapping[str, np.ndarray], used: int) -> dict[str, jax.Array]:
  """Puts host arrays [M, R, ...] on the mesh, with rows split over its data axes.

  With several processes, each passes its part of the rows (sharding.host_rows). M and `used` are
  the same in all processes.

  Raises:
    DataError: R is not a multiple of the parts that this process's devices hold.
  """
  batch = {name: placement.put_rows(mesh, array, 1, name) for name, array in arrays.items()}
  return {**batch, 'used': placement.put_count(mesh, used)}


def make_sft_step(
  config: Config, optimizer: Optimizer, mesh: Mesh, options: ModelOptions
) -> Callable[[State, Batch], Any]:
  """Builds `f(state, batch) -> (state, metric_sums)`, the mean cross-entropy over the tokens with
  mask 1 of the whole batch.

  The state is donated: do not use it again. The batch has INPUTS, perhaps LARGE_IMAGES, SFT_EXTRAS
  and `used`. `metric_sums` go to metric_sums.reduce.
  """

  score = functools.partial(_scores, config, optimizer, mesh, options)

  def step(state: State, batch: Batch) -> tuple[State, metric_sums.MetricSums]:
    # the loss is a mean over the tokens of all micro-batches
    trainable, frozen = partition(state.params, optimizer.frozen)
    trained_MRT = _target_mask(batch)
    count = jnp.maximum(trained_MRT.sum(), 1).astype(jnp.float32)

    def loss(trainable, index, layer_sums):
      micro, params = _micro_batch(batch, index), {**trainable, **frozen}
      scores = score(params, micro, trained_MRT[index], layer_sums=layer_sums)
      return -scores.logprob_RT.sum() / count, metric_sums.sft(scores, trained_MRT[index])

    # gradient of all micro-batches, then one update
    gradient, totals = _accumulate(
      loss, trainable, len(batch['mask']), batch['used'], places, in_place
    )
    trainable, opt_state, norms = _update(
      optimizer, gradient, state.opt_state, trainable, state.step
    )
    totals = metric_sums.merge(totals, {**norms, **_rate(optimizer, state)})
    return State(state.step + 1, {**trainable, **frozen}, opt_state), totals

  whole = shardings(config, optimizer, mesh)
  places, _ = partition(whole.params, optimizer.frozen)
  in_place = _in_place(config, optimizer, options)
  return _jit(step, whole, mesh)


def make_rl_step(
  config: Config, optimizer: Optimizer, mesh: Mesh, options: ModelOptions, rl: RLOptions
) -> Callable[..., Any]:
  """Builds `f(state, batch, reference=None) -> (state, metric_sums)`, the decoupled PPO update
  (Hilton et al. 2022).

  The state is donated: do not use it again. The batch has INPUTS, RL_EXTRAS and `used`; `reference`
  is a tree of parameters, required when rl.beta > 0 (state.reference). Its frozen parts are those
  of the policy and are not read. With updates_per_batch above 1, prox and reference log-probs are
  computed once, then each update runs over the whole batch, all at the learning rate of the batch's
  step. The features of a frozen tower are computed once per batch. `metric_sums` go to
  metric_sums.reduce.

  Raises:
    ConfigError: at the call, a missing reference.
  """
  whole = shardings(config, optimizer, mesh)
  places, _ = partition(whole.params, optimizer.frozen)

  def step(state: State, batch: Batch, reference: Any) -> tuple[State, metric_sums.MetricSums]:
    run = functools.partial(_scores, config, optimizer, mesh, options)
    encode = functools.partial(_frozen_features, config, optimizer, mesh, options)
    accumulate = functools.partial(
      _accumulate, places=places, in_place=_in_place(config, optimizer, options)
    )
    return _rl_step(optimizer, rl, accumulate, run, encode, state, batch, reference)

  seen = referred(whole.params, optimizer) if rl.beta > 0 else None
  jitted = _jit(step, whole, mesh, reference=seen, extra=True)
  return _with_reference(jitted, rl, optimizer)


def _rl_step(
  optimizer: Optimizer,
  rl: RLOptions,
  accumulate: Callable[..., Any],
  run: Callable[..., head.Scores],
  encode_frozen: Callable[..., model.Features | None],
  state: State,
  batch: Batch,
  reference: Any,
) -> tuple[State, metric_sums.MetricSums]:
  """Makes the updates of one batch, with _accumulate, _scores and _frozen_features."""
  trainable, frozen = partition(state.params, optimizer.frozen)
  trained_MRT = _target_mask(batch)
  count = jnp.maximum(trained_MRT.sum(), 1).astype(jnp.float32)
  advantage_MRT = advantages.batch_normalize(batch['advantage'], trained_MRT, rl.batch_norm)

  def score(trainable, index, features, layer_sums=None):
    micro, params = _micro_batch(batch, index), {**trainable, **frozen}
    return run(params, micro, trained_MRT[index], features, layer_sums)

  def reference_logprob(index, features):
    if rl.beta > 0:
      return score(reference, index, features).logprob_RT
    return jnp.zeros(trained_MRT.shape[1:], jnp.float32)

  def encode(index):
    return encode_frozen(frozen, _micro_batch(batch, index))

  # features(index): of a frozen tower; before(index, scores, features): prox and reference log-probs
  def loss(trainable, index, layer_sums, features, before):
    seen = features(index)
    scores = score(trainable, index, seen, layer_sums)
    prox_RT, reference_RT = jax.lax.stop_gradient(before(index, scores, seen))
    micro = {**_micro_batch(batch, index), 'advantage': advantage_MRT[index]}
    return _policy_loss(scores, prox_RT, reference_RT, micro, trained_MRT[index], count, rl)

  def update(features, before, carry):
    trainable, opt_state, totals = carry
    share = functools.partial(loss, features=features, before=before)
    gradient, new = accumulate(share, trainable, len(batch['mask']), batch['used'])
    trainable, opt_state, norms = _update(optimizer, gradient, opt_state, trainable, state.step)
    return trainable, opt_state, metric_sums.merge(totals, metric_sums.merge(new, norms))

  carry = (trainable, state.opt_state, metric_sums.policy_zeros())
  if rl.updates_per_batch == 1:
    # the policy has not moved yet: it is its own prox policy
    def itself(index, scores, features):
      return scores.logprob_RT, reference_logprob(index, features)

    carry = update(encode, itself, carry)
  else:
    # features, prox and reference once, before the first update
    def all_before(index):
      features = encode(index)
      prox_RT = score(trainable, index, features).logprob_RT
      return features, (prox_RT, reference_logprob(index, features))

    carry = _repeat_updates(update, all_before, rl.updates_per_batch, batch, carry)
  after = State(state.step + 1, {**carry[0], **frozen}, carry[1])
  return after, metric_sums.merge(carry[2], _rate(optimizer, state))


def _policy_loss(
  scores: head.Scores, prox_RT, reference_RT, micro: Batch, trained_RT, count, rl: RLOptions
):
  """Returns one micro-batch's share of the loss, and its metric sums."""
  mask_RT = trained_RT.astype(jnp.float32)
  # KL to the reference, paid per token
  if rl.beta > 0:
    kl_RT = advantages.kl_k1(prox_RT, reference_RT, mask_RT, rl.kl_limit)
  else:
    kl_RT = jnp.zeros_like(prox_RT)
  # credit: the episode's advantage and the KL reward still to come in the token's own branch
  stream_RT = micro['segments'] * (micro['branches'].max() + 1) + micro['branches']
  advantage_RT = advantages.token_advantage(
    micro['advantage'], kl_RT, mask_RT, stream_RT, beta=rl.beta
  )
  _, parts = losses.decoupled_policy_loss(
    scores.logprob_RT,
    prox_RT,
    micro['behavior'],
    advantage_RT,
    mask_RT,
    clip=rl.clip,
    weight_cap=rl.weight_cap,
  )
  totals = metric_sums.policy(
    parts,
    scores,
    prox_RT,
    micro['behavior'],
    kl_RT,
    rl.beta,
    trained_RT,
    micro['token_class'],
    micro['current'] > 0,
  )
  return parts['loss_sum'] / count, totals


def _scores(
  config: Config,
  optimizer: Optimizer,
  mesh: Mesh,
  options: ModelOptions,
  params: Any,
  micro: Batch,
  wanted_RT: jax.Array,
  features: model.Features | None = None,
  layer_sums: Any = None,
) -> head.Scores:
  """Scores the wanted tokens of one micro-batch. Without `features` the tower runs.

  layer_sums: as in model.hidden.
  """
  place = sharding.activations(mesh)
  # [R, T, D], then log-probs [R, T] of the wanted tokens
  hidden_RTD = model.hidden(
    config,
    params,
    _inputs(micro),
    dtype=jnp.dtype(options.dtype),
    remat=options.remat,
    freeze_vision='visual' in optimizer.frozen,
    features=features,
    backend=options.backend,
    place=place,
    layer_sums=layer_sums,
  )
  return head.token_scores(
    hidden_RTD,
    model.head(params, config),
    micro['tokens'],
    micro['predecessor'],
    wanted_RT,
    temperature=options.temperature,
    banned=options.banned,
    chunk=options.head_chunk,
    shares=sharding.row_shards(mesh),
    slices=sharding.token_shards(mesh),
    place=place,
  )


def _frozen_features(
  config: Config,
  optimizer: Optimizer,
  mesh: Mesh,
  options: ModelOptions,
  params: Any,
  micro: Batch,
) -> model.Features | None:
  """Returns the features of a frozen tower, None where the tower is trained."""
  if 'visual' not in optimizer.frozen:
    return None
  dtype, place = jnp.dtype(options.dtype), sharding.activations(mesh)
  backend = options.backend
  return model.encode_inputs(config, params, _inputs(micro), dtype, place=place, backend=backend)


def _inputs(micro: Batch) -> model.Inputs:
  return model.Inputs(
    tokens_BT=micro['tokens'],
    positions_ABT=jnp.moveaxis(micro['positions'], 1, 0),
    segments_BT=micro['segments'],
    branches_BT=micro['branches'],
    visual_index_BT=micro['visual_index'],
    patches_BNXPC=micro['patches'],
    grids_BN2=micro['grids'],
    large_images_BNXPC=micro.get('large_images'),
    large_image_grids_BN2=micro.get('large_image_grids'),
  )


def _target_mask(batch: Batch) -> jax.Array:
  """bool[M, R, T]: tokens with mask 1 and a predecessor, in the micro-batches that are used."""
  used_M = jnp.arange(batch['mask'].shape[0]) < batch['used']
  return (batch['mask'] > 0) & (batch['predecessor'] >= 0) & used_M[:, None, None]


def _micro_batch(batch: Batch, index: jax.Array) -> dict[str, jax.Array]:
  return {
    name: jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
    for name, x in batch.items()
    if name != 'used'
  }


def _in_place(config: Config, optimizer: Optimizer, options: ModelOptions) -> bool:
  """Returns whether the model adds the gradients of its layers to the sums itself."""
  return model.adds_to_sums(config, options.remat, 'visual' in optimizer.frozen)


def _accumulate(
  loss: Callable, trainable: Any, count: int, used: jax.Array, places: Any, in_place: bool
) -> tuple[Any, metric_sums.MetricSums]:
  """Sums the gradient of loss(trainable, index, layer_sums) -> (value, metric sums).

  It sums over the `used` of `count` micro-batches, in float32, and the metric sums too. The sums lie where the
  parameters do (`places`). With `in_place`, loss adds the gradients of the decoder's layers to
  `layer_sums` itself (model.hidden); else it gets None.
  """
  if count == 1:
    # no loop and no sums; a micro-batch that is not used has a gradient of zero
    gradient, totals = jax.grad(loss, has_aux=True)(trainable, jnp.int32(0), None)
    gradient = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
    return jax.lax.with_sharding_constraint(gradient, places), totals
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), trainable)
  shapes = jax.eval_shape(lambda: loss(trainable, jnp.int32(0), None)[1])
  no_totals = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(index, carry):
    gradient, totals = carry
    layer_sums = gradient['text']['layers'] if in_place else None
    new, found = jax.grad(loss, has_aux=True)(trainable, index, layer_sums)
    gradient = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), gradient, new)
    if in_place:
      gradient['text']['layers'] = new['text']['layers']
    gradient = jax.lax.with_sharding_constraint(gradient, places)
    return gradient, metric_sums.merge(totals, found)

  return jax.lax.fori_loop(0, used, body, (zeros, no_totals))


def _each_micro_batch(run: Callable, used: jax.Array, count: int) -> Any:
  """Runs run(index) for each used micro-batch.

  Returns the tree of run's results, stacked: [M, ...] with M = count, 0 where a micro-batch is not
  used.
  """
  shapes = jax.eval_shape(run, jax.ShapeDtypeStruct((), jnp.int32))
  zeros = jax.tree.map(lambda s: jnp.zeros((count, *s.shape), s.dtype), shapes)

  def body(index, outputs):
    return jax.tree.map(
      lambda output, new: jax.lax.dynamic_update_index_in_dim(output, new, index, 0),
      outputs,
      run(index),
    )

  return jax.lax.fori_loop(0, used, body, zeros)


def _repeat_updates(
  update: Callable, all_before: Callable, count: int, batch: Batch, carry: Any
) -> Any:
  """Runs `count` updates with what `all_before(index)` finds with the parameters before the first.

  That is (features, (prox log-probs, reference log-probs)) of one micro-batch.
  """
  features, before = _each_micro_batch(all_before, batch['used'], batch['tokens'].shape[0])

  def features_of(index):
    return jax.tree.map(lambda x: x[index], features)

  def before_of(index, scores, features):
    return jax.tree.map(lambda x: x[index], before)

  def once(_, carry):
    return update(features_of, before_of, carry)

  return jax.lax.fori_loop(0, count, once, carry)


def _update(
  optimizer: Optimizer, gradient: Any, opt_state: Any, trainable: Any, step: jax.Array
) -> tuple[Any, Any, metric_sums.MetricSums]:
  """Applies one optimizer update at the rates of `step`.

  A gradient that is not finite changes nothing and is counted.
  """
  opt_state = at_step(opt_state, step)
  size = optax.tree.norm(gradient)
  finite = jnp.isfinite(size)

  def keep(new, old):
    return jnp.where(finite, new, old)

  # a step that is not finite keeps parameters and moments as they are; no zeros stand in for its
  # updates: XLA would make them before the loop over micro-batches and keep them in memory
  updates, new_state = optimizer.transform.update(gradient, opt_state, trainable)
  trainable = jax.tree.map(keep, optax.apply_updates(trainable, updates), trainable)
  norms = metric_sums.norms(
    keep(size, 0.0), keep(optax.tree.norm(updates), 0.0), optax.tree.norm(trainable), finite
  )
  return trainable, jax.tree.map(keep, new_state, opt_state), norms


def _rate(optimizer: Optimizer, state: State) -> metric_sums.MetricSums:
  """Returns the learning rate of the run's step, which every update of the batch has
  (`at_step`).
  """
  return {
    'learning_rate': jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
    'batches': jnp.float32(1),
  }


def _jit(
  step: Callable, places: State, mesh: Mesh, reference: Any = None, extra: bool = False
) -> Callable:
  """Compiles step(state, batch), or with `extra` step(state, batch, reference)."""
  batch = None  # keeps the shardings of put_batch
  inputs = (places, batch, reference) if extra else (places, batch)
  out = (places, sharding.replicated(mesh))
  return jax.jit(step, donate_argnums=0, in_shardings=inputs, out_shardings=out)


def _with_reference(step: Callable, rl: RLOptions, optimizer: Optimizer) -> Callable:
  def call(
    state: State, batch: Batch, reference: Any = None
  ) -> tuple[State, metric_sums.MetricSums]:
    if rl.beta > 0 and reference is None:
      raise ConfigError(
        f'rl.beta is {rl.beta}, but the step got no reference parameters; pass them, or set '
        'rl.beta=0'
      )
    if rl.beta == 0:
      return step(state, batch, None)
    moving = {name: part for name, part in reference.items() if name not in optimizer.frozen}
    return step(state, batch, moving)

  call.jitted = step
  return call
