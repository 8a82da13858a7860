"""The listener with a real Mosquitto: what it publishes, receives, and says about the connection."""

import json
import os
import signal
import socket
import threading
from uuid import UUID

import pytest

from mqtt_listener import QUESTIONS, STATUSES, VERDICTS, Listener
from peer import Peer
from programs import wait_until
from schemas import Status


@pytest.fixture
def pair(start, broker):
    pair = start(broker.port)
    pair.ready()
    return pair


@pytest.fixture
def peer(broker):
    """A client that plays the equipment."""
    with Peer(broker, QUESTIONS) as peer:
        yield peer


def verdict(key: UUID) -> bytes:
    return json.dumps({"transaction_id": str(key), "status": "COMPLETED"}).encode()


def asked(peer: Peer) -> set[str]:
    return {json.loads(message.payload)["transaction_id"] for message in peer.messages}


def test_a_question_carries_what_the_contract_says_and_is_asked_again(pair, peer):
    key = pair.create()
    message = wait_until(lambda: peer.messages and peer.messages[0], "the question")
    assert (message.topic, message.qos, message.retain) == (QUESTIONS, 1, False)
    assert json.loads(message.payload) == {"transaction_id": str(key), "station_id": 1}
    assert message.properties.MessageExpiryInterval == 1
    assert message.properties.CorrelationData == key.bytes
    assert message.properties.ResponseTopic == VERDICTS
    assert message.properties.ContentType == "application/json"
    assert pair.listener._client.socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    wait_until(lambda: len(peer.messages) >= 2, "it is asked twice")
    assert asked(peer) == {str(key)}


def test_a_verdict_is_acknowledged_only_after_its_commit(pair):
    key, seen = pair.create(), []
    done = threading.Event()

    def acknowledge():
        seen.append(pair.status(key))
        done.set()

    pair.listener.receive(VERDICTS, verdict(key), False, acknowledge)
    assert done.wait(60)
    assert seen == [Status.COMPLETED]


def test_a_fresh_online_asks_again_at_once_and_a_replayed_one_does_not(start, broker, peer):
    peer.publish(f"{STATUSES}validator-1", "online", retain=True)
    pair = start(broker.port, validation_timeout=86400, validation_retry=30)
    pair.ready()
    wait_until(lambda: pair.listener.equipment == {"validator-1": "online"}, "the replayed status")
    pair.create()
    wait_until(lambda: peer.messages, "the question")
    peer.publish(f"{STATUSES}validator-1", "offline", retain=True)
    wait_until(lambda: pair.listener.equipment == {"validator-1": "offline"}, "the news")
    assert len(peer.messages) == 1
    peer.publish(f"{STATUSES}validator-1", "online", retain=True)
    wait_until(lambda: len(peer.messages) == 2, "the question again")


def test_a_broker_that_starts_later_and_restarts_is_found(start, broker):
    broker.stop()
    pair = start(broker.port)
    pair.says(f"127.0.0.1:{broker.port}", "cannot be reached", "refused")
    for kill in (True, False):
        key = pair.create()
        asked = pair.asked
        broker.start()
        with Peer(broker, QUESTIONS) as peer:
            wait_until(lambda peer=peer: peer.messages, "it is asked")
            assert pair.asked > asked
            peer.publish(VERDICTS, verdict(key))
            pair.settled(key)
        if kill:
            broker.kill()
            pair.says("was lost")


def test_a_refused_publish_is_said_in_words_and_mended_without_a_restart(start, broker, tmp_path):
    acl = tmp_path / "broker" / "mosquitto.acl"
    allowed = acl.read_text()
    acl.write_text(allowed.replace("topic write EQUIPMENT/VALIDATION\n", ""))
    broker.send(signal.SIGHUP)
    pair = start(broker.port)
    pair.ready()
    keys = {str(pair.create()) for _ in range(3)}
    pair.says("refuses what is published on EQUIPMENT/VALIDATION", "Not authorized")
    acl.write_text(allowed)
    broker.send(signal.SIGHUP)
    with Peer(broker, QUESTIONS) as peer:
        pair.ready()
        wait_until(lambda: asked(peer) == keys, "all are asked")


def test_two_listeners_do_not_disconnect_each_other(pair, broker):
    with Listener(pair.settings, pair.ledger.queue.put, pair.store.clock) as other:
        wait_until(lambda: not other.problem, "the other is ready")
        key = pair.create()
        with Peer(broker) as peer:
            peer.publish(VERDICTS, verdict(key))
        pair.settled(key)
        assert not other.problem
        assert not pair.listener.problem
    assert "already connected" not in broker.said()


def test_a_listener_whose_thread_died_is_not_alive(pair):
    assert pair.listener.alive
    pair.listener._client.disconnect()
    wait_until(lambda: not pair.listener.alive, "the thread has ended")


def test_stopping_does_not_wait_for_a_broker_that_hangs(pair, broker):
    os.kill(broker.pid, signal.SIGSTOP)
    pair.create()
    pair.stop()
    assert pair.listener.alive  # this end is no accident
