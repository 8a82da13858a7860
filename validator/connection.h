/* One connection to the broker, from CONNECT to its end: the broker's limits, and why it ended. */
#pragma once

#include "settings.h"

#include <mosquitto.h>

/* A broker without QoS 1, or without retained messages, may refuse a connection because of its Will. */
enum will { WILL, WILL_WITH_QOS_0, NO_WILL };

/* Zero-initialise. Only the choice of Will for the next connection outlives it. */
struct connection {
    const struct settings *settings;
    struct mosquitto *client;
    enum { CONNECTING, CONNECTED, ONLINE } state; /* ONLINE: the subscription is granted */
    enum will will, next_will;                    /* NO_WILL also means: don't use the status topic */
    char status_topic[sizeof "EQUIPMENT/STATUS/" + SETTINGS_ID_SIZE];
    bool heard;           /* the broker has sent something */
    int qos, window;      /* of our messages: their QoS, and how many may be in flight */
    int in_flight;        /* published with QoS 1 and not acknowledged */
    uint32_t packet_max;  /* bytes */
    int refusal;          /* the reason code from a PUBACK that refused, or 0 */
    int64_t patience_end; /* when the broker must have sent the next acknowledgement */
    char end[300];        /* why the connection is over; empty while it isn't */
    char tls_error[200];
};

/* Replaces the last connection by a new one, which isn't open yet. False if MQTT_CA_FILE can't be read now. */
bool connection_new(struct connection *connection, const struct settings *settings);

/* Connects to the broker. Blocks until TCP is connected, but any signal ends that. */
void connection_open(struct connection *connection);

/* Waits for the broker, at most this long, and handles its messages. */
void connection_turn(struct connection *connection, int timeout_ms);

/* True if the broker takes one more message now. */
bool connection_has_room(const struct connection *connection);

/* Publishes a message. Returns an error of libmosquitto; only a message without one counts as in flight. */
int connection_publish(struct connection *connection, const char *topic, const char *payload, bool retain,
                       const mosquitto_property *properties);

/* Notes why the connection is over. The first reason counts, because the later ones follow from it. */
__attribute__((format(printf, 2, 3))) void connection_end(struct connection *, const char *format, ...);
