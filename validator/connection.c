/* One connection to the broker. connection.h documents each function. */
#define _POSIX_C_SOURCE 200809L /* getaddrinfo()'s errors */
#include "connection.h"
#include "report.h"

#include <errno.h>
#include <mqtt_protocol.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#define QUESTIONS "$share/validators/EQUIPMENT/VALIDATION"
#define KEEPALIVE_S 5
#define PATIENCE_MS 10000 /* for SUBACK and PUBACK; libmosquitto waits one keepalive for CONNACK */
#define QOS_MAX 1
#define WINDOW_MAX 20 /* libmosquitto doesn't send more unacknowledged messages either */

void connection_end(struct connection *connection, const char *format, ...)
{
    va_list arguments;

    if (connection->end[0] != '\0')
        return;
    va_start(arguments, format);
    vsnprintf(connection->end, sizeof connection->end, format, arguments);
    va_end(arguments);
}

int connection_publish(struct connection *connection, const char *topic, const char *payload, bool retain,
                       const mosquitto_property *properties)
{
    int rc = mosquitto_publish_v5(connection->client, NULL, topic, (int)strlen(payload), payload,
                                  connection->qos, retain, properties);

    /* QoS 0 is never acknowledged, so it doesn't count. */
    if (rc == MOSQ_ERR_SUCCESS && connection->qos > 0 && connection->in_flight++ == 0)
        connection->patience_end = now_ms() + PATIENCE_MS;
    return rc;
}

bool connection_has_room(const struct connection *connection)
{
    /* While libmosquitto still has something to write, more would pile up inside it without a limit. */
    return connection->state == ONLINE && connection->end[0] == '\0'
           && connection->in_flight < connection->window && !mosquitto_want_write(connection->client);
}

static void refused(struct connection *connection, int reason)
{
    if (reason == MQTT_RC_RETAIN_NOT_SUPPORTED)
        connection->next_will = NO_WILL;
    if (reason == MQTT_RC_QOS_NOT_SUPPORTED)
        connection->next_will = WILL_WITH_QOS_0;
    /* 1 to 5 are codes of MQTT 3.1.1. */
    if (reason < MQTT_RC_UNSPECIFIED || reason == MQTT_RC_UNSUPPORTED_PROTOCOL_VERSION)
        connection_end(connection, "the broker answers with something that is not MQTT 5");
    else
        connection_end(connection, "the broker refuses the connection: %s", mosquitto_reason_string(reason));
}

static void on_connect(struct mosquitto *client, void *self, int reason, int flags,
                       const mosquitto_property *properties)
{
    struct connection *connection = self;
    uint16_t receive_maximum = UINT16_MAX;
    uint8_t maximum_qos = QOS_MAX, retain_available = 1, shared_available = 1;

    if (reason != MQTT_RC_SUCCESS) {
        refused(connection, reason);
        return;
    }
    connection->packet_max = UINT32_MAX;
    mosquitto_property_read_int16(properties, MQTT_PROP_RECEIVE_MAXIMUM, &receive_maximum, false);
    mosquitto_property_read_int32(properties, MQTT_PROP_MAXIMUM_PACKET_SIZE, &connection->packet_max, false);
    mosquitto_property_read_byte(properties, MQTT_PROP_MAXIMUM_QOS, &maximum_qos, false);
    mosquitto_property_read_byte(properties, MQTT_PROP_RETAIN_AVAILABLE, &retain_available, false);
    mosquitto_property_read_byte(properties, MQTT_PROP_SHARED_SUB_AVAILABLE, &shared_available, false);
    connection->window = receive_maximum < WINDOW_MAX ? receive_maximum : WINDOW_MAX;
    connection->qos = maximum_qos < QOS_MAX ? maximum_qos : QOS_MAX;
    if (!retain_available)
        connection->will = NO_WILL;
    connection->state = CONNECTED;
    connection->patience_end = now_ms() + PATIENCE_MS;
    /* A subscription ends with its connection (clean start), so each connection makes its own. If it were not shared,
     * each equipment would answer each question. */
    if (!shared_available)
        connection_end(connection, "the broker does not offer shared subscriptions, which we need");
    else
        mosquitto_subscribe(client, NULL, QUESTIONS, QOS_MAX);
}

/* A broker may send any number of codes for our one topic. Without a code it hasn't granted anything. */
static void on_subscribe(struct mosquitto *client, void *self, int mid, int count, const int *codes)
{
    struct connection *connection = self;

    if (count == 0)
        connection_end(connection, "the broker refuses the subscription: no reason code");
    for (int i = 0; i < count; i++)
        if (codes[i] >= MQTT_RC_UNSPECIFIED)
            connection_end(connection, "the broker refuses the subscription: %s",
                           mosquitto_reason_string(codes[i]));
    if (connection->end[0] != '\0')
        return;
    connection->state = ONLINE;
    if (connection->will == NO_WILL)
        return;
    int rc = connection_publish(connection, connection->status_topic, "online", true, NULL);
    if (rc != MOSQ_ERR_SUCCESS)
        connection_end(connection, "cannot publish the status: %s", mosquitto_strerror(rc));
}

static void on_publish(struct mosquitto *client, void *self, int mid, int reason,
                       const mosquitto_property *properties)
{
    struct connection *connection = self;

    if (connection->in_flight > 0)
        connection->in_flight--;
    connection->patience_end = now_ms() + PATIENCE_MS;
    if (reason >= MQTT_RC_UNSPECIFIED)
        connection->refusal = reason;
}

