"""Where the endpoint can be reached.

Ray Serve listens on the nodes that run replicas, and on the head. The command may run on neither.
"""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.serve.config import HTTPOptions

from orchestrator.errors import StageError
from orchestrator.job.api_keys import is_loopback
from orchestrator.job.job import Job

SECONDS = 30.0  # for a proxy to listen
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class Address:
    """An address of the endpoint.

    `url` is true on the node `node`, by Ray's id, whose address is `ip`. If `is_local`, it is true
    on that node alone. `hint` says how other machines reach it.
    """

    url: str
    node: str
    ip: str
    is_local: bool
    hint: str


def find_address(job: Job, options: HTTPOptions) -> Address:
    """An address on which a proxy listens: on this node, if there is one.

    Raises:
        StageError: if no proxy becomes healthy within half a minute.
    """
    controller: Any = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    deadline = time.monotonic() + SECONDS
    while True:
        details = ray.get(controller.get_serve_instance_details.remote())
        proxies = {
            node: proxy["node_ip"]
            for node, proxy in details["proxies"].items()
            if proxy["status"] == "HEALTHY"
        }
        if proxies:
            here = ray.get_runtime_context().get_node_id()
            nodes = sum(node["Alive"] for node in ray.nodes())
            return address_of(proxies, here, options, job.serve.route_prefix, nodes)
        if time.monotonic() > deadline:
            states = {proxy["node_ip"]: proxy["status"] for proxy in details["proxies"].values()}
            raise StageError(
                f"Ray Serve listens on no node: its proxies are {states or 'not started'}: is "
                f"serve.host = {options.host} an address of them, and port {options.port} free?"
            )
        time.sleep(0.2)


def address_of(
    proxies: Mapping[str, str], here: str, options: HTTPOptions, route_prefix: str, nodes: int
) -> Address:
    """The address of one of the proxies, given by node and IP, in a cluster of so many nodes."""
    node = here if here in proxies else min(proxies, key=lambda node: proxies[node])
    ip, given = proxies[node], options.host or LOCALHOST
    path = f":{options.port}{route_prefix.rstrip('/')}"
    if is_loopback(given):
        hint = (
            f"it listens on node {ip} for that machine alone: `ssh -N -L "
            f"{options.port}:{given}:{options.port} {ip}` brings it to another one; serve.host: "
            f"0.0.0.0 with serve.keys opens it to the network"
        )
        return Address(f"http://{_in_url(given)}{path}", node, ip, True, hint)
    if given not in ("0.0.0.0", "::"):  # noqa: S104
        return Address(f"http://{_in_url(given)}{path}", node, ip, False, "")
    elsewhere = "" if is_loopback(ip) else f"other machines reach it at http://{_in_url(ip)}{path}"
    if nodes == 1:
        return Address(f"http://{LOCALHOST}{path}", node, ip, True, elsewhere)
    return Address(f"http://{_in_url(ip)}{path}", node, ip, is_loopback(ip), "")


def why_not_free(host: str, port: int) -> str:
    """Why this machine cannot listen on this address; empty if it can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
