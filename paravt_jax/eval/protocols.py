"""Defines evaluation protocols as data. One agent loop runs all of them.

tools        as in training: sub-agents answer calls with text
raw_crops    as in the published driver: the frames of a crop enter the main agent's context
no_tools     as in training but without tools: one turn after the pinned prefix
think        think, then answer; no pinned prefix, for models that were not trained here
direct       answer without thinking
longvt, videozoomer, sage    other published agents (adapters.py); the user provides a prompt file
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from paravt_jax.chat import prompts, tags, template
from paravt_jax.chat.template import Piece
from paravt_jax.errors import ConfigError
from paravt_jax.eval import adapters
from paravt_jax.eval.chat_model import ChatModel
from paravt_jax.rewards.answer import extract_answer, strip_markup
from paravt_jax.rollout.agent import TRAINING_FORMAT, Agent, AgentOptions, DialogueFormat
from paravt_jax.rollout.sampler import Sampler
from paravt_jax.rollout.subagent import Crops, SubagentOptions, Subagents
from paravt_jax.types import Clip, Episode, Window
from paravt_jax.video.store import FrameStore

DISPATCHES = ('parallel', 'sequential')
# The forced answer of the published driver: only the answer, without a thought, in few tokens.
# FORCED_TOKENS are token limits by question type, FORCED_REQUESTS the user messages.
FORCED_TOKENS = {'mcq': 64, 'oe': 64, 'tvg': 128}
FORCED_REQUESTS = {
  'mcq': 'No more calls. Answer now with the letter of the option and nothing else.',
  'oe': 'No more calls. Answer now in a few words and nothing else.',
  'tvg': 'No more calls. Answer now in this shape and nothing else: The event happens in the X - Y '
  'seconds.',
}


@dataclasses.dataclass(frozen=True)
class Protocol:
  """One way to ask questions and to read answers."""

  name: str
  prompt: str  # the fixed texts of the prompt, as part of an evaluation's fingerprint
  dialogue_format: DialogueFormat
  tools: bool  # whether the agent can call tools
  pinned: bool  # whether turns start with the think prefix
  # builds the result of a crop from its window and frames; None if a sub-agent reads the frames
  crop: Callable[[Window, Clip], Sequence[Piece]] | None
  answer: Callable[[str], str]  # reads the answer from the text of its turn
  placeholders: tuple[str, ...]  # required placeholders of the prompt file; () for our own prompts


def raw_crop(window: Window, clip: Clip) -> list[Piece]:
  """Returns the frames of a crop, each after its time, and a tool response.

  The tool response contains the number of frames and the window.
  """
  return [
    *template.frame_pieces(clip.frames, clip.seconds),
    template.Trusted(template.RESPONSE_OPEN),
    f'\n{prompts.frames(len(clip.frames), window)}\n',
    template.Trusted(template.RESPONSE_CLOSE),
  ]


def direct_answer(text: str) -> str:
  """Returns the `<answer>` of a turn, or all text after its closed thought without one.

  A single letter without tags is therefore an answer. Text in an unclosed thought is no answer.
  """
  rest = strip_markup(text[tags.after_think(text) :])
  bare = '' if tags.ANSWER_OPEN in text or tags.THINK_OPEN in rest else rest
  return extract_answer(text) or bare


def _ours(name: str, dialogue_format: DialogueFormat, system: str, **differs) -> Protocol:
  usual = {'tools': False, 'pinned': False, 'crop': None, 'answer': extract_answer}
  prompt = '\n'.join((system, dialogue_format.request, *dialogue_format.requests.values()))
  return Protocol(
    name=name,
    prompt=prompt,
    dialogue_format=dialogue_format,
    placeholders=(),
    **{**usual, **differs},
  )


def _one_turn(system: str) -> DialogueFormat:
  """Returns the training format with this system text. The system texts of rows are ignored."""
  return dataclasses.replace(TRAINING_FORMAT, system=lambda task: system)


def _theirs(
  name: str, dialogue_format: DialogueFormat, crop: Callable, answer: Callable[[str], str]
) -> Protocol:
  return Protocol(name, '', dialogue_format, True, False, crop, answer, (adapters.QUESTION,))


RAW_CROPS = dataclasses.replace(
  TRAINING_FORMAT, requests=FORCED_REQUESTS, forced_tokens=FORCED_TOKENS, forced_prefix=False
)

PROTOCOLS: Mapping[str, Protocol] = {
  'tools': _ours('tools', TRAINING_FORMAT, prompts.SYSTEM, tools=True, pinned=True),
  'raw_crops': _ours(
    'raw_crops', RAW_CROPS, prompts.SYSTEM, tools=True, pinned=True, crop=raw_crop
  ),
  'no_tools': _ours('no_tools', _one_turn(prompts.NO_TOOLS), prompts.NO_TOOLS, pinned=True),
  'think': _ours('think', _one_turn(prompts.THINK), prompts.THINK),
  'direct': _ours(
    'direct',
    dataclasses.replace(_one_turn(prompts.DIRECT), answered=lambda text: bool(direct_answer(text))),
    prompts.DIRECT,
    answer=direct_answer,
  ),
  'longvt': _theirs('longvt', adapters.LONGVT, adapters.longvt_crop, extract_answer),
  'videozoomer': _theirs(
    'videozoomer', adapters.VIDEOZOOMER, adapters.zoom_crop, adapters.boxed_text
  ),
  'sage': _theirs('sage', adapters.SAGE, adapters.sage_crop, adapters.sage_answer),
}


def choose_protocol(name: str, prompt_file: str, dispatch: str) -> Protocol:
  """Returns the protocol with this name, and fills in the text of its prompt file if it has one.

  Args:
    prompt_file: path of the prompt file, '' for none.
    dispatch: how calls run, 'parallel' or 'sequential'.

  Raises:
    ConfigError: the name or dispatch is unknown. The protocol has no calls, but dispatch is
      'sequential'. The prompt file is missing, unused, empty, or lacks a placeholder.
  """
  if name not in PROTOCOLS:
    near = difflib.get_close_matches(name, PROTOCOLS, 1)
    hint = f'did you mean {near[0]}?' if near else f'wanted one of {", ".join(PROTOCOLS)}'
    raise ConfigError(f'protocol.name={name!r}: there is no such protocol, {hint}')
  protocol = PROTOCOLS[name]
  if dispatch not in DISPATCHES:
    raise ConfigError(f'protocol.dispatch={dispatch!r}: wanted one of {", ".join(DISPATCHES)}')
  if dispatch != DISPATCHES[0] and not protocol.tools:
    raise ConfigError(
      f'protocol.dispatch={dispatch!r}: {name} makes no calls; leave it {DISPATCHES[0]!r}'
    )
  if not protocol.placeholders:
    if prompt_file:
      raise ConfigError(
        f'protocol.prompt_file={prompt_file!r}: {name} has a prompt of its own; leave the '
        'knob empty, or name '
        f'one of {", ".join(other for other, p in PROTOCOLS.items() if p.placeholders)}'
      )
    return protocol
  # The protocol needs a prompt file: put its texts into the dialogue format.
  text = _read(prompt_file, protocol)
  system, user = adapters.split(text, f'protocol.prompt_file={prompt_file}')
  dialogue_format = dataclasses.replace(
    protocol.dialogue_format, system=lambda task: system or None, user=adapters.user(user)
  )
  return dataclasses.replace(
    protocol, prompt='\n'.join((text, dialogue_format.request)), dialogue_format=dialogue_format
  )


def _read(prompt_file: str, protocol: Protocol) -> str:
  where, wanted = f'protocol.prompt_file={prompt_file}', ' and '.join(protocol.placeholders)
  if not prompt_file:
    raise ConfigError(
      f'protocol.prompt_file is empty: {protocol.name} needs a text file with its prompt '
      f'that holds {wanted}'
    )
  try:
    text = pathlib.Path(prompt_file).read_text(encoding='utf-8')
  except UnicodeDecodeError as error:
    raise ConfigError(
      f'{where}: is no UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8'
    ) from error
  except OSError as error:
    raise ConfigError(
      f'{where}: {error.strerror}; wanted a text file with the prompt of {protocol.name}'
    ) from error
  user = adapters.split(text, where)[1]
  missing = [name for name in protocol.placeholders if name not in user]
  if missing:
    raise ConfigError(
      f'{where}: its user text holds no {", ".join(missing)}; write it where the question belongs'
    )
  return text


def agent(
  protocol: Protocol,
  dispatch: str,
  sampler: Sampler | ChatModel,
  frames: FrameStore,
  agent_options: AgentOptions,
  subagent_options: SubagentOptions,
) -> Agent:
  """Returns an agent that follows `protocol`.

  With dispatch 'sequential', only the first call of a turn runs, and its other calls get the result
  of calls over the limit. The number of rounds is then max_turns * max_parallel. The prefix is
  pinned only if the sampler supports it.
  """
  rounds, at_once = agent_options.max_turns, agent_options.max_parallel
  if dispatch == 'sequential':
    rounds, at_once = rounds * at_once, 1
  pins = protocol.pinned and not (isinstance(sampler, ChatModel) and not sampler.prefills)
  options = dataclasses.replace(
    agent_options,
    max_turns=rounds if protocol.tools else 0,
    max_parallel=at_once,
    think_prefix=agent_options.think_prefix if pins else '',
  )
  policy = cast(Sampler, sampler)  # a ChatModel has all methods that an agent uses
  if protocol.crop is None:
    calls = Subagents(policy, frames, subagent_options)
  else:
    calls = Crops(policy, frames, subagent_options, protocol.crop)
  return Agent(policy, calls, frames, options, protocol.dialogue_format)


def answer(protocol: Protocol, episode: Episode) -> str:
  """Returns the answer of an episode from its last turn by the protocol's rule, '' for none.

  If the last request asked only for the answer, the turn needs no tags.
  """
  if not episode.turns:
    return ''
  last = episode.turns[-1]
  asked_bare = last.forced and len(episode.turns) > 1 and not protocol.dialogue_format.forced_prefix
  return direct_answer(last.text) if asked_bare else protocol.answer(last.text)
