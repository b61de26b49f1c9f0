"""The fixed texts of prompts and traces. The tiny tokenizer makes each of them a single token.

They are built from the constants of `chat.prompts` and `data.world`.
"""

from paravt_jax.chat import prompts
from paravt_jax.data.world import questions, traces
from paravt_jax.data.world.scene import COLOURS, NOTHING, SHAPES
from paravt_jax.types import Window

CUE = 7777  # marks the position of a varying number


def phrases() -> list[str]:
  """Returns the texts that become one token each.

  Texts with varying numbers are split at the numbers.
  """
  whole = [
    *prompts.SYSTEM.splitlines(),
    *prompts.FORMAT_HINTS.values(),
    *prompts.ERRORS.values(),
    prompts.FINAL_REQUEST,
  ]
  window = Window(float(CUE), float(CUE))
  varying = [
    prompts.subagent(window, ''),
    prompts.subagent(window, None),
    traces.call_text(CUE, CUE),
    questions.open_question([CUE]),
    questions.grounding_question(CUE),
  ]
  runs = [
    run
    for text in varying
    for run in text.replace('<tool_call>', '').replace('</tool_call>', '').split(str(CUE))
  ]
  return list(dict.fromkeys([*whole, *(run for run in runs if len(run.split()) > 1 or '}' in run)]))


def corpus() -> list[str]:
  """Returns texts in which every word becomes one token: all forms of questions, turns, replies."""
  names = [*COLOURS, NOTHING, *SHAPES]
  found = ['system\n', 'user\n', 'assistant\n', '\n', '\n\n', ' ', 'crop_video', *questions.LETTERS]
  found += [f'{name}, {name}.\n {name}? A {name}' for name in names]
  found += [
    questions.open_question([4, 5, 6]),
    questions.grounding_question(4),
    questions.choice_question(4, names),
  ]
  found += [
    traces.call_turn([4, 5, 6], [(1, 2), (3, 4), (5, 6)]),
    traces.answer_turn(['4 red', '4 5 red'], '[4, 5]', ['A']),
  ]
  found += [
    traces.UNSEEN,
    traces.lookup_question([4, 5]),
    '4 red. 5 red.',
    '<4.5 seconds>',
    '\nA',
    '\n[4, 5]\n',
  ]
  return found
