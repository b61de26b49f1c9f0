"""Calls as policies write them, for tests of the parser."""

from paravt_jax.chat import toolcalls
from paravt_jax.types import ParseFailure, ToolCall

GOOD = (
  '<tool_call>{"name": "crop_video", "arguments": {"start_time": 1, "end_time": 2}}</tool_call>'
)
CALL = ToolCall('crop_video', {'start_time': 1, 'end_time': 2})
SLOPPY = ToolCall('crop_video', {'start_time': 1, 'end_time': 2}, False)
TIMES = '{"start_time": 1, "end_time": 2}'
OBJECT = f'{{"name": "crop_video", "arguments": {TIMES}}}'
XML = (
  '<function=crop_video>\n<parameter=start_time>\n1\n</parameter>\n'
  '<parameter=end_time>\n2\n</parameter>\n</function>'
)


def reasons(text: str) -> list[str]:
  return [
    item.reason if isinstance(item, ParseFailure) else item.name for item in toolcalls.parse(text)
  ]


def crop(**arguments) -> ToolCall:
  return ToolCall('crop_video', arguments)


def block(body: str) -> str:
  return f'<tool_call>{body}</tool_call>'
