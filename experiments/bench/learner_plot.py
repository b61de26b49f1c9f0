"""The picture of suite `learner`: one bar per measured ratio, and one per backend of attention."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _LINE, _LABEL, _MARGIN = 900, 34, 330, 24
_INK, _GREY, _BAR, _OTHER = '#222222', '#999999', '#2b6cb0', '#b0c4de'
_TEXT, _TITLE = 15, 19  # points

Bar = tuple[str, float, str]  # label, length, what stands behind the bar


def draw(report: Mapping[str, Any], file: pathlib.Path) -> pathlib.Path:
  """Draws the report of `learner.suite` into a PNG file and returns it."""
  ratios, times = _ratios(report), _times(report['attention'])
  height = 2 * _MARGIN + _LINE * (len(ratios) + len(times) + 5)
  image = Image.new('RGB', (_WIDTH, height), 'white')
  pen = ImageDraw.Draw(image)
  y = _panel(pen, _MARGIN, f'How many times faster, on {report["device"]}', ratios, mark=1.0)
  title = 'Attention, forward and backward, seconds (shorter is better)'
  _panel(pen, y + _LINE, title, times, mark=None)
  image.save(file)
  return file


def _ratios(report: Mapping[str, Any]) -> list[Bar]:
  names = {
    'text_ratio': 'SFT step, text, against torch',
    'packed_ratio': 'SFT step, frames and text, against torch',
    'policy_ratio': 'policy step, against torch',
  }
  found = [(label, report['versus_torch'][name]) for name, label in names.items()]
  sharing = report['prefix_sharing']
  found += [
    ('shared prompt against own prompts, time', sharing['time_ratio']),
    ('the same, FLOPs', sharing['flops_ratio']),
  ]
  return [(label, value, f'{value:.2f} x') for label, value in found]


def _times(attention: Mapping[str, Any]) -> list[Bar]:
  names = ('plain', 'chunked', 'tiled', 'kernel')
  seconds = [(name, attention[f'{name}_seconds']) for name in names]
  return [(name, one, f'{one:.3g} s') for name, one in seconds if one is not None]


def _panel(
  pen: ImageDraw.ImageDraw, y: int, title: str, bars: Sequence[Bar], mark: float | None
) -> int:
  """Draws a title and horizontal bars from `y` on. Returns the y below them.

  `mark` is a value that gets a vertical line.
  """
  pen.text((_MARGIN, y), title, fill=_INK, font=ImageFont.load_default(_TITLE))
  y += _LINE
  font = ImageFont.load_default(_TEXT)
  longest = max(*(value for _, value, _ in bars), mark or 0.0)
  scale = (_WIDTH - _LABEL - 4 * _MARGIN) / longest
  top = y
  for label, value, text in bars:
    end = _LABEL + max(round(value * scale), 1)
    pen.text((_MARGIN, y + 4), label, fill=_INK, font=font)
    colour = _BAR if mark is None or value >= mark else _OTHER
    pen.rectangle((_LABEL, y + 3, end, y + _LINE - 9), fill=colour)
    pen.text((end + 6, y + 4), text, fill=_INK, font=font)
    y += _LINE
  if mark is not None:
    at = _LABEL + round(mark * scale)
    pen.line((at, top - 2, at, y), fill=_GREY, width=2)
    pen.text((at + 4, y - 4), f'{mark:g} x', fill=_GREY, font=font)
  return y
