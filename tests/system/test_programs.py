"""The tests' own programs: no other test run can take their ports."""

import os
import socket
import subprocess
import sys

import pytest

import programs
from programs import ROOT, Broker, free_port


def test_the_port_of_a_broker_that_was_killed_is_not_given_away(broker):
    broker.kill()
    # Another test run, with the same process id and worker, so it asks for the same ports.
    code = "import os, sys; os.getpid = lambda: int(sys.argv[1]); from programs import free_port; print(free_port())"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
    first = free_port()
    command = [sys.executable, "-c", code, str(os.getpid())]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert int(other.stdout) not in {broker.port, first, 0}
    with pytest.raises(OSError, match="in use"), socket.socket() as probe:
        probe.bind(("127.0.0.1", broker.port))
    broker.start()  # its own program still can
    assert programs.listening(broker.port)


def test_a_program_does_not_start_on_a_port_where_something_else_listens(tmp_path, service, broker):
    with socket.create_server(("127.0.0.1", 0)) as foreign:
        port = foreign.getsockname()[1]
        with pytest.raises(AssertionError, match=f"nothing else listens on {port}"):
            Broker(tmp_path, port).start()
        with pytest.raises(AssertionError, match=f"nothing else listens on {port}"):
            service(port=port)
