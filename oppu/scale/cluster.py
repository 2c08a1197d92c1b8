"""A Ray of one's own for the length of a run, or a cluster that is there; and how many workers it has room for.

Ray is imported here and in `oppu.scale.ray` when they are used, and is kept quiet: no dashboard, no usage statistics.
"""

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from oppu.errors import ConfigError

LOCAL = "local"
AUTO = "auto"
_MOST_CORES, _FEWEST_CORES = 8, 4
_CONNECT_S = 5
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""RFC 9113, section 3.4: a server of HTTP/2, such as Ray's head, answers this with its settings at once."""
_HTTP2_SETTINGS = b"\x04"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or Ray warns of what a later version will do
    "RAY_gcs_rpc_server_connect_timeout_s": str(_CONNECT_S),
}


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to find Ray, and how many workers to have there."""

    address: str = LOCAL
    """local: one of one's own, on this machine; auto: the cluster that it belongs to; HOST:PORT of a cluster's head."""
    workers: int | None = None
    """None: one for each GPU; without GPUs, one for every eight cores, or for each machine where it has fewer."""


@dataclass(frozen=True, slots=True)
class Team:
    """The workers of a run: each has a copy of the base, and trains as many users at a time as the machine's slots."""

    workers: int
    cores: int
    """Of each worker: torch's threads."""
    gpus: int
    """Of each worker: 0 or 1."""

    def memory_share(self, cores: int) -> float:
        """What one worker may plan with of the free memory, on a machine of so many cores; a GPU is its own."""
        return 1.0 if self.gpus else min(1.0, self.cores / max(1, cores))


def team_for(machines: Sequence[Mapping[str, float]], wanted: int | None) -> Team:
    """The workers that fit on machines with such resources (`CPU`, `GPU`); ConfigError where they do not.

    Without GPUs a worker uses several cores by threads, which share one base and one queue; another worker on the same
    machine costs another base. Threads also share Python's lock, so by default a worker has at most eight cores; it has
    those of the smallest machine, or four where that has even fewer.
    """
    cores = [int(machine.get("CPU", 0)) for machine in machines]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    if sum(gpus):
        workers = sum(gpus) if wanted is None else wanted
        if workers > sum(gpus):
            raise _too_many(f"{sum(gpus)} GPUs, one for each worker", sum(gpus))
        return Team(workers, max(1, min(c // g for c, g in zip(cores, gpus, strict=True) if g)), 1)
    if wanted is None:
        most, least = max(cores, default=0), min((c for c in cores if c), default=0)
        each = min(_MOST_CORES, max(least, min(_FEWEST_CORES, most)))
        wanted = sum(c // each for c in cores) if each else 1
    for each in range(max(cores, default=0), 0, -1):
        if sum(c // each for c in cores) >= wanted:
            return Team(wanted, each, 0)
    raise _too_many(f"{sum(cores)} cores, one at least for each worker", sum(cores))


def addresses(nodes: Sequence[Mapping[str, Any]], here: str) -> set[str]:
    """The machines on which a worker may run, among Ray's nodes, and the one whose node's id is `here`."""
    return {
        node["NodeManagerAddress"]
        for node in nodes
        if node["Alive"] and (node["NodeID"] == here or {"CPU", "GPU"} & node["Resources"].keys())
    }


@contextmanager
def connected(cluster: Cluster) -> Iterator[Team]:
    """Ray, started or reached, for the length of a `with`; one that this process uses already is left as it was.

    ConfigError where Ray is not installed, cannot be started or does not answer.
    """
    ray = _import_ray()
    if cluster.address != LOCAL:
        _check_answers(cluster.address)
    if ray.is_initialized():
        yield _team(ray, cluster)
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        if cluster.address == LOCAL:
            cores = max(len(os.sched_getaffinity(0)), cluster.workers or 1)
            ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, **quiet)
        else:
            ray.init(address=cluster.address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unreachable(
            cluster.address, (str(error) or type(error).__name__).splitlines()[0].split(". ")[0]
        ) from None
    try:
        with _no_pages_about_deaths():
            yield _team(ray, cluster)
    finally:
        ray.shutdown()


@contextmanager
def _no_pages_about_deaths() -> Iterator[None]:
    """Ray prints a page to standard output when a worker dies, and has no switch for it; a run says it in a line."""
    import ray._private.worker as driver

    printing = driver.print_to_stdstream
    driver.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        driver.print_to_stdstream = printing


def _team(ray: Any, cluster: Cluster) -> Team:
    return team_for([node["Resources"] for node in ray.nodes() if node["Alive"]], cluster.workers)


def _import_ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError("Ray is not installed", where="--ray", fix="pip install 'oppu[cluster]'") from None
    return ray


def _check_answers(address: str) -> None:
    """A ConfigError within seconds where no head of a cluster listens; Ray itself would try for minutes."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    if address == AUTO:
        return  # Ray looks for its own processes on this machine
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        fix = (
            "use local, auto, or HOST:PORT of the cluster's head (its port is 6379 unless it was started with another)"
        )
        raise ConfigError(f"'{address}' is no address of a Ray cluster", where="--ray", fix=fix)
    try:
        with socket.create_connection((host, int(port)), _CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0") != "1":
                connection.sendall(_HTTP2_GREETING)
                if connection.recv(4)[3:4] != _HTTP2_SETTINGS:
                    raise OSError("something else listens there")
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, cause: str) -> ConfigError:
    if address == LOCAL:
        return ConfigError(f"Ray cannot be started on this machine ({cause})", where="--ray local")
    fix = "start one with `ray start --head`, join it with `ray start --address HOST:PORT`, or use --ray local"
    return ConfigError(f"no Ray cluster answers ({cause})", where=f"--ray {address}", fix=fix)


def _too_many(what: str, most: int) -> ConfigError:
    return ConfigError(f"the cluster has {what}", where="--ray-workers", fix=f"give at most {most}")
