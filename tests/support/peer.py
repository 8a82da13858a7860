"""Another MQTT client: it subscribes, records messages, and publishes."""

from paho.mqtt.client import CallbackAPIVersion, Client, MQTTv5

from programs import Broker, wait_until


class Peer:
    """A connected client with the equipment's account, or another; `messages` are those it received."""

    def __init__(self, broker: Broker, *topics: str, account: str = "VALIDATOR"):
        self.messages, self.granted = [], not topics
        self.client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTv5)
        environment = broker.environment_of_clients
        self.client.username_pw_set(environment[f"{account}_USERNAME"], environment[f"{account}_PASSWORD"])
        self.client.on_message = lambda client, userdata, message: self.messages.append(message)
        self.client.on_subscribe = lambda *_: setattr(self, "granted", True)
        self.client.on_connect = lambda client, *_: (
            topics and client.subscribe([(topic, 1) for topic in topics])
        )
        self.client.connect("127.0.0.1", broker.port)
        self.client.loop_start()
        wait_until(lambda: self.granted, "the peer is subscribed")

    def publish(self, topic: str, payload: bytes | str, retain: bool = False) -> None:
        """Publish, and wait for the broker's acknowledgement."""
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()
