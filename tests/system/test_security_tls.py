"""TLS to the broker: certificates that are accepted and refused."""

import re
import shutil
import socket
import ssl
import subprocess

import pytest

from programs import SECRETS, Broker, Equipment, Service, wait_until


def test_both_programs_speak_tls(run, tls_broker, certificates):
    broker = tls_broker("here").start()
    ca = {"MQTT_CA_FILE": str(certificates / "ours.pem")}
    run(Equipment, broker, MQTT_HOST="localhost", **ca)
    service = run(Service, broker, MQTT_HOST="127.0.0.1", **ca)
    wait_until(service.online, "all are online")
    assert service.settles()
    context = ssl.create_default_context(cafile=certificates / "ours.pem")
    with (
        socket.create_connection(("127.0.0.1", broker.port), 60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wire,
    ):
        assert wire.version() in ("TLSv1.2", "TLSv1.3")


def test_a_ca_file_that_is_renewed_counts_for_the_next_connection(run, tls_broker, certificates, tmp_path):
    ca = tmp_path / "ca.pem"
    shutil.copy(certificates / "theirs.pem", ca)
    broker = tls_broker("here").start()
    equipment, service = (run(kind, broker, MQTT_CA_FILE=str(ca)) for kind in (Equipment, Service))
    wait_until(lambda: "verify failed" in service.get("/readyz").json["broker"], "the service refuses it")
    wait_until(lambda: "TLS with the broker fails" in equipment.said(), "the equipment refuses it")
    ca.unlink()
    wait_until(lambda: f"{ca} cannot be read: No such file" in service.says("broker"), "it misses the file")
    shutil.copy(certificates / "ours.pem", tmp_path / "new.pem").replace(ca)
    wait_until(service.online, "both have read the new file")
    assert service.settles()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("stranger", "certificate verify failed"), ("elsewhere", "not valid for '127.0.0.1'")],
)
def test_a_wrong_certificate_is_refused_in_words_until_the_right_one_is_there(
    run, tls_broker, certificates, wrong, words
):
    ca = {"MQTT_CA_FILE": str(certificates / "ours.pem")}
    broker = tls_broker(wrong).start()
    equipment = run(Equipment, broker, **ca)
    service = run(Service, broker, VALIDATION_RETRY="0.5", VALIDATION_TIMEOUT="10", **ca)
    wait_until(lambda: words in service.get("/readyz").json["broker"], "the service says why")
    wait_until(
        lambda: re.search("certificate verif|verification failed", equipment.said()),
        "the equipment says why",
    )
    assert f"not connected to 127.0.0.1:{broker.port}" in equipment.said()
    assert service.get("/readyz").status == 503
    service.post("/stations", {"description": "Teste"})
    waiting = service.post("/transactions", {"station_id": 1})
    assert (waiting.status, waiting.json["status"]) == (201, "PENDING")
    broker.stop()
    tls_broker("here", port=broker.port).start()
    wait_until(service.online, "all are online")
    wait_until(
        lambda: service.get(waiting.headers["Location"]).json["status"] in ("COMPLETED", "ERROR"),
        "the verdict",
    )
    assert equipment.running
    assert service.said().count("Booting worker") == 1


def test_no_password_is_told_to_a_broker_with_a_wrong_certificate(run, certificates):
    impostor = Broker(certificates, **SECRETS)
    files = ["-cert", certificates / "stranger.pem", "-key", certificates / "stranger.key"]
    command = ["openssl", "s_server", "-quiet", "-accept", f"127.0.0.1:{impostor.port}", *files]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        ca = {"MQTT_CA_FILE": str(certificates / "ours.pem")}
        equipment = run(Equipment, impostor, **ca)
        service = run(Service, impostor, **ca)
        wait_until(
            lambda: "verify failed" in service.get("/readyz").json["broker"], "the service refuses it"
        )
        wait_until(lambda: "verif" in equipment.said(), "the equipment refuses it")
        server.terminate()
        heard, _ = server.communicate()
    assert heard == b""


@pytest.mark.parametrize("encrypted", [True, False])
def test_plain_and_tls_do_not_connect_and_no_program_crashes(run, tls_broker, certificates, encrypted):
    broker = tls_broker("here").start() if encrypted else run(Broker)
    ca = {} if encrypted else {"MQTT_CA_FILE": str(certificates / "ours.pem")}
    equipment = run(Equipment, broker, **ca)
    service = run(Service, broker, **ca)
    words = "closes the connection instead of answering CONNECT|does not answer|cannot be reached"
    found = lambda: re.search(words, service.says("broker"))  # noqa: E731
    wait_until(found, "the service says it")
    assert f"127.0.0.1:{broker.port}" in service.says("broker")
    assert service.get("/readyz").status == 503
    wait_until(
        lambda: f"not connected to 127.0.0.1:{broker.port}" in equipment.said(), "the equipment says it"
    )
    assert service.alive()
    assert equipment.running
    assert service.said().count("Booting worker") == 1
