"""Another MQTT client: it subscribes, records messages, and publishes."""

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5

from programs import Broker, wait_until


def dial(broker: Broker, account: str = "VALIDATOR", protocol: int = MQTTv5, **instead: str) -> Client:
    """A client that is about to connect with this account, or with a name or password `instead`."""
    client = Client(CallbackAPIVersion.VERSION2, protocol=protocol)
    known = broker.environment_of_clients | instead
    if account:
        client.username_pw_set(known[f"{account}_USERNAME"], known[f"{account}_PASSWORD"])
    client.connect_async("127.0.0.1", broker.port)
    return client


class Peer:
    """A connected client with the equipment's account, or another; `messages` are those it received.

    `lost` says why it was disconnected, each time.
    """

    def __init__(self, broker: Broker, *topics: str, account: str = "VALIDATOR", will: str = ""):
        self.messages, self.lost, self.granted, self._reasons = [], [], False, {}
        self.client = client = dial(broker, account)
        if will:
            client.will_set(will, "will", qos=1)
        client.on_message = lambda client, userdata, message: self.messages.append(message)
        client.on_subscribe = lambda *_: setattr(self, "granted", True)
        client.on_publish = lambda *arguments: self._reasons.update({arguments[2]: str(arguments[3])})
        client.on_disconnect = lambda *arguments: self.lost.append(str(arguments[3]))
        client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics or ("x",)])
        client.loop_start()
        wait_until(lambda: self.granted, "the peer is subscribed")

    def publish(self, topic: str, payload: bytes | str = "x", retain: bool = False) -> str:
        """Publish, and wait for the broker's acknowledgement; returns its reason."""
        mid = self.client.publish(topic, payload, qos=1, retain=retain).mid
        wait_until(lambda: mid in self._reasons, "the broker has acknowledged it")
        return self._reasons.pop(mid)

    def before_the_last(self) -> set[str]:
        """Wait for the message "last", and return the topics of all messages before it."""
        wait_until(lambda: any(message.payload == b"last" for message in self.messages), "the last message")
        return {message.topic for message in self.messages if message.payload != b"last"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()
