"""Every metric: its unit and its meaning. A name that is not here cannot be logged, so a chart
never shows a misspelt stranger.

A name may carry suffixes `/key=value` where its entry lists the key: 'accuracy/k=4',
'calls/failed/reason=timeout', 'accuracy/k=4/type=mcq'. Shares lie in [0, 1]; "per episode" is a
mean over the episodes of the step that survived.
"""

import dataclasses
import difflib
import re

from paravt_jax.errors import ConfigError

_VALUE = re.compile(r'[A-Za-z0-9_.+-]+')


@dataclasses.dataclass(frozen=True)
class Metric:
  """The unit and meaning of a metric."""

  unit: str  # the unit of a value
  meaning: str  # one sentence
  suffixes: tuple[str, ...] = ()  # keys that may follow the name as `/key=value`


# breakdowns of an episode's numbers: frame budget, question type, data source
_BY = ('k', 'type', 'source')

_REWARD = {
  'reward/total': Metric('reward', 'mean reward R of an episode', _BY),
  'reward/accuracy': Metric('reward', 'R_acc, the answer against the gold one', _BY),
  'reward/format': Metric(
    'reward', 'R_fmt before its weight, base and anchor together, capped at 1', _BY
  ),
  'reward/base': Metric('reward', 'R_base, tags present and in order', _BY),
  'reward/anchor': Metric(
    'reward', 'R_anchor, thoughts that are closed and followed by an answer', _BY
  ),
  'reward/tool': Metric(
    'reward', 'R_tool, well-formed calls parsed and executed, with the bonus', _BY
  ),
  'reward/std': Metric(
    'reward', 'standard deviation of the reward inside a group, mean over groups', _BY
  ),
  'accuracy': Metric('share', "R_acc of an episode; in evaluation the benchmark's own score", _BY),
  'format_compliance': Metric(
    'share',
    'episodes whose every turn is a closed thought, then well-formed calls or one answer',
    _BY,
  ),
  'advantage': Metric(
    'advantage', 'mean group advantage of the episodes (0 when all groups are whole)', _BY
  ),
  'advantage/abs': Metric('advantage', 'mean magnitude of the same', _BY),
}

_EPISODES = {
  'calls/parsed': Metric('calls per episode', 'well-formed calls', _BY),
  'calls/other': Metric(
    'calls per episode',
    'calls that can be read but are not well-formed; they run and earn nothing',
    _BY,
  ),
  'calls/executed': Metric(
    'calls per episode', 'calls whose sub-agent answered, well-formed or not', _BY
  ),
  'calls/failed': Metric(
    'calls per episode', 'calls and failures that did not run, also by reason', (*_BY, 'reason')
  ),
  'calls/episodes_with': Metric('share', 'episodes with at least one executed call', _BY),
  'calls/seconds': Metric('s', 'mean length of a cropped window', _BY),
  'turns': Metric('turns per episode', 'assistant turns of the main agent', _BY),
  'truncated/turn': Metric('share', 'episodes with a turn that ran out of its token budget', _BY),
  'truncated/context': Metric('share', 'episodes that ended because the context was full', _BY),
  'stop': Metric('share', 'episodes that ended for this reason', ('reason',)),
  'length/sampled': Metric('tokens per episode', 'tokens that the main agent wrote', _BY),
  'length/turn': Metric('tokens per turn', 'tokens that the main agent wrote in a turn', _BY),
  'length/turn_max': Metric('tokens', 'longest turn of the step'),
  'length/context': Metric(
    'tokens per episode', 'final length of the main context, images expanded', _BY
  ),
  'length/context_max': Metric('tokens', 'longest main context of the step'),
  'length/subagent': Metric('tokens per call', 'tokens that a sub-agent wrote', _BY),
  'budget': Metric('frames', 'mean overview budget K'),
  'frames/repeated': Metric(
    'frames per episode',
    'frames of overviews and crops left out because they were shown already',
    _BY,
  ),
  'groups/accepted': Metric('groups', 'groups that entered the step'),
  'groups/no_signal': Metric('share', 'groups whose rewards are all equal', _BY),
  'groups/dropped': Metric('groups', 'groups lost whole since the last step', ('reason',)),
  'episodes/kept': Metric('episodes', 'episodes that entered the step', _BY),
  'episodes/dropped': Metric('episodes', 'rollouts lost since the last step', ('reason',)),
  'staleness': Metric('versions', 'policy version of the step minus that of a sampled token, mean'),
  'staleness/max': Metric('versions', 'the same, the oldest token'),
  'rollout/running': Metric('groups', 'groups in flight'),
  'rollout/queued': Metric('groups', 'groups finished and not trained on yet'),
  'rollout/capacity': Metric('groups', 'groups that may still start under the staleness bound'),
  'rollout/interrupted': Metric('requests', 'requests cut by a weight update and resumed'),
  'rollout/retried': Metric('requests', 'requests that were sent again after a transport error'),
  'rollout/moved': Metric(
    'requests', 'requests that were sent again because their server was lost'
  ),
  'rollout/images': Metric('images', 'images of the requests that were answered'),
  'rollout/images_sent': Metric('images', 'images whose pixels were sent; servers had the others'),
  'rollout/image_bytes': Metric('bytes', 'what was sent of images, in the form that was sent'),
  'rollout/epoch': Metric('epochs', 'position in the data'),
}

