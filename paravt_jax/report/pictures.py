"""The picture of the method's loop, for the README. `python -m paravt_jax.report.pictures` writes
it beside this file.
"""

import dataclasses
import html
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parent / 'pictures'

_STYLE = """
.ground { fill: #fbfbfa; } .box { fill: #ffffff; stroke-width: 1.5; }
.agent { stroke: #1f6fd6; } .tool { stroke: #7a3fb8; } .learn { stroke: #14804a; }
.name { fill: #1c1d20; font-weight: 650; font-size: 17px; } .text { fill: #5d6068; font-size: 13.5px; }
.code { fill: #7a3fb8; font: 12.5px ui-monospace, Menlo, Consolas, monospace; }
.flow { stroke: #5d6068; stroke-width: 2; fill: none; } .head { fill: #5d6068; }
.note { fill: #5d6068; font-size: 12.5px; font-style: italic; } .frame { fill: #c9ccd3; } .hit { fill: #e4b93a; }
.label { fill: #8b8e96; font-size: 12px; font-weight: 650; letter-spacing: .08em; }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
@media (prefers-color-scheme: dark) {
.ground { fill: #16181b; } .box { fill: #1f2227; } .name { fill: #ececed; } .text, .note { fill: #a8abb4; }
.agent { stroke: #5ea2f7; } .tool { stroke: #b07ff0; } .learn { stroke: #5fcf92; } .code { fill: #c79bf2; }
.flow { stroke: #a8abb4; } .head { fill: #a8abb4; } .frame { fill: #4a4f59; } .label { fill: #7f838d; } }
"""


@dataclasses.dataclass(frozen=True)
class _Box:
  """A rounded box with a name and lines of text."""

  x: int
  y: int
  width: int
  height: int
  kind: str  # its class in the style sheet
  name: str
  lines: Sequence[str]  # one that begins with '`' is code

  def svg(self) -> str:
    parts = [
      f'<rect class="box {self.kind}" x="{self.x}" y="{self.y}" width="{self.width}" '
      f'height="{self.height}" rx="12"/>',
      _text(self.x + 16, self.y + 28, 'name', self.name),
    ]
    parts += [
      _text(
        self.x + 16,
        self.y + 51 + 20 * i,
        'code' if line.startswith('`') else 'text',
        line.removeprefix('`'),
      )
      for i, line in enumerate(self.lines)
    ]
    return ''.join(parts)


_BOXES = (
  _Box(
    24,
    88,
    218,
    132,
    'agent',
    'Overview',
    ['K frames of a long video,', 'K drawn from {4 … 64}', '+ the question'],
  ),
  _Box(
    306,
    88,
    218,
    132,
    'agent',
    'Main agent',
    ['`<think>  (pinned)', 'looks where it must:', 'several calls in one turn'],
  ),
  *(
    _Box(
      616,
      52 + 72 * i,
      226,
      60,
      'tool',
      f'Sub-agent {i + 1}',
      [f'`crop_video({start}, {start + 5})'],
    )
    for i, start in enumerate((18, 42, 55))
  ),
  _Box(
    926,
    88,
    218,
    132,
    'agent',
    'Answer',
    ['`<think> … </think>', '`<answer>B</answer>', 'or another round of calls'],
  ),
  _Box(
    926,
    322,
    218,
    118,
    'learn',
    'Reward',
    ['accuracy + format + tool', 'format: the anchor that', 'keeps tags from collapsing'],
  ),
  _Box(
    616,
    322,
    226,
    118,
    'learn',
    'PARA-GRPO',
    ['8 rollouts per question,', 'compared with each other;', 'one jitted step on the mesh'],
  ),
  _Box(
    306,
    322,
    218,
    118,
    'learn',
    'Weights',
    ['`weights/<version>/', 'Orbax, after every step,', 'checked by a canary'],
  ),
  _Box(
    24,
    322,
    218,
    118,
    'learn',
    'Rollout server',
    ['SGLang or embedded JAX,', 'one HTTP protocol', '`/generate'],
  ),
)
_FAN = [f'M524 154C570 154 570 {82 + 72 * i} 606 {82 + 72 * i}' for i in range(3)]
_BACK = [f'M842 {82 + 72 * i}C884 {82 + 72 * i} 884 154 916 154' for i in range(3)]
_FLOWS = [
  'M242 154H296',
  *_FAN,
  *_BACK,
  'M1035 220V312',
  'M926 381H852',
  'M616 381H534',
  'M306 381H252',
  'M133 322V230',
]


def loop() -> str:
  """The loop as SVG text: overview, parallel crops, sub-agents, answer; reward, PARA-GRPO, weights,
  server. Light and dark.
  """
  arrows = ''.join(f'<path class="flow" d="{path}" marker-end="url(#head)"/>' for path in _FLOWS)
  notes = (
    _text(24, 34, 'label', 'ROLLOUT')
    + _text(24, 306, 'label', 'LEARNING')
    + _text(1047, 272, 'note', 'episode')
    + _text(150, 284, 'note', 'the same weights for all agents')
    + _text(616, 34, 'note', 'in parallel, fresh context each')
  )
  head = (
    '<marker id="head" viewBox="0 0 10 10" refX="1" refY="5" markerWidth="5.5" '
    'markerHeight="5.5" orient="auto"><path class="head" d="M0 0L10 5L0 10z"/></marker>'
  )
  about = (
    'The loop: overview, parallel crops, sub-agents, answer, reward, PARA-GRPO, weights, server'
  )
  drawn = ''.join(box.svg() for box in _BOXES)
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1168 464" width="1168" height="464" '
    f'role="img" aria-label="{about}"><style>{_STYLE}</style><defs>{head}</defs><rect '
    f'class="ground" width="1168" height="464" rx="16"/>{_film()}{arrows}{drawn}{notes}</svg>\n'
  )


def write(folder: Path) -> Path:
  """Writes loop.svg into a folder that exists; returns its path."""
  path = folder / 'loop.svg'
  path.write_text(loop(), encoding='utf-8')
  return path


def _film() -> str:
  """A strip of frames above the overview, the four that are seen marked."""
  kinds = ('frame', 'hit', 'frame', 'frame') * 4
  return ''.join(
    f'<rect class="{kind}" x="{24 + 13.7 * i:.1f}" y="52" width="11" height="20" rx="2"/>'
    for i, kind in enumerate(kinds)
  )


def _text(x: float, y: float, css: str, text: str) -> str:
  return f'<text class="{css}" x="{x}" y="{y}">{html.escape(text)}</text>'


if __name__ == '__main__':
  FOLDER.mkdir(exist_ok=True)
  print(write(FOLDER))
