"""Metrics of a step: sums and counts on the device, divided once on the host, so that averages
over micro-batches and hosts are right.

A key that begins with 'max_' is merged by maximum, every other one by addition. `reduce` turns
merged sums into metrics; sums of several steps may be merged first.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from paravt_jax.train.head import Scores

MetricSums = dict[str, jax.Array]

CLASSES = ('text', 'after_frame', 'after_tool')  # types.TokenClass, in order


def merge(a: MetricSums, b: MetricSums) -> MetricSums:
  """Merges two dicts of sums; a key of only one dict keeps its value."""

  def join(name: str) -> jax.Array:
    if name not in a or name not in b:
      return a[name] if name in a else b[name]
    return jnp.maximum(a[name], b[name]) if name.startswith('max_') else a[name] + b[name]

  return {name: join(name) for name in {**a, **b}}


def sft(scores: Scores, trained_RT: jax.Array) -> MetricSums:
  """Sums of a supervised micro-batch; scores are 0 outside the trained tokens."""
  return jax.lax.stop_gradient(
    {
      'target_tokens': trained_RT.sum().astype(jnp.float32),
      'cross_entropy': -scores.logprob_RT.sum(),
      'correct': scores.correct_RT.sum(),
    }
  )


def policy(
  parts: Mapping[str, jax.Array],
  scores: Scores,
  prox_RT: jax.Array,
  behavior_RT: jax.Array,
  kl_RT: jax.Array,
  beta: float,
  trained_RT: jax.Array,
  class_RT: jax.Array,
  current_RT: jax.Array,
) -> MetricSums:
  """Sums of a policy micro-batch: the loss's parts; entropy, log-prob and gap by token class; the
  gap at current_RT.
  """
  # |learner - server| log-probs; behaviour may be garbage outside the trained tokens
  gap_RT = jnp.where(trained_RT, jnp.abs(prox_RT - jnp.where(trained_RT, behavior_RT, 0.0)), 0.0)
  found = {**parts, 'kl': kl_RT.sum(), 'kl_reward': -beta * kl_RT.sum()}
  found['max_gap'] = found.pop('gap_max')
  del found['gap_sum']
  # tokens that the version now trained has sampled
  now_RT = trained_RT & current_RT
  found |= {
    'tokens_current': now_RT.sum().astype(jnp.float32),
    'gap_current': jnp.where(now_RT, gap_RT, 0.0).sum(),
    'max_gap_current': jnp.where(now_RT, gap_RT, 0.0).max(initial=0.0),
  }
  # the same sums by token class
  for number, name in enumerate(CLASSES):
    member_RT = trained_RT & (class_RT == number)
    member_gap_RT = jnp.where(member_RT, gap_RT, 0.0)
    found |= {
      f'tokens_{name}': member_RT.sum().astype(jnp.float32),
      f'entropy_{name}': jnp.where(member_RT, scores.entropy_RT, 0.0).sum(),
      f'logprob_{name}': jnp.where(member_RT, scores.logprob_RT, 0.0).sum(),
      f'gap_{name}': member_gap_RT.sum(),
      f'max_gap_{name}': member_gap_RT.max(initial=0.0),
    }
  return jax.lax.stop_gradient(found)


def policy_zeros() -> MetricSums:
  """The keys of `policy` and `norms`, all 0: where a loop over updates begins."""
  names = (
    'loss_sum',
    'ratio_sum',
    'clipped',
    'dropped',
    'weight_sum',
    'weight_square_sum',
    'max_gap',
    'tokens',
    'kl',
    'kl_reward',
    'grad_norm',
    'update_norm',
    'param_norm',
    'updates',
    'skipped',
    'tokens_current',
    'gap_current',
    'max_gap_current',
  )
  by_class = [
    f'{kind}_{name}'
    for kind in ('tokens', 'entropy', 'logprob', 'gap', 'max_gap')
    for name in CLASSES
  ]
  return {name: jnp.zeros((), jnp.float32) for name in (*names, *by_class)}


def norms(gradient: jax.Array, update: jax.Array, params: jax.Array, made: jax.Array) -> MetricSums:
  """Norms of one optimizer update (the first two are 0 for a skipped update), with counts."""
  return {
    'grad_norm': gradient,
    'update_norm': update,
    'param_norm': params,
    'updates': jnp.float32(1),
    'skipped': 1 - made.astype(jnp.float32),
  }


def reduce(metric_sums: Mapping[str, float]) -> dict[str, float]:
  """Metrics (names in paravt_jax.metrics.names, breakdowns as 'name/class=text') from the sums of
  one or more steps. Pure; on the host.

  Quotients with a count of 0 are left out, so a class without tokens has no metric.
  """
  metric_sums = {name: float(value) for name, value in jax.device_get(dict(metric_sums)).items()}
  out: dict[str, float] = {}

  def mean(metric: str, total: float, count: float) -> None:
    if count > 0:
      out[metric] = total / count

  for norm in ('grad_norm', 'update_norm'):
    mean(f'optim/{norm}', metric_sums[norm], metric_sums['updates'] - metric_sums['skipped'])
  mean('optim/param_norm', metric_sums['param_norm'], metric_sums['updates'])
  out['optim/skipped'] = metric_sums['skipped']
  mean('optim/learning_rate', metric_sums['learning_rate'], metric_sums['batches'])
  if 'target_tokens' in metric_sums:
    out['sft/tokens'] = metric_sums['target_tokens']
    mean('sft/loss', metric_sums['cross_entropy'], metric_sums['target_tokens'])
    mean('sft/accuracy', metric_sums['correct'], metric_sums['target_tokens'])
  else:
    _reduce_policy(metric_sums, mean, out)
  return out


def _reduce_policy(metric_sums: Mapping[str, float], mean, out: dict[str, float]) -> None:
  seen = metric_sums['tokens']  # trained tokens times updates
  repeats = max(metric_sums['updates'] / max(metric_sums['batches'], 1), 1)
  means = {
    'loss': 'loss_sum',
    'ratio': 'ratio_sum',
    'clip_share': 'clipped',
    'dropped_share': 'dropped',
    'weight': 'weight_sum',
    'kl_reference': 'kl',
    'kl_reward': 'kl_reward',
  }
  for metric, name in means.items():
    mean(f'policy/{metric}', metric_sums[name], seen)
  mean('policy/ess', metric_sums['weight_sum'] ** 2, metric_sums['weight_square_sum'] * seen)
  out |= {
    'policy/tokens': seen / repeats,
    'policy/updates': metric_sums['updates'],
    'policy/gap_max': metric_sums['max_gap'],
  }
  mean('policy/gap_current_mean', metric_sums['gap_current'], metric_sums['tokens_current'])
  if metric_sums['tokens_current'] > 0:
    out['policy/gap_current_max'] = metric_sums['max_gap_current']
  for kind, metric in {'entropy': 'entropy', 'logprob': 'logprob', 'gap': 'gap_mean'}.items():
    mean(f'policy/{metric}', sum(metric_sums[f'{kind}_{name}'] for name in CLASSES), seen)
    for name in CLASSES:
      mean(
        f'policy/{metric}/class={name}',
        metric_sums[f'{kind}_{name}'],
        metric_sums[f'tokens_{name}'],
      )
  for name in CLASSES:
    out[f'policy/tokens/class={name}'] = metric_sums[f'tokens_{name}'] / repeats
    if metric_sums[f'tokens_{name}'] > 0:
      out[f'policy/gap_max/class={name}'] = metric_sums[f'max_gap_{name}']