/* The reason is a library error, below 0x80, or comes from the broker's DISCONNECT. */
static void on_disconnect(struct mosquitto *client, void *self, int reason)
{
    struct connection *connection = self;

    if (reason == MQTT_RC_SESSION_TAKEN_OVER)
        connection_end(connection,
                       "another client came with the same id, VALIDATOR_ID=%s; each needs its own",
                       connection->settings->id);
    else if (reason >= MQTT_RC_UNSPECIFIED)
        connection_end(connection, "the broker closed the connection: %s", mosquitto_reason_string(reason));
}

/* Why TLS failed is only in the library's log. */
static void on_log(struct mosquitto *client, void *self, int level, const char *line)
{
    struct connection *connection = self;

    if (level == MOSQ_LOG_ERR && connection->settings->ca_file != NULL && connection->tls_error[0] == '\0')
        snprintf(connection->tls_error, sizeof connection->tls_error, "%s", line);
}

bool connection_new(struct connection *connection, const struct settings *settings)
{
    mosquitto_destroy(connection->client);
    struct mosquitto *client = mosquitto_new(settings->id, true, connection); /* pretend there is memory */
    *connection = (struct connection){.settings = settings, .client = client, .will = connection->next_will};
    snprintf(connection->status_topic, sizeof connection->status_topic, "EQUIPMENT/STATUS/%s", settings->id);
    mosquitto_int_option(client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    if (connection->will != NO_WILL)
        mosquitto_will_set(client, connection->status_topic, (int)strlen("offline"), "offline",
                           connection->will == WILL ? QOS_MAX : 0, true);
    mosquitto_connect_v5_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_publish_v5_callback_set(client, on_publish);
    mosquitto_disconnect_callback_set(client, on_disconnect);
    mosquitto_log_callback_set(client, on_log);
    mosquitto_username_pw_set(client, settings->username, settings->password);
    /* With a CA, libmosquitto verifies the certificate and the host name in it. */
    if (settings->ca_file != NULL
        && mosquitto_tls_set(client, settings->ca_file, NULL, NULL, NULL, NULL) != MOSQ_ERR_SUCCESS)
        connection_end(connection, "MQTT_CA_FILE must name a readable file of PEM certificates");
    return connection->end[0] == '\0';
}

static void lost(struct connection *connection, int rc)
{
    bool connecting = connection->state == CONNECTING;

    if (connecting && connection->tls_error[0] != '\0')
        connection_end(connection, "TLS with the broker fails: %s", connection->tls_error);
    else if (rc == MOSQ_ERR_KEEPALIVE)
        connection_end(connection, "the broker does not answer");
    else if (rc == MOSQ_ERR_ERRNO || rc == MOSQ_ERR_CONN_LOST || rc == MOSQ_ERR_NO_CONN)
        connection_end(connection, "the broker closed the connection");
    else if (connecting)
        connection_end(connection, "the broker answers with something that is not MQTT 5");
    else
        connection_end(connection, "the broker sent something that libmosquitto does not accept: %s",
                       mosquitto_strerror(rc));
}

void connection_open(struct connection *connection)
{
    const struct settings *settings = connection->settings;
    int rc = mosquitto_connect(connection->client, settings->host, (int)settings->port, KEEPALIVE_S);

    if (rc == MOSQ_ERR_EAI)
        connection_end(connection, "the broker cannot be reached: %s", gai_strerror(errno));
    else if (rc == MOSQ_ERR_ERRNO)
        connection_end(connection, "the broker cannot be reached: %s",
                       errno == EINTR ? "no answer" : strerror(errno));
    else if (rc != MOSQ_ERR_SUCCESS)
        lost(connection, rc);
    connection->patience_end = now_ms() + PATIENCE_MS;
}

/* Stands in where libmosquitto 2.0.11 takes "HTTP/1.1 400" for a packet's head, and a reset for more TLS.
 * Without TLS it waits for the first byte itself. */
static int check_connack(struct connection *connection, int *timeout_ms)
{
    bool tls = connection->settings->ca_file != NULL;
    struct pollfd wire = {.fd = mosquitto_socket(connection->client), .events = POLLIN};
    uint8_t first = CMD_CONNACK;

    poll(&wire, 1, tls ? 0 : *timeout_ms);
    *timeout_ms = tls ? *timeout_ms : 0;
    if ((wire.revents & (POLLERR | POLLHUP)) != 0)
        return MOSQ_ERR_CONN_LOST;
    if (wire.revents != 0 && !tls && !connection->heard)
        connection->heard = recv(wire.fd, &first, 1, MSG_PEEK) == 1;
    return first == CMD_CONNACK ? MOSQ_ERR_SUCCESS : MOSQ_ERR_PROTOCOL;
}

void connection_turn(struct connection *connection, int timeout_ms)
{
    int rc = MOSQ_ERR_SUCCESS;

    if (connection->state == CONNECTING)
        rc = check_connack(connection, &timeout_ms);
    if (rc == MOSQ_ERR_SUCCESS)
        rc = mosquitto_loop(connection->client, timeout_ms, 1);
    bool online = connection->state == ONLINE;
    if (rc != MOSQ_ERR_SUCCESS)
        lost(connection, rc);
    else if (now_ms() > connection->patience_end && (!online || connection->in_flight > 0))
        connection_end(connection, "the broker does not %s",
                       online ? "acknowledge what is published" : "answer");
}
