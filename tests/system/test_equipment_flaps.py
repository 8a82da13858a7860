"""Equipment that comes and goes: unanswered questions still expire, and the log shows what happens."""

import threading
import time
from contextlib import contextmanager

import pytest

from peer import Peer
from programs import Broker, Equipment, wait_until
from schemas import Status
from scripted import QUESTION, STATUS, connack, in_turn, take_and_confirm


@contextmanager
def flapping(says, seconds: float, words: tuple[str, ...]):
    """Say these words in turn, so many seconds after each other."""
    end = threading.Event()

    def flap() -> None:
        while not end.wait(seconds):
            for word in words:
                says(word)

    thread = threading.Thread(target=flap)
    thread.start()
    yield
    end.set()
    thread.join()


@pytest.mark.parametrize("words", [("online",), ("offline", "online")])
@pytest.mark.parametrize("seconds", [0.3, 2])
def test_under_flapping_equipment_everything_expires(start, scripted, mend, seconds, words, caplog):
    caplog.set_level("INFO")
    broker = scripted()
    pair = start(broker.port, validation_timeout=5, validation_retry=2)
    pair.ready()
    connection = broker.connection()
    with flapping(lambda word: connection.publish(STATUS + "twin", word.encode()), seconds, words):
        keys = [pair.create() for _ in range(40)]
        began = time.monotonic()
        wait_until(lambda: pair.count("EXPIRED") == len(keys), "all expire", 8)
        assert time.monotonic() - began > 4
        asked = [packet.payload for packet in connection.published(QUESTION)]
        assert max(asked.count(payload) for payload in asked) <= 8  # once a second at most
    assert "'twin' is online" in caplog.text
    mend(broker, pair, expired=len(keys))


def test_two_programs_with_one_id_expire_what_they_do_not_answer(service, broker, tmp_path, programs):
    """The real equipment, twice, which answers after an hour."""
    for name in ("one", "other"):
        options = {"VALIDATOR_ID": "twin", "VALIDATOR_DELAY_MS": "3600000"}
        programs.append(Equipment(tmp_path, broker, name=name, **options).start())
    running = service(VALIDATION_TIMEOUT="6", VALIDATION_RETRY="1")
    running.post("/stations", {"description": "Teste"})
    keys = [running.post("/transactions", {"station_id": 1}).json["id"] for _ in range(20)]

    def expired() -> bool:
        return len(running.get("/transactions?status=EXPIRED").json["items"]) == len(keys)

    wait_until(expired, "all expire", 12)
    wait_until(lambda: running.said().count("'twin' is online") >= 3, "the log shows it", 15)
    wait_until(lambda: running.said().count("'twin' is offline") >= 2, "the log shows it", 15)
    assert len(running.said().splitlines()) < 100


def test_equipment_that_went_away_with_the_broker_is_not_shown(service, broker, tmp_path, programs):
    programs.append(Equipment(tmp_path, broker).start())
    equipment, running = programs[-1], service()
    wait_until(lambda: running.get("/readyz").status == 200, "the equipment is online", 6)
    broker.kill()
    equipment.kill()
    wait_until(lambda: running.get("/readyz").status == 503, "readyz says it", 6)
    assert running.get("/readyz").json["equipment"] == {}
    again = Broker(tmp_path, broker.port)
    programs.append(again.start())
    wait_until(running.ready, "the broker is back", 6)
    assert running.get("/readyz").status == 503
    assert "none is online" in running.get("/readyz").json["detail"]
    equipment.start()
    wait_until(lambda: running.get("/readyz").status == 200, "the equipment is back", 6)


def test_equipment_is_forgotten_while_the_broker_refuses(start, scripted):
    broker = scripted(connect=in_turn(connack(), connack(0x88)))
    pair = start(broker.port)
    pair.ready()
    broker.connection().publish(STATUS + "validator", b"online")
    wait_until(lambda: pair.listener.equipment, "it is online")
    broker.connection().close()
    pair.says("refuses the connection")
    assert pair.listener.equipment == {}


def test_a_late_verdict_of_flapping_equipment_settles_what_had_expired(start, broker):
    pair = start(broker.port, validation_timeout=2, validation_retry=1)
    pair.ready()
    with Peer(broker, QUESTION) as peer:
        key = pair.create()
        with flapping(lambda word: peer.publish(STATUS + "x", word), 0.3, ("offline", "online")):
            pair.settled(key, Status.EXPIRED, 6)
        peer.publish(f"{QUESTION}/RESPONSE", f'{{"transaction_id": "{key}", "status": "COMPLETED"}}')
        pair.settled(key)


def test_a_healthy_broker_needs_one_connection(start, scripted):
    broker = scripted(publish=take_and_confirm)
    pair = start(broker.port)
    pair.ready()
    for _ in range(100):
        pair.create_later()
    wait_until(lambda: pair.count("COMPLETED") == 100, "all are settled")
    assert len(broker.connections) == 1
