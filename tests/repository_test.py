"""The repository's own files: what stands at the top, and that its helpers say what is true."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TOP = {
  *('paravt_jax', 'experiments', 'configs', 'tests', 'third_party'),
  *('README.md', 'LICENSE', 'CHANGELOG.md', 'CITATION.cff', 'CONTRIBUTING.md'),
  *('WORKSPACE_NOTES.md', 'Makefile', 'pyproject.toml', 'requirements.txt', 'ruff.toml'),
  *('.ci', '.editorconfig', '.gitignore', '.github', '.pre-commit-config.yaml'),
  '.git-blame-ignore-revs',
}


def text(name):
  return (ROOT / name).read_text()


def test_the_top_level_holds_the_agreed_names_only():
  listed = subprocess.run(
    ['git', '-C', str(ROOT), 'ls-files'], capture_output=True, text=True, check=False
  )
  if listed.returncode:
    pytest.skip('not a git checkout')
  top = {line.partition('/')[0] for line in listed.stdout.splitlines()}
  assert top == TOP


def test_hosted_ci_runs_what_every_change_must_pass():
  workflow = text('.github/workflows/ci.yml')
  assert '- run: .ci/run\n' in workflow and 'python-version: "3.11"' in workflow
  assert (ROOT / '.ci' / 'run').stat().st_mode & 0o111


def test_the_hooks_before_a_commit_are_those_of_make_lint():
  hooks = re.findall(r'entry: \.venv/bin/(ruff \w+)', text('.pre-commit-config.yaml'))
  assert hooks == ['ruff check', 'ruff format']
  assert all(f'/bin/{hook}' in text('Makefile') for hook in hooks)


def test_editors_and_the_formatter_agree():
  editor, ruff = text('.editorconfig'), text('ruff.toml')
  assert 'indent_size = 2\n' in editor and 'indent-width = 2\n' in ruff
  assert 'max_line_length = 100\n' in editor and 'line-length = 100\n' in ruff


def test_the_commands_that_contributors_are_told_exist():
  told = set(re.findall(r'\bmake ([a-z-]+)', text('CONTRIBUTING.md')))
  targets = set(re.findall(r'^([a-z-]+):', text('Makefile'), re.MULTILINE))
  assert {'setup', 'lint', 'test', 'test-slow', 'test-sglang'} <= told <= targets


def test_the_commits_that_blame_passes_over_are_whole_hashes_each_with_its_reason():
  blocks = text('.git-blame-ignore-revs').strip().split('\n\n')[1:]
  assert blocks and all(re.fullmatch(r'# .+\n[0-9a-f]{40}', block) for block in blocks)


def test_the_unreleased_changes_stand_on_top_of_the_changelog():
  titles = re.findall(r'^## \[(.+?)\]', text('CHANGELOG.md'), re.MULTILINE)
  assert titles[0] == 'Unreleased'
