/* One connection to the broker; connection.h says what each function promises. */
#define _POSIX_C_SOURCE 200809L /* getaddrinfo()'s errors */
#include "connection.h"

#include <errno.h>
#include <mqtt_protocol.h>
#include <netdb.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#define QUESTIONS "$share/validators/EQUIPMENT/VALIDATION"
#define NOT_MQTT_5 "the broker answers with something that is not MQTT 5"
#define KEEPALIVE_S 5     /* a broken connection is noticed within 10 s */
#define PATIENCE_MS 10000 /* for CONNACK, SUBACK and PUBACK */
#define QOS_MAX 1
#define WINDOW_MAX 20 /* libmosquitto does not send more unacknowledged messages either */

void connection_end(struct connection *self, const char *format, ...)
{
    va_list arguments;

    if (self->end[0] != '\0')
        return;
    va_start(arguments, format);
    vsnprintf(self->end, sizeof self->end, format, arguments);
    va_end(arguments);
}

/* PINGRESP says only that the broker is there. It must also answer what we sent. */
static void expect_acknowledgement(struct connection *self)
{
    self->patience_end = now_ms() + PATIENCE_MS;
}

int connection_publish(struct connection *self, const char *topic, const char *payload, bool retain,
                       const mosquitto_property *properties)
{
    int rc = mosquitto_publish_v5(self->client, NULL, topic, (int)strlen(payload), payload, self->qos,
                                  retain, properties);

    /* QoS 0 is not acknowledged, so it does not count. */
    if (rc == MOSQ_ERR_SUCCESS && self->qos > 0 && self->in_flight++ == 0)
        expect_acknowledgement(self);
    return rc;
}

bool connection_has_room(const struct connection *self)
{
    /* While libmosquitto still has something to write, more would pile up inside it without a limit. */
    return self->state == ONLINE && self->end[0] == '\0' && self->in_flight < self->window
           && !mosquitto_want_write(self->client);
}

static void on_connect(struct mosquitto *client, void *object, int reason, int flags,
                       const mosquitto_property *properties)
{
    struct connection *self = object;
    uint16_t receive_maximum = UINT16_MAX;
    uint8_t maximum_qos = QOS_MAX, retain_available = 1;

    if (reason == MQTT_RC_RETAIN_NOT_SUPPORTED)
        self->next_will = NO_WILL;
    if (reason == MQTT_RC_QOS_NOT_SUPPORTED)
        self->next_will = WILL_WITH_QOS_0;
    if (reason >= MQTT_RC_UNSPECIFIED && reason != MQTT_RC_UNSUPPORTED_PROTOCOL_VERSION)
        connection_end(self, "the broker refuses the connection: %s", mosquitto_reason_string(reason));
    else if (reason != MQTT_RC_SUCCESS) /* 1 to 5 are codes of MQTT 3.1.1 */
        connection_end(self, NOT_MQTT_5);
    if (reason != MQTT_RC_SUCCESS)
        return;
    /* What CONNACK leaves out is not limited (MQTT 5, 3.2.2.3). */
    self->packet_max = UINT32_MAX;
    mosquitto_property_read_int16(properties, MQTT_PROP_RECEIVE_MAXIMUM, &receive_maximum, false);
    mosquitto_property_read_int32(properties, MQTT_PROP_MAXIMUM_PACKET_SIZE, &self->packet_max, false);
    mosquitto_property_read_byte(properties, MQTT_PROP_MAXIMUM_QOS, &maximum_qos, false);
    mosquitto_property_read_byte(properties, MQTT_PROP_RETAIN_AVAILABLE, &retain_available, false);
    self->window = receive_maximum < WINDOW_MAX ? receive_maximum : WINDOW_MAX;
    self->qos = maximum_qos < QOS_MAX ? maximum_qos : QOS_MAX;
    if (!retain_available)
        self->will = NO_WILL;
    self->state = CONNECTED;
    expect_acknowledgement(self);
    /* A subscription ends with its connection (clean start), so each connection makes its own. */
    int rc = mosquitto_subscribe(client, NULL, QUESTIONS, QOS_MAX);
    if (rc != MOSQ_ERR_SUCCESS)
        connection_end(self, "cannot subscribe: %s", mosquitto_strerror(rc));
}