_POLICY = {
  'policy/loss': Metric('loss', 'decoupled PPO objective over all trained tokens of the step'),
  'policy/entropy': Metric('nats', 'entropy of the policy at trained tokens', ('class',)),
  'policy/ratio': Metric('ratio', 'mean of exp(logp - logp_prox)'),
  'policy/clip_share': Metric('share', 'trained tokens at which the clip acts'),
  'policy/dropped_share': Metric(
    'share', 'trained tokens dropped because their behaviour weight exceeds the cap'
  ),
  'policy/ess': Metric('share', 'effective sample size of the behaviour weights over their number'),
  'policy/weight': Metric('ratio', 'mean behaviour weight w'),
  'policy/gap_mean': Metric(
    'nats',
    'mean |logp_prox - logp_behave|: learner against server, also by token class',
    ('class',),
  ),
  'policy/gap_max': Metric('nats', 'largest of the same', ('class',)),
  'policy/gap_current_mean': Metric('nats', "the same, tokens of the step's own version only"),
  'policy/gap_current_max': Metric('nats', 'largest of the same'),
  'policy/rounding': Metric(
    'nats', 'mean |logp in its dtype - logp in float32| of the learner, sampled ids, its canary'
  ),
  'policy/kl_reference': Metric('nats', 'k1 estimate of the KL to the reference per trained token'),
  'policy/kl_reward': Metric('reward', 'mean per-token KL reward, -beta times the estimate'),
  'policy/tokens': Metric('tokens', 'trained tokens of the step', ('class', 'k')),
  'policy/logprob': Metric('nats', 'mean log-probability of trained tokens', ('class',)),
  'policy/version': Metric('version', 'weight version after the step'),
  'policy/updates': Metric('updates', 'optimizer updates made in the step'),
}

_LEARNER = {
  'sft/loss': Metric('nats', 'mean cross-entropy over target tokens'),
  'sft/accuracy': Metric('share', 'target tokens that are the arg-max'),
  'sft/tokens': Metric('tokens', 'target tokens of the step'),
  'sft/documents': Metric('documents', 'conversations of the step'),
  'optim/grad_norm': Metric('norm', 'global gradient norm before the clip', ('group',)),
  'optim/update_norm': Metric('norm', 'global norm of the parameter change', ('group',)),
  'optim/param_norm': Metric('norm', 'global norm of the trained parameters', ('group',)),
  'optim/learning_rate': Metric('rate', 'learning rate of the step', ('group',)),
  'optim/skipped': Metric('updates', 'updates skipped because a gradient was not finite'),
  'pack/fill': Metric('share', 'tokens of a row that are no padding'),
  'pack/rows': Metric('rows', 'packed rows of the step'),
  'pack/row_tokens': Metric('tokens', 'length of the rows of the step'),
  'pack/capacity': Metric('micro-batches', 'micro-batches that the arrays have room for'),
  'pack/micro_batches': Metric('micro-batches', 'micro-batches of the step'),
  'pack/images': Metric('images', 'images of the step'),
  'data/skipped': Metric('rows', 'rows left out, also by reason', ('reason',)),
  'data/quarantined': Metric('videos', 'videos whose questions are left out in this epoch'),
  'data/repeated': Metric('frames', 'frames left out because their row shows them already'),
  'data/overlong': Metric(
    'rows', 'samples (episodes and sub-agents in RL) dropped because they exceed a pack'
  ),
  'learner/tokens_per_second': Metric(
    'tokens/s', 'tokens through the learner over the time of the step'
  ),
  'metrics/nonfinite': Metric(
    'values', 'values of this record that were not finite and are written as null'
  ),
}

