"""The listener with a real Mosquitto: what it publishes, receives, and says about the connection."""

import json
import os
import signal
import socket

import pytest

from kit.clock import Clock
from kit.settings import Settings
from mqtt_listener import QUESTIONS, STATUSES, VERDICTS, Listener
from peer import Peer
from programs import wait_until


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
    assert {json.loads(message.payload)["transaction_id"] for message in peer.messages} == {str(key)}


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


def test_a_listener_whose_thread_died_is_not_alive(broker):
    with Listener(Settings(mqtt_port=broker.port), lambda job: None, Clock()) as listener:  # no ledger dies
        wait_until(lambda: listener._thread, "it connects")
        assert listener.alive
        listener._client.disconnect()
        wait_until(lambda: not listener.alive, "the thread has ended")


def test_stopping_does_not_wait_for_a_broker_that_hangs(pair, broker):
    os.kill(broker.pid, signal.SIGSTOP)
    pair.create()
    pair.stop()
    assert pair.listener.alive  # this end is no accident