/* A broker may send any number of codes for our one topic. */
static void on_subscribe(struct mosquitto *client, void *object, int mid, int count, const int *codes)
{
    struct connection *self = object;
    int rc = MOSQ_ERR_SUCCESS;

    for (int i = 0; i < count; i++)
        if (codes[i] >= MQTT_RC_UNSPECIFIED)
            connection_end(self, "the broker refuses the subscription: %s",
                           mosquitto_reason_string(codes[i]));
    if (self->end[0] != '\0')
        return;
    self->state = ONLINE;
    if (self->will != NO_WILL)
        rc = connection_publish(self, self->status_topic, "online", true, NULL);
    if (rc != MOSQ_ERR_SUCCESS)
        connection_end(self, "cannot publish the status: %s", mosquitto_strerror(rc));
    else
        report_state(self->report, false, "%s is online at %s:%d%s", self->settings->id,
                     self->settings->host, self->settings->port,
                     self->will == NO_WILL ? ", without the status topic: the broker does not retain" : "");
}

static void on_publish(struct mosquitto *client, void *object, int mid, int reason,
                       const mosquitto_property *properties)
{
    struct connection *self = object;

    if (self->in_flight > 0)
        self->in_flight--;
    expect_acknowledgement(self);
    /* Mostly a wrong rule in the broker's access list. We stay connected; the service asks again. */
    if (reason >= MQTT_RC_UNSPECIFIED)
        report_state(self->report, true, "the broker refuses what is published: %s",
                     mosquitto_reason_string(reason));
}

/* The reason is an error of the library, below 0x80, or comes from the broker's DISCONNECT. */
static void on_disconnect(struct mosquitto *client, void *object, int reason)
{
    struct connection *self = object;

    if (reason == MQTT_RC_SESSION_TAKEN_OVER)
        connection_end(self, "another client connected with VALIDATOR_ID=%s; each one needs its own",
                       self->settings->id);
    else if (reason >= MQTT_RC_UNSPECIFIED)
        connection_end(self, "the broker closed the connection: %s", mosquitto_reason_string(reason));
}

/* Why TLS failed is only in the library's log. */
static void on_log(struct mosquitto *client, void *object, int level, const char *line)
{
    struct connection *self = object;

    if (level == MOSQ_LOG_ERR && self->settings->ca_file != NULL && self->tls_error[0] == '\0')
        snprintf(self->tls_error, sizeof self->tls_error, "%s", line);
}