_SERVER = {
  'server/lost': Metric(
    'servers', 'times a server was found dead, silent or wrong, since the start'
  ),
  'server/restarts': Metric(
    'restarts', 'times a server process was started again, since the start'
  ),
  'server/drained': Metric(
    'servers', 'times a server was emptied for holding too much memory, since the start'
  ),
  'server/back': Metric('servers', 'times a server took requests again, since the start'),
  'server/speed': Metric(
    'tokens/s',
    'sampled tokens over the seconds of their requests, of a server that answered enough of them',
    ('server',),
  ),
  'sync/seconds': Metric(
    's',
    'the last weight update, by stage: write, convert (for SGLang), load (canary included)',
    ('stage',),
  ),
  'sync/bytes': Metric(
    'bytes', 'of the last weight update, as each server is offered it: whole, or what changed'
  ),
}

_WATCH = {
  'watch/on': Metric(
    'alarms', 'alarms of the recipe that are on after the step; of one alarm 0 or 1', ('alarm',)
  ),
}

TIME = (
  'rollout',
  'wait',
  'reward',
  'collate',
  'reference',
  'prox',
  'learn',
  'publish',
  'sync',
  'checkpoint',
  'eval',
  'data',
  'log',
  'compile',
  'other',
)
"""Stages of a step, in the order in which charts stack them; `time/step` is their sum."""

_TIME = {
  'time/step': Metric('s', 'wall time of the step'),
  'time/total': Metric('s', 'wall time since the run began, over restarts'),
  **{f'time/{stage}': Metric('s', f'wall time of the step spent on: {stage}') for stage in TIME},
}

METRICS: dict[str, Metric] = {
  **_REWARD,
  **_EPISODES,
  **_POLICY,
  **_LEARNER,
  **_SERVER,
  **_WATCH,
  **_TIME,
}


def split(name: str) -> tuple[str, dict[str, str]]:
  """'accuracy/k=4' -> ('accuracy', {'k': '4'}). Purely textual; nothing is looked up."""
  parts = name.split('/')
  plain = [part for part in parts if '=' not in part]
  return '/'.join(plain), dict(part.split('=', 1) for part in parts if '=' in part)


def lookup(name: str) -> Metric:
  """The entry behind a name, suffixes allowed.

  Raises:
    ConfigError: the name is unknown (the nearest known one is suggested), or carries a suffix that
    its entry does not list.
  """
  base, suffixes = split(name)
  metric = METRICS.get(base)
  if metric is None:
    near = difflib.get_close_matches(base, METRICS, n=1, cutoff=0.5)
    hint = (
      f'did you mean {near[0]!r}?'
      if near
      else 'the dictionary is METRICS in paravt_jax/metrics/names.py'
    )
    raise ConfigError(
      f'metric {name!r} is unknown; {hint} A new metric needs an entry there (unit and meaning)'
    )
  if name != '/'.join([base, *(f'{key}={value}' for key, value in suffixes.items())]):
    raise ConfigError(
      f'metric {name!r}: suffixes stand last and once each, wanted {base}/key=value'
    )
  for key, value in suffixes.items():
    if key not in metric.suffixes:
      allowed = ', '.join(metric.suffixes) or 'none'
      raise ConfigError(f'metric {name!r}: {base!r} has no suffix {key!r}; allowed: {allowed}')
    if not _VALUE.fullmatch(value):
      raise ConfigError(
        f'metric {name!r}: got the value {value!r} for {key!r}, wanted letters, digits and . _ + -'
      )
  return metric
