"""The reward of an episode: R = R_acc + w_fmt * R_fmt + R_tool."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from paravt_jax import errors
from paravt_jax.options import FLAG, PART, SHARE, Options, from_, one_of, optional
from paravt_jax.rewards import answer, form, tools
from paravt_jax.types import Episode


@dataclasses.dataclass(frozen=True)
class RewardOptions(Options):
  """The parts of the reward and their weights."""

  format_weight: Annotated[float, from_(0)]  # w_fmt, of R_fmt in the total
  anchor_weight: Annotated[float, from_(0)]  # lambda, of R_anchor in R_fmt; 0: no anchoring
  unclosed_penalty: Annotated[float, from_(0)]  # what R_anchor loses to a <think> never closed
  answer_suffix: Annotated[bool, FLAG]  # R_base wants the text to end with its answer
  tool: Annotated[bool, FLAG]  # R_tool is paid
  tool_threshold: Annotated[float, SHARE]  # accuracy from which R_tool is paid
  tool_bonus: Annotated[
    str, one_of('call', 'executed')
  ]  # what R_tool pays for: a call, or one that ran
  open_ended: Annotated[str, one_of('f1', 'exact', 'judge')]  # how open answers are scored
  # a tvg answer earns 1 from this IoU on and 0 below; None: it earns the IoU itself
  grounding_threshold: Annotated[float | None, optional(PART)]

  @classmethod
  def published(cls) -> 'RewardOptions':
    """The numbers of the paper, with the corrected penalty and bonus."""
    return cls(
      format_weight=1.0,
      anchor_weight=0.5,
      unclosed_penalty=0.3,
      answer_suffix=True,
      tool=True,
      tool_threshold=0.0,
      tool_bonus='call',
      open_ended='f1',
      grounding_threshold=None,
    )


PUBLISHED = RewardOptions.published()
PARTS = ('accuracy', 'format', 'base', 'anchor', 'tool', 'total', 'compliant')


def options(weights: RewardOptions | Mapping[str, Any]) -> RewardOptions:
  """Returns RewardOptions from RewardOptions or from a mapping (such as a ConfigDict).

  Missing keys of the mapping take the published value.

  Raises:
    ConfigError: a key does not exist, or a value is not allowed.
  """
  if isinstance(weights, RewardOptions):
    return weights
  values = dict(weights.items())
  known = [field.name for field in dataclasses.fields(RewardOptions)]
  for name in values:
    if name not in known:
      near = difflib.get_close_matches(str(name), known, n=1)
      hint = f'did you mean {near[0]}?' if near else f'wanted one of {", ".join(known)}'
      raise errors.ConfigError(f'reward.{name}: no such knob; {hint}')
  return dataclasses.replace(PUBLISHED, **values)


def score(
  episode: Episode, weights: RewardOptions | Mapping[str, Any], *, judged: float | None = None
) -> tuple[float, dict[str, float]]:
  """Computes the reward of a finished episode.

  Args:
    episode: the rollout; the answer is taken from its last turn.
    weights: the knobs (see `options`).
    judged: R_acc from an LLM judge; required and used only for open-ended tasks with
      open_ended='judge'.

  Returns:
    (total, parts). `parts` has the terms named in PARTS; `base` and `anchor` are unweighted and
    uncapped, `compliant` is 0 or 1.

  Raises:
    ConfigError: an open-ended task under 'judge' without `judged`.
  """
  knobs = options(weights)
  right = accuracy(episode, knobs, judged=judged)
  shape = form.read(episode.turns)
  parts = {
    'accuracy': right,
    'format': form.form_reward(
      shape,
      answer_suffix=knobs.answer_suffix,
      anchor_weight=knobs.anchor_weight,
      unclosed_penalty=knobs.unclosed_penalty,
    ),
    'base': form.base(shape, answer_suffix=knobs.answer_suffix),
    'anchor': form.anchor(shape, unclosed_penalty=knobs.unclosed_penalty),
    'tool': tools.tool_reward(
      episode, right, threshold=knobs.tool_threshold, bonus=knobs.tool_bonus
    )
    if knobs.tool
    else 0.0,
    'compliant': float(form.compliant(episode)),
  }
  parts['total'] = right + knobs.format_weight * parts['format'] + parts['tool']
  return parts['total'], parts


def accuracy(episode: Episode, knobs: RewardOptions, *, judged: float | None = None) -> float:
  """Returns R_acc, 0..1, of the last turn's answer, by question type; 0 without a turn.

  `judged` and the errors are as in `score`.
  """
  task = episode.task
  said = answer.extract_answer(episode.turns[-1].text) if episode.turns else ''
  if task.question_type == 'mcq':
    return answer.choice_accuracy(said, task.answer, len(task.options) or len(answer.LETTERS))
  if task.question_type == 'tvg':
    overlap = answer.temporal_iou(said, task.answer)
    return (
      overlap if knobs.grounding_threshold is None else float(overlap >= knobs.grounding_threshold)
    )
  if knobs.open_ended == 'judge':
    if judged is None:
      raise errors.ConfigError(
        f'reward.open_ended: got judge, but no verdict for task {task.id}; ask rollout.judge first'
      )
    return float(judged)
  return (answer.exact_match if knobs.open_ended == 'exact' else answer.token_f1)(said, task.answer)