const char *connection_new(struct connection *self, const struct settings *settings, struct report *report)
{
    /* A new client each time: libmosquitto 2.0.11 would keep the Maximum QoS of the last broker, and send
     * again what that one did not acknowledge. */
    mosquitto_destroy(self->client);
    struct mosquitto *client = mosquitto_new(settings->id, true, self);
    *self = (struct connection){
        .settings = settings, .report = report, .client = client, .will = self->next_will};
    if (client == NULL)
        return "out of memory";
    snprintf(self->status_topic, sizeof self->status_topic, "EQUIPMENT/STATUS/%s", settings->id);
    mosquitto_int_option(client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
    /* Nagle's algorithm and delayed ACKs would add 40 ms to an answer. */
    mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
    /* A Will with QoS 0 could overtake an "online" that still waits in the broker. */
    if (self->will != NO_WILL)
        mosquitto_will_set(client, self->status_topic, (int)strlen("offline"), "offline",
                           self->will == WILL ? QOS_MAX : 0, true);
    mosquitto_connect_v5_callback_set(client, on_connect);
    mosquitto_subscribe_callback_set(client, on_subscribe);
    mosquitto_publish_v5_callback_set(client, on_publish);
    mosquitto_disconnect_callback_set(client, on_disconnect);
    mosquitto_log_callback_set(client, on_log);
    if (settings->username != NULL
        && mosquitto_username_pw_set(client, settings->username, settings->password) != MOSQ_ERR_SUCCESS)
        return "VALIDATOR_USERNAME must be UTF-8 of at most 65535 bytes";
    /* With a CA, libmosquitto verifies the certificate and the host name in it. */
    if (settings->ca_file != NULL
        && mosquitto_tls_set(client, settings->ca_file, NULL, NULL, NULL, NULL) != MOSQ_ERR_SUCCESS)
        return "MQTT_CA_FILE must name a readable file of PEM certificates";
    return NULL;
}

/* Says in our words what an error of libmosquitto means. `error` is the errno that came with it. */
static void lost(struct connection *self, int rc, int error)
{
    if (self->state == CONNECTING && self->tls_error[0] != '\0')
        connection_end(self, "TLS with the broker fails: %s", self->tls_error);
    else if (rc == MOSQ_ERR_KEEPALIVE)
        connection_end(self, "the broker does not answer");
    else if (rc == MOSQ_ERR_ERRNO)
        connection_end(self, "the broker closed the connection: %s", strerror(error));
    else if (rc != MOSQ_ERR_CONN_LOST && rc != MOSQ_ERR_NO_CONN)
        connection_end(self, self->state == CONNECTING
                                 ? NOT_MQTT_5
                                 : "the broker sent something that libmosquitto does not accept");
    else if (self->state != ONLINE)
        connection_end(self, "the broker closed the connection");
    else /* without a reason, as Mosquitto 2.0.11 does with the older of two connections with one id */
        connection_end(self,
                       "the broker closed the connection; if this happens again and again, "
                       "another client has VALIDATOR_ID=%s too",
                       self->settings->id);
}

void connection_open(struct connection *self)
{
    /* This blocks, but it tries all addresses of a name. The asynchronous variant takes only the first one.
     */
    int rc = mosquitto_connect(self->client, self->settings->host, self->settings->port, KEEPALIVE_S);
    int error = errno;

    expect_acknowledgement(self);
    if (rc == MOSQ_ERR_EAI)
        connection_end(self, "the broker cannot be reached: %s", gai_strerror(error));
    else if (rc == MOSQ_ERR_ERRNO)
        connection_end(self, "the broker cannot be reached: %s",
                       error == EINTR ? "no answer" : strerror(error));
    else if (rc != MOSQ_ERR_SUCCESS)
        lost(self, rc, error);
}

/* libmosquitto takes "HTTP/1.1 400" for the head of a long packet, and waits for the rest. */
static bool is_connack(struct connection *self, int socket)
{
    uint8_t first = CMD_CONNACK;

    if (!self->heard && self->settings->ca_file == NULL)
        recv(socket, &first, 1, MSG_PEEK);
    self->heard = true;
    return first == CMD_CONNACK;
}

/* mosquitto_loop() would do all this, but it does not wait longer for CONNACK than one keepalive. */
void connection_turn(struct connection *self, int timeout_ms)
{
    struct mosquitto *client = self->client;
    struct pollfd wire = {.fd = mosquitto_socket(client), .events = POLLIN};
    int rc = MOSQ_ERR_SUCCESS;

    /* During a TLS handshake, libmosquitto 2.0.21 always wants to write. */
    if (self->state != CONNECTING && mosquitto_want_write(client))
        wire.events |= POLLOUT;
    poll(&wire, 1, timeout_ms);
    if ((wire.revents & (POLLIN | POLLERR | POLLHUP)) != 0)
        rc = is_connack(self, wire.fd) ? mosquitto_loop_read(client, 1) : MOSQ_ERR_PROTOCOL;
    if (rc == MOSQ_ERR_SUCCESS && mosquitto_want_write(client))
        rc = mosquitto_loop_write(client, 1);
    if (rc == MOSQ_ERR_SUCCESS && self->state != CONNECTING)
        rc = mosquitto_loop_misc(client);
    else if (rc == MOSQ_ERR_SUCCESS && (wire.revents & (POLLERR | POLLHUP)) != 0)
        rc = MOSQ_ERR_CONN_LOST; /* for 2.0.11, a TLS handshake goes on after a reset */
    if (rc != MOSQ_ERR_SUCCESS)
        lost(self, rc, errno);
    else if (now_ms() > self->patience_end && (self->state != ONLINE || self->in_flight > 0))
        connection_end(self, "the broker does not %s",
                       self->state == ONLINE ? "acknowledge what is published" : "answer");
}
