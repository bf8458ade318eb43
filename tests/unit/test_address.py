"""The address of an endpoint whose proxies run on some nodes of a cluster."""

import pytest
from ray.serve.config import HTTPOptions

from orchestrator.serve.address import address_of

HEAD, OTHER = "node-1", "node-2"
PROXIES = {HEAD: "10.0.0.1", OTHER: "10.0.0.2"}


@pytest.mark.parametrize(
    ("host", "proxies", "nodes", "url", "node", "is_local"),
    [
        ("127.0.0.1", {HEAD: "10.0.0.1"}, 1, "http://127.0.0.1:8000/x", HEAD, True),
        ("127.0.0.1", PROXIES, 3, "http://127.0.0.1:8000/x", HEAD, True),
        ("127.0.0.1", {OTHER: "10.0.0.2"}, 3, "http://127.0.0.1:8000/x", OTHER, True),
        ("0.0.0.0", {OTHER: "10.0.0.2"}, 3, "http://10.0.0.2:8000/x", OTHER, False),
        ("0.0.0.0", PROXIES, 3, "http://10.0.0.1:8000/x", HEAD, False),
        ("0.0.0.0", {HEAD: "10.0.0.1"}, 1, "http://127.0.0.1:8000/x", HEAD, True),
        ("10.0.0.2", {OTHER: "10.0.0.2"}, 3, "http://10.0.0.2:8000/x", OTHER, False),
        ("::", {OTHER: "fd00::2"}, 3, "http://[fd00::2]:8000/x", OTHER, False),
    ],
)
def test_the_url_is_true(
    host: str, proxies: dict[str, str], nodes: int, url: str, node: str, is_local: bool
) -> None:
    options = HTTPOptions(host=host, port=8000)
    address = address_of(proxies, HEAD, options, "/x/", nodes)
    assert (address.url, address.node, address.is_local) == (url, node, is_local)


def test_an_endpoint_of_one_machine_says_how_others_reach_it() -> None:
    options = HTTPOptions(host="127.0.0.1", port=8000)
    address = address_of({OTHER: "10.0.0.2"}, HEAD, options, "/", 3)
    assert "ssh -N -L 8000:127.0.0.1:8000 10.0.0.2" in address.hint
    assert "serve.host: 0.0.0.0 with serve.keys" in address.hint
    alone = address_of(PROXIES, HEAD, HTTPOptions(host="0.0.0.0", port=8000), "/", 1)
    assert alone.hint == "other machines reach it at http://10.0.0.1:8000"
