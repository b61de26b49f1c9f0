"""The servers of one host of several."""

import pytest

from paravt_jax.errors import ConfigError
from paravt_jax.orchestrator.hosts import Hosts
from paravt_jax.orchestrator.server_options import ServersOptions
from paravt_jax.orchestrator.setup import _own_servers

URLS = ('http://a:1', 'http://b:1', 'http://c:1')


def test_each_host_updates_a_share_of_the_servers():
  server = ServersOptions.published().replace(urls=URLS)
  assert [_own_servers(server, Hosts(n, 2)).urls for n in range(2)] == [
    (URLS[0], URLS[2]),
    (URLS[1],),
  ]


def test_fewer_servers_than_hosts_are_refused():
  server = ServersOptions.published().replace(urls=URLS)
  with pytest.raises(ConfigError, match=r'server\.urls: got 3 servers for 4 hosts'):
    _own_servers(server, Hosts(0, 4))


def test_a_router_is_refused_for_it_sends_requests_to_servers_of_other_hosts():
  server = ServersOptions.published().replace(urls=URLS, router='http://a:2')
  with pytest.raises(ConfigError, match=r'server\.router: got http://a:2 for 2 hosts, wanted one'):
    _own_servers(server, Hosts(0, 2))
