"""A page runs its own script and nothing else, and asks nobody for anything, whatever it shows.

The first half reads the pages. The second half opens them in a real browser beside a server that
counts requests, after it has shown that the same texts do run and ask where nothing stops them.
"""

import base64
import hashlib
import html.parser
import http.server
import json
import pathlib
import re
import shutil
import subprocess
import threading

import pytest

from paravt_jax.report import ablation_page, build, evaluation, policy, preview
from tests.report import made_evaluation, made_run
from tests.report.ablation_page_test import RESULTS

BROWSER = next(
  filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)
# what must stay as it is for the page to show the rest
NAMES = {'stop', 'status', 'question_type', 'class', 'benchmark', 'scale', 'commit'}
PAGES = ('run', 'evaluation', 'preview', 'ablation')


def hostile(url: str) -> str:
  """A text that breaks out of everything, runs scripts, and asks for `url` in every way."""
  mark = 'document.documentElement.dataset.ran=&quot;yes&quot;'
  return (
    f'"\'>--></title></style></textarea></script><script>document.documentElement.dataset.ran='
    f'"yes";fetch("{url}/fetch")</script><img src="{url}/img"><img src=x onerror="{mark}">'
    f'<svg onload="{mark}"></svg><link rel="stylesheet" href="{url}/link"><iframe src="{url}/frame">'
    f'</iframe><style>@import "{url}/import"; body {{ background: url({url}/style) }}</style>'
    f'<p style="background:url({url}/attribute)">x</p><object data="{url}/object"></object>'
    f'<video src="{url}/video" autoplay></video><base href="{url}/base/"><img src="relative">'
    f'<a href="javascript:{mark}">x</a>{{{{ 7 * 7 }}}}'
  )


def poisoned(value, text: str, name: str = ''):
  """A JSON value with `text` behind each of its texts, numbers as they are."""
  if isinstance(value, str):
    return value if name in NAMES else value + text
  if isinstance(value, list):
    return [poisoned(one, text, name) for one in value]
  if isinstance(value, dict):
    return {key: poisoned(one, text, key) for key, one in value.items()}
  return value


def written(kind: str, text: str, folder: pathlib.Path) -> pathlib.Path:
  """A page of this kind whose every text from outside is `text`, or ends with it."""
  out = folder / f'{kind}.html'
  if kind == 'run':
    run = made_run.write_run(folder / '<img src=x onerror=run()>', questions=4, steps=3, seed=0)
    for path in (run / 'config.json', *run.glob('eval_*/results.jsonl'), *run.glob('*/*.jsonl')):
      lines = path.read_text().splitlines() if path.suffix == '.jsonl' else [path.read_text()]
      path.write_text('\n'.join(json.dumps(poisoned(json.loads(x), text)) for x in lines) + '\n')
    (run / 'git.txt').write_text(text + '\n')
    return build.build(run, out, None, made_run.decode)
  if kind == 'evaluation':
    rows = [made_evaluation.line('mlvu', n, score=float(n % 2)) for n in range(3)]
    rows.append(made_evaluation.line('mlvu', 4, score=None))
    results = made_evaluation.folder_of(folder, *(poisoned(row, text) for row in rows))
    return evaluation.write(results, out, None)
  if kind == 'preview':
    looks = [preview.unreadable(text, text, text, text)]
    return preview.write(out, text, looks, preview.Limits(512, 16, 24, 0))
  settings = ablation_page.Settings(
    text, (text,), {text: (text,), 'para_grpo': ()}, text, {text: (text, 'para_grpo')}
  )
  results = {text: RESULTS['grpo'], 'para_grpo': RESULTS['para_grpo']}
  page = ablation_page.render(results, settings, {text: ablation_page.draw(text, results)})
  out.write_text(page)
  return out


