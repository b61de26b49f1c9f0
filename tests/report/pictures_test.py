"""The README's picture is what the code draws."""

import xml.etree.ElementTree as ET

from paravt_jax.report import pictures


def test_the_committed_picture_is_the_drawn_one(tmp_path):
  assert (pictures.FOLDER / 'loop.svg').read_text() == pictures.write(tmp_path).read_text()


def test_the_picture_is_xml_and_names_every_station():
  texts = [
    element.text
    for element in ET.fromstring(pictures.loop()).iter('{http://www.w3.org/2000/svg}text')
  ]
  assert {
    'Overview',
    'Main agent',
    'Sub-agent 1',
    'Sub-agent 3',
    'Answer',
    'Reward',
    'PARA-GRPO',
    'Weights',
    'Rollout server',
  } <= set(texts)
