"""The files of third_party/launch: each command builds its recipe, and placements agree."""

import json
import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from paravt_jax.orchestrator import checks, servers, split
from paravt_jax.orchestrator.setup import AgentSetup
from paravt_jax.serving import sglang
from tests import documents_test
from tests.rollout import gateways

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'third_party' / 'launch'
FILES = sorted(path for path in LAUNCH.rglob('*') if path.is_file())
SCRIPTS = [path for path in FILES if path.suffix in ('.sh', '.sbatch')]
IMAGES = [path for path in FILES if path.suffix == '.Dockerfile']
VALUES = {
  '$SHARED': '/shared',
  '${nodes[1]}': 'node1',
  '$address': 'node1',
  '$model': '/shared/model',
}


def named(path):
  return str(path.relative_to(LAUNCH))


def text(name):
  """A file's lines, continued ones joined, with values for its variables."""
  found = (LAUNCH / name).read_text().replace('\\\n', ' ')
  for variable, value in VALUES.items():
    found = found.replace(variable, value)
  return found


def commands(name):
  """The arguments of each learner that a file starts."""
  if name.endswith('.yaml'):
    return [words for words in map(arguments, containers(name).values()) if is_learner(words)]
  found = re.findall(r'python -m experiments\.rl (.*)', text(name).replace('\\"', '"'))
  return [shlex.split(line[: -(line.count('"') % 2) or None]) for line in found]


def is_learner(words):
  return any(word.startswith('--config=') for word in words)


def containers(name):
  """The containers of a JobSet or of a compose file, by name."""
  value = yaml.safe_load((LAUNCH / name).read_text())
  if 'services' in value:
    return value['services']
  specs = [job['template']['spec']['template']['spec'] for job in value['spec']['replicatedJobs']]
  return {one['name']: one for spec in specs for one in spec['containers']}


def arguments(container):
  return container.get('args') or container.get('command')


LEARNERS = ('slurm.sbatch', 'jobset.yaml', 'tpu_pod.sh', 'docker/compose.yaml')


def recipe(name):
  (words,) = commands(name)
  return documents_test.resolved('rl', words)


def gpus(value):
  """GPUs of a container."""
  if 'resources' in value:
    return value['resources']['limits']['nvidia.com/gpu']
  (device,) = value['deploy']['resources']['reservations']['devices']
  return len(device['device_ids'])


def size(found):
  return found.mesh.data * found.mesh.fsdp * found.mesh.tensor


@pytest.mark.parametrize('name', LEARNERS)
def test_every_learner_builds_its_recipe_and_its_knobs_fit_each_other(name):
  found = recipe(name)
  checks.check_rl(found, installed=False)
  server = found.server
  shared = [found.model.folder, found.data.media_root, found.run.folder]
  if name == 'tpu_pod.sh':  # several hosts take no router; each has its own server
    assert split.is_split(server) and not server.urls and not server.router
  else:
    assert server.kind == 'url' and server.router and not server.urls
    shared.append(server.sglang.staging)
  # What learner and servers share lies in one folder.
  assert all(path.startswith('/shared/') for path in (*shared, *found.data.train))