class Reader(html.parser.HTMLParser):
  """Elements of a page in order, and the text of its scripts."""

  def __init__(self, page: str):
    super().__init__()
    self.elements: list[tuple[str, dict]] = []
    self.scripts: list[str] = []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag == 'script':
      self.scripts.append('')

  def handle_data(self, data):
    if self.elements and self.elements[-1][0] == 'script' and self.scripts[-1] == '':
      self.scripts[-1] = data


@pytest.mark.parametrize('kind', PAGES)
def test_a_page_has_one_script_which_its_policy_names_and_loads_nothing(kind, tmp_path):
  page = written(kind, hostile('http://127.0.0.1:9'), tmp_path).read_text()
  assert '&lt;script&gt;' in page and '{{ 7 * 7 }}' in page  # the texts are there, as texts
  reader = Reader(page)
  assert [tag for tag, _ in reader.elements[:4]] == ['html', 'head', 'meta', 'meta']
  rules = reader.elements[3][1]['content'].split('; ')
  digest = base64.b64encode(hashlib.sha256(reader.scripts[0].encode()).digest()).decode()
  assert len(reader.scripts) == 1 and f"script-src 'sha256-{digest}'" in rules
  assert "default-src 'none'" in rules and "base-uri 'none'" in rules
  for tag, attributes in reader.elements:
    assert tag not in ('link', 'iframe', 'object', 'embed', 'base', 'form', 'video', 'audio'), tag
    for name, value in attributes.items():
      assert not name.startswith('on') and 'http' not in (value or '') * (name == 'style'), name
      if name in ('src', 'href', 'action', 'srcset'):
        assert (value or '').startswith(('data:image/', '#')), (tag, name, value)


def test_the_policy_allows_one_script_alone():
  found = policy.meta('one()')
  assert found != policy.meta('two()') and 'unsafe-inline' not in found.partition('script-src')[2]
  assert str(found).count('<') == 1


@pytest.fixture
def asked():
  """(address of a server, the paths that it was asked for)."""
  paths: list[str] = []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      paths.append(self.path)
      self.send_response(404)
      self.end_headers()

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}', paths
    server.shutdown()


def opened(page: pathlib.Path, scratch: pathlib.Path, part: str = '') -> str:
  """The page as the browser has it after its scripts have run."""
  words = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--dump-dom']
  words += ['--virtual-time-budget=2000', f'--user-data-dir={scratch}', page.as_uri() + part]
  done = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120, check=False)
  assert '</html>' in done.stdout, done.stderr[-2000:]
  return done.stdout


browser = pytest.mark.skipif(not BROWSER, reason='needs Chromium, which is not installed here')
RAN = 'data-ran="yes"'


@browser
@pytest.mark.slow
def test_without_escapes_the_texts_run_and_ask_and_the_policy_alone_stops_them(asked, tmp_path):
  url, paths = asked
  page = tmp_path / 'page.html'
  shell = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">{}</head><body>{}</body></html>'
  )
  page.write_text(shell.format('', hostile(url)))
  assert RAN in opened(page, tmp_path / 'profile')
  assert {'/fetch', '/img', '/link', '/frame', '/style', '/attribute'} <= set(paths)
  paths.clear()
  page.write_text(shell.format(policy.meta('one()'), hostile(url)))
  assert RAN not in opened(page, tmp_path / 'profile')
  assert paths == []


@browser
@pytest.mark.slow
@pytest.mark.parametrize('kind', PAGES)
def test_a_hostile_run_in_a_browser_runs_no_script_and_makes_no_request(kind, asked, tmp_path):
  url, paths = asked
  page = opened(written(kind, hostile(url), tmp_path), tmp_path / 'profile')
  assert url in page and RAN not in page
  assert paths == []


@browser
@pytest.mark.slow
def test_the_own_script_of_a_page_runs(tmp_path):
  page = written('evaluation', '', tmp_path)
  assert not re.search(r'id="shown">1 of ', page.read_text())
  filtered = opened(page, tmp_path / 'profile', '#outcome=error')
  assert re.search(r'id="shown">1 of [2-4]<', filtered)
