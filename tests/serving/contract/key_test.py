"""The key of a server that a run starts: only the server and its clients know it."""

import pathlib

import psutil

from tests.serving.contract.drive import KEY


def test_no_user_of_the_machine_can_read_the_key(served):
  root = psutil.Process(served.process.pid)
  members = [root, *root.children(recursive=True)]
  assert served.kind == 'embedded' or len(members) >= 3
  for member in members:
    for name in ('cmdline', 'environ', 'comm'):
      seen = pathlib.Path(f'/proc/{member.pid}/{name}').read_bytes()
      assert KEY.encode() not in seen, f'{name} of {member.name()}'
  said = served.process.log.read_text()
  assert KEY not in said
  # SGLang logs its arguments
  assert served.kind == 'embedded' or "'api_key': '***'" in said


def test_only_the_key_opens_the_door(served):
  for wrong in (None, '', KEY[:-1], KEY + 'x', KEY.upper()):
    assert served.call('/get_model_info', key=wrong)[0] == 401
  assert served.call('/get_model_info')[0] == 200
  assert served.call('/health', key=None)[0] == 200