@pytest.mark.parametrize('path', SCRIPTS, ids=named)
def test_bash_reads_every_script(path):
  result = subprocess.run(['bash', '-n', str(path)], capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


@pytest.mark.parametrize('path', SCRIPTS, ids=named)
def test_every_script_ends_at_its_first_error_and_at_an_unset_variable(path):
  assert path.read_text().startswith('#!')
  assert 'set -euo pipefail' in path.read_text().splitlines()


def test_the_other_files_are_learners_servers_and_a_guide():
  assert {named(path) for path in FILES} == {
    *('README.md', 'servers.sh', *LEARNERS),
    *(f'docker/{name}.Dockerfile' for name in ('learner', 'sglang')),
    *(f'docker/{name}.Dockerfile.dockerignore' for name in ('learner', 'sglang')),
  }


# What a Kubernetes API server knows of these fields: a type, a set of values, [of each], {fields}.
# A field with ! must be there.
POD = {
  'spec': {
    'restartPolicy': {'Never', 'OnFailure'},
    'nodeSelector': dict,
    'containers!': [
      {
        'name!': str,
        'image!': str,
        'args': [str],
        'ports': [{'containerPort!': int}],
        'resources': {'limits': {'nvidia.com/gpu': int}},
        'volumeMounts': [{'name!': str, 'mountPath!': str}],
      }
    ],
    'volumes': [
      {
        'name!': str,
        'persistentVolumeClaim': {'claimName!': str},
        'emptyDir': {'medium': {'', 'Memory'}},
      }
    ],
  }
}
JOBSET = {
  'apiVersion!': {'jobset.x-k8s.io/v1alpha2'},
  'kind!': {'JobSet'},
  'metadata!': {'name!': str},
  'spec!': {
    'network': {'enableDNSHostnames': bool, 'publishNotReadyAddresses': bool},
    'successPolicy': {'operator!': {'All', 'Any'}, 'targetReplicatedJobs': [str]},
    'failurePolicy': {'maxRestarts': int},
    'replicatedJobs!': [
      {
        'name!': str,
        'replicas': int,
        'template!': {
          'spec!': {'parallelism': int, 'completions': int, 'backoffLimit': int, 'template!': POD}
        },
      }
    ],
  },
}
COMPOSE = {
  'build!': {'context!': str, 'dockerfile': str},
  'command': [str],
  'volumes': [str],
  'shm_size': str,
  'depends_on': [str],
  'deploy': {
    'resources': {
      'reservations': {
        'devices': [{'driver': str, 'device_ids': [str], 'capabilities!': [{'gpu'}]}]
      }
    }
  },
}


def problems(value, schema, where=''):
  """What of a value its schema does not allow."""
  if isinstance(schema, type):
    return [] if type(value) is schema else [f'{where}: {value!r} is no {schema.__name__}']
  if isinstance(schema, set):
    return [] if value in schema else [f'{where}: {value!r} is none of {sorted(schema)}']
  if isinstance(schema, list):
    if not isinstance(value, list):
      return [f'{where}: {value!r} is no list']
    return [
      one for n, item in enumerate(value) for one in problems(item, schema[0], f'{where}[{n}]')
    ]
  if not isinstance(value, dict):
    return [f'{where}: {value!r} is no mapping']
  fields = {name.rstrip('!'): inner for name, inner in schema.items()}
  wrong = [f'{where}: unknown field {name}' for name in value if name not in fields]
  wrong += [
    f'{where}: lacks {name[:-1]}' for name in schema if name[-1] == '!' and name[:-1] not in value
  ]
  for name in value.keys() & fields.keys():
    wrong += problems(value[name], fields[name], f'{where}.{name}')
  return wrong


def test_the_jobset_has_fields_that_its_schema_knows():
  value = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
  assert problems(value, JOBSET) == []
  spec = value['spec']
  jobs = [job['name'] for job in spec['replicatedJobs']]
  assert set(spec['successPolicy']['targetReplicatedJobs']) <= set(jobs)
  assert all(re.fullmatch(r'[a-z0-9]([-a-z0-9]*[a-z0-9])?', name) for name in jobs)
  for job in spec['replicatedJobs']:
    pod = job['template']['spec']['template']['spec']
    volumes = {volume['name'] for volume in pod['volumes']}
    mounts = {mount['name'] for one in pod['containers'] for mount in one['volumeMounts']}
    assert mounts == volumes


def test_the_compose_file_has_fields_that_its_schema_knows():
  value = yaml.safe_load((LAUNCH / 'docker/compose.yaml').read_text())
  assert set(value) == {'services'}
  services = value['services']
  assert [one for each in services.values() for one in problems(each, COMPOSE)] == []
  here = LAUNCH / 'docker'
  for service in services.values():
    assert (here / service['build']['context']).resolve() == ROOT
    assert (ROOT / service['build']['dockerfile']).is_file()
    assert set(service.get('depends_on', ())) <= set(services)


def test_a_wrong_field_a_missing_one_and_a_wrong_type_are_seen():
  wrong = {'name': 'a', 'imagee': 'b', 'args': 'c'}
  assert problems(wrong, POD['spec']['containers!'][0], 'x') == [
    'x: unknown field imagee',
    'x: lacks image',
    "x.args: 'c' is no list",
  ]


def test_the_jobsets_learner_asks_the_pod_that_has_the_router():
  value = yaml.safe_load((LAUNCH / 'jobset.yaml').read_text())
  name = value['metadata']['name']
  assert value['spec']['network']['enableDNSHostnames']
  model, address, count = arguments(containers('jobset.yaml')['servers'])
  assert address == f'{name}-servers-0-0.{name}'
  assert recipe('jobset.yaml').server.router == f'http://{address}:30000'
  assert recipe('jobset.yaml').model.folder == model
  assert gpus(containers('jobset.yaml')['servers']) == int(count)


def test_the_compose_files_learner_asks_the_service_that_has_the_router():
  model, address, count = arguments(containers('docker/compose.yaml')['servers'])
  assert address in containers('docker/compose.yaml')
  assert recipe('docker/compose.yaml').server.router == f'http://{address}:30000'
  assert recipe('docker/compose.yaml').model.folder == model
  found = [one['deploy'] for one in containers('docker/compose.yaml').values()]
  devices = [one['resources']['reservations']['devices'][0]['device_ids'] for one in found]
  assert sorted(one for some in devices for one in some) == list('01234567')  # each GPU once
  assert gpus(containers('docker/compose.yaml')['servers']) == int(count)


def test_the_slurm_jobs_learner_asks_the_node_that_has_the_router():
  (started,) = re.findall(r'servers\.sh (.*) &', text('slurm.sbatch'))
  model, address, count = shlex.split(started)
  assert recipe('slurm.sbatch').server.router == f'http://{address}:30000'
  assert recipe('slurm.sbatch').model.folder == model
  assert f'--gpus-per-node={count}' in text('slurm.sbatch')


@pytest.mark.parametrize(
  'name, devices',
  [
    ('slurm.sbatch', 8),
    ('jobset.yaml', gpus(containers('jobset.yaml')['learner'])),
    ('docker/compose.yaml', gpus(containers('docker/compose.yaml')['learner'])),
    ('tpu_pod.sh', 16 // 2),  # v5p-16: sixteen cores are eight chips
  ],
)
def test_a_learner_has_as_many_devices_as_its_mesh_and_servers_in_its_processes(name, devices):
  found, hosts = recipe(name), 2
  assert size(found) + hosts * split.server_devices(found.server) == devices


def test_servers_start_as_a_run_would_start_them():
  """Else a server by URL differs from one of the run, and its canary may fail."""
  whole = recipe('slurm.sbatch')
  setup = AgentSetup.of(whole.replace(server=whole.server.replace(kind='sglang', router='')))
  options = servers._sglang(setup, 0, pathlib.Path('/shared/model'), ROOT / 'third_party/sglang')
  expected = flags(sglang.command(options, 0)[2:])
  (line,) = re.findall(r'launch_gpu\.py" (.*) \|\|', text('servers.sh'))
  found = flags(shlex.split(line.replace('$((30001 + $1))', '0').replace('$$', '0')))
  assert found == {**expected, '--host': '0.0.0.0', '--port': '0'}
  exported = dict(
    re.findall(r'(\w+)=(\S+)', ' '.join(re.findall(r'export (.*)', text('servers.sh'))))
  )
  local = '127.0.0.1,localhost,node1'
  assert exported == {**sglang.environment(options, {}), 'NO_PROXY': local, 'no_proxy': local}


def flags(words):
  """{'--flag': value} of a command line; True for a flag without one."""
  found = {}
  for word, after in zip(words, [*words[1:], '--']):
    if word.startswith('--'):
      found[word] = True if after.startswith('--') else after
  return found


def test_the_router_starts_as_a_run_wants_it():
  (line,) = re.findall(r'-m smg launch (.*)', text('servers.sh'))
  assert flags(gateways.FLAGS).items() <= flags(shlex.split(line)).items()
  assert flags(shlex.split(line))['--port'] == '30000'


INSTRUCTIONS = {'FROM', 'RUN', 'COPY', 'WORKDIR', 'ENTRYPOINT', 'CMD', 'EXPOSE'}


@pytest.mark.parametrize('path', IMAGES, ids=named)
def test_every_image_is_built_from_files_that_are_there(path):
  lines = [line for line in path.read_text().splitlines() if line and not line.startswith('#')]
  steps = [line.split(' ', 1) for line in lines]
  assert (path.parent / f'{path.name}.dockerignore').is_file()  # else environments are sent along
  assert {name for name, _ in steps} <= INSTRUCTIONS and steps[0][0] == 'FROM'
  assert re.fullmatch(r'[\w./-]+:[\w.-]+', steps[0][1])  # a release, not the newest
  copied = [word for name, rest in steps if name == 'COPY' for word in rest.split()[:-1]]
  assert copied and all((ROOT / one).exists() for one in copied)
  for name, rest in steps:
    if name in ('ENTRYPOINT', 'CMD'):
      assert all(isinstance(word, str) for word in json.loads(rest))
  (entry,) = [json.loads(rest) for name, rest in steps if name == 'ENTRYPOINT']
  assert entry[-1] == 'experiments.rl' or entry[-1] in [
    f'{rest.split()[-1]}servers.sh' for name, rest in steps if name == 'COPY'
  ]


@pytest.mark.parametrize('path', FILES, ids=named)
def test_every_path_and_target_that_a_file_names_is_there(path):
  found = path.read_text()
  inside = re.findall(r'(?:third_party|configs|experiments)/[\w/.-]*\w', found)
  assert [one for one in inside if not (ROOT / one).exists()] == []
  targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
  made = re.findall(r'\bmake (setup|[a-z]*sglang[a-z-]*)', found)
  assert set(made) <= set(targets)
