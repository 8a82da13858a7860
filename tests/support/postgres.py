"""A real PostgreSQL for tests."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from programs import HELD, Program, free_port, listening, wait_until

BOTH = ["sqlite", "postgresql"]  # the kinds of databases


class Postgres(Program):
    """A real PostgreSQL with its own cluster, which is removed at the end."""

    def __init__(self, port: int | None = None):
        # PostgreSQL refuses to run as root, and another user may not enter pytest's folders.
        folder = Path(tempfile.mkdtemp(prefix="energy2go-postgres-"))
        folder.chmod(0o755)
        found = Path("/usr/lib/postgresql").glob("*/bin")
        programs = max(found, key=lambda path: int(path.parent.name))
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        self.user = [] if os.geteuid() else as_postgres
        self.cluster, self.count = folder / "cluster", 0
        self.cluster.mkdir()
        if self.user:
            shutil.chown(self.cluster, "postgres", "postgres")
        initdb = [*self.user, str(programs / "initdb"), "-A", "trust", "-U", "energy2go", "-E", "UTF8"]
        subprocess.run([*initdb, str(self.cluster)], check=True, capture_output=True, cwd="/")
        self.port = port or free_port()
        self.holder = HELD.pop() if not port else None  # keeps the port as long as this object lives
        options = ["-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "max_connections=200"]
        # Without this, it syncs thousands of files one by one after a crash.
        options += ["-c", "recovery_init_sync_method=syncfs"]
        command = [*self.user, str(programs / "postgres"), "-D", str(self.cluster), *options]
        super().__init__("postgres", command, folder, {})

    def start(self):
        super().start()
        wait_until(lambda: listening(self.port) or not self.running, "PostgreSQL listens")
        assert self.running, self.said()
        wait_until(lambda: self.connects() or not self.running, "PostgreSQL takes connections")
        assert self.running, self.said()
        return self

    def connects(self) -> bool:
        """True once it accepts connections."""
        with contextlib.suppress(psycopg.OperationalError):
            self.execute("SELECT 1")
            return True
        return False

    def url(self, database: str) -> str:
        return f"postgresql://energy2go@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str, database: str = "postgres") -> list[tuple]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            answer = connection.execute(sql)
            return answer.fetchall() if answer.description else []

    def create(self) -> str:
        """The URL of a new, empty database. It costs 8 MB and 0.25 s; `fresh` costs less."""
        self.count += 1
        self.execute(f"CREATE DATABASE test_{self.count}")
        return self.url(f"test_{self.count}")

    def fresh(self) -> str:
        """The URL of the database that the tests of this process share, emptied, with default settings."""
        if not self.execute("SELECT 1 FROM pg_database WHERE datname = 'shared'"):
            self.execute("CREATE DATABASE shared")
        self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shared'")
        self.execute("ALTER DATABASE shared RESET ALL")
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "shared")
        return self.url("shared")

    def remove(self) -> None:
        """Stop it at once and remove its folder."""
        self.stop(signal.SIGQUIT)
        if self.holder:
            self.holder.close()
        shutil.rmtree(self.folder)
