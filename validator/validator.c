/* The equipment of energy2go: takes questions from an MQTT 5 broker and answers each with a verdict.
 *
 * One thread, one loop: ppoll() waits for the socket, a timer or a signal, whichever comes first, and
 * mosquitto_loop(client, 0, 1) then does what is due without waiting. mosquitto_loop_forever() is not used, for
 * it stops on no flag. Whatever is lost on the way is asked again by the service, and the same id gets the
 * same verdict, so nothing here is stored. */
#define _GNU_SOURCE /* ppoll() */
#include "report.h"
#include "rules.h"
#include "settings.h"

#include <errno.h>
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define QUESTIONS "$share/validators/EQUIPMENT/VALIDATION"
#define ANSWERS "EQUIPMENT/VALIDATION/RESPONSE"
#define STATUS "EQUIPMENT/STATUS/"
#define QOS 1

#define KEEPALIVE_S 5
#define TICK_MS 1000 /* libmosquitto looks after its keepalive when it is called, in whole seconds */
#define HANDSHAKE_MS 20
#define RECONNECT_MS 1000
#define FAREWELL_MS 50 /* what a broker that has stopped reading may cost us when we leave */

#define WAITING_MAX 16384 /* answers: a delay of 16 s at 1,000 questions a second */
#define IN_FLIGHT_MAX 20 /* as many as libmosquitto sends unacknowledged; more would pile up within it */
#define CORRELATION_MAX 128

struct answer {
    int64_t due;
    char id[RULES_ID_SIZE];
    bool confirmed;
    uint8_t correlation_length;
    uint8_t correlation[CORRELATION_MAX];
};

static struct {
    struct settings settings;
    struct mosquitto *client;
    char status_topic[128];
    enum { AWAY, CONNECTING, ONLINE } state;
    bool ipv6; /* what to dial first: see dial() */
    int64_t reconnect_at;
    char reason[200]; /* why this connection is about to end, when the broker or OpenSSL said so */
    struct report report;
    struct answer waiting[WAITING_MAX]; /* a ring: one delay for all, so first in is first due */
    size_t first, count;
    int in_flight; /* published, and not yet acknowledged */
} self;

static volatile sig_atomic_t stopping;

static void on_signal(int number)
{
    stopping = number;
}

/* A subscription does not outlive its connection (clean session), so each connection makes its own. */
static void on_connect(struct mosquitto *client, void *unused, int reason)
{
    (void)unused;
    if (reason != MQTT_RC_SUCCESS)
        snprintf(self.reason, sizeof self.reason, "%s", mosquitto_reason_string(reason));
    else if (mosquitto_subscribe(client, NULL, QUESTIONS, QOS) != MOSQ_ERR_SUCCESS)
        mosquitto_disconnect(client);
}

static void on_subscribe(struct mosquitto *client, void *unused, int mid, int count, const int *granted)
{
    bool refused = granted[0] >= MQTT_RC_UNSPECIFIED;
    int length = (int)strlen("online"), rc = MOSQ_ERR_SUCCESS;

    (void)unused, (void)mid, (void)count;
    if (refused)
        snprintf(self.reason, sizeof self.reason, "subscription refused: %s", mosquitto_reason_string(granted[0]));
    else
        rc = mosquitto_publish(client, NULL, self.status_topic, length, "online", QOS, true);
    if (refused || rc != MOSQ_ERR_SUCCESS) {
        mosquitto_disconnect(client);
        return;
    }
    self.state = ONLINE;
    report_state(&self.report, false, "%s is online at %s:%d", self.settings.id, self.settings.host,
                 self.settings.port);
}

static void on_message(struct mosquitto *client, void *unused, const struct mosquitto_message *message,
                       const mosquitto_property *properties)
{
    struct question question;
    void *correlation = NULL;
    uint16_t length = 0;
    enum rules_code code = rules_read(message->payload, (size_t)message->payloadlen, &question);

    (void)client, (void)unused;
    if (code != RULES_OK || self.count == WAITING_MAX) {
        const char *why = code != RULES_OK ? rules_sentence(code) : "too many answers are waiting";
        report_refusal(&self.report, why, message->payload, (size_t)message->payloadlen);
        return;
    }
    struct answer *answer = &self.waiting[(self.first + self.count++) % WAITING_MAX];
    answer->due = now_ms() + self.settings.delay_ms;
    answer->confirmed = rules_confirm(question.id, self.settings.seed, self.settings.confirm_rate);
    memcpy(answer->id, question.id, sizeof answer->id);
    /* A longer one than anybody needs is left out; the answer still says which transaction it is about. */
    mosquitto_property_read_binary(properties, MQTT_PROP_CORRELATION_DATA, &correlation, &length, false);
    answer->correlation_length = correlation != NULL && length <= CORRELATION_MAX ? (uint8_t)length : 0;
    if (answer->correlation_length > 0)
        memcpy(answer->correlation, correlation, answer->correlation_length);
    free(correlation);
    if (self.settings.verbose)
        say(stdout, "%s station %d %s\n", question.id, question.station, rules_status(answer->confirmed));
}

/* A PUBACK may say no, and mostly means a wrong rule in the broker's access list. */
static void on_publish(struct mosquitto *client, void *unused, int mid, int reason,
                       const mosquitto_property *properties)
{
    (void)client, (void)unused, (void)mid, (void)properties;
    if (self.in_flight > 0)
        self.in_flight--;
    if (reason >= MQTT_RC_UNSPECIFIED)
        report_state(&self.report, true, "the broker refused what was published: %s", mosquitto_reason_string(reason));
}

/* The same number tells an error of the library, below 128, or why the broker sent us away. */
static void on_disconnect(struct mosquitto *client, void *unused, int reason)
{
    (void)client, (void)unused;
    if (reason >= MQTT_RC_UNSPECIFIED)
        snprintf(self.reason, sizeof self.reason, "%s", mosquitto_reason_string(reason));
}

/* Of a TLS failure only the library's log knows more than "A TLS error occurred". */
static void on_log(struct mosquitto *client, void *unused, int level, const char *line)
{
    (void)client, (void)unused;
    if (level == MOSQ_LOG_ERR && self.reason[0] == '\0')
        snprintf(self.reason, sizeof self.reason, "%s", line);
}

/* The Response Topic of a question is not followed: where the equipment may write is the broker's access
 * list's to say, not the asker's. An answer that is not acknowledged before the connection breaks is kept
 * by libmosquitto and sent again on the next one, for a late verdict still counts. */
static void send_answer(const struct answer *answer)
{
    char payload[RULES_ANSWER_SIZE];
    mosquitto_property *properties = NULL;
    int rc = MOSQ_ERR_PAYLOAD_SIZE;

    if (rules_write(answer->id, answer->confirmed, payload, sizeof payload) == RULES_OK)
        rc = mosquitto_property_add_string(&properties, MQTT_PROP_CONTENT_TYPE, "application/json");
    if (rc == MOSQ_ERR_SUCCESS && answer->correlation_length > 0)
        rc = mosquitto_property_add_binary(&properties, MQTT_PROP_CORRELATION_DATA, answer->correlation,
                                           answer->correlation_length);
    if (rc == MOSQ_ERR_SUCCESS)
        rc = mosquitto_publish_v5(self.client, NULL, ANSWERS, (int)strlen(payload), payload, QOS, false, properties);
    if (rc != MOSQ_ERR_SUCCESS)
        report_state(&self.report, true, "while sending an answer: %s", mosquitto_strerror(rc));
    mosquitto_property_free_all(&properties);
}

/* Answers that fall due while away, or faster than the broker acknowledges them, go on waiting: room is
 * bounded here, and is not within libmosquitto. */
static bool may_send(void)
{
    return self.state == ONLINE && self.count > 0 && self.in_flight < IN_FLIGHT_MAX;
}

static void send_due(void)
{
    while (may_send() && self.waiting[self.first].due <= now_ms()) {
        self.in_flight++;
        send_answer(&self.waiting[self.first]);
        self.first = (self.first + 1) % WAITING_MAX;
        self.count--;
    }
    if (self.count == 0)
        self.first = 0; /* or all of the ring would come to be in memory, a place after the other */
}

static void lost(int rc)
{
    const char *why = rc == MOSQ_ERR_KEEPALIVE ? "no sign of life" : mosquitto_strerror(rc);

    report_state(&self.report, true, "not connected to %s:%d, trying again: %s", self.settings.host, self.settings.port,
             self.reason[0] != '\0' ? self.reason : why);
    self.state = AWAY;
    self.reconnect_at = now_ms() + RECONNECT_MS;
}

/* libmosquitto's asynchronous connect settles for the first address that does not fail at once, so where
 * "localhost" is ::1 first it would never find a broker on 127.0.0.1. Binding to "any address" of a kind
 * leaves only that kind, and the two take turns. What may block here is the resolver; main() bounds it. */
static void dial(void)
{
    int rc = MOSQ_ERR_ERRNO, error = EAFNOSUPPORT;

    self.state = CONNECTING;
    self.reason[0] = '\0';
    self.in_flight = 0; /* libmosquitto sends what was in flight again, and nobody counts that */
    for (int tries = 0; tries < 2; tries++) {
        mosquitto_string_option(self.client, MOSQ_OPT_BIND_ADDRESS, self.ipv6 ? "::" : "0.0.0.0");
        rc = mosquitto_connect_async(self.client, self.settings.host, self.settings.port, KEEPALIVE_S);
        if (rc != MOSQ_ERR_ERRNO)
            break;
        if (errno != EINVAL && errno != EAFNOSUPPORT) /* these say that the host has no address of this kind */
            error = errno;
        self.ipv6 = !self.ipv6;
    }
    errno = error;
    if (rc != MOSQ_ERR_SUCCESS)
        lost(rc);
}

static bool in_handshake(void)
{
    return self.state == CONNECTING && self.settings.ca_file != NULL;
}

/* The error of an attempt to connect that has failed, or 0. Asked of the socket, for within TLS libmosquitto
 * 2.0.11 takes such a failure for a handshake that goes on, and swallows what the error was. */
static int failure(int fd, short events)
{
    int error = 0;
    socklen_t size = sizeof error;

    if (self.state != CONNECTING || (events & (POLLERR | POLLHUP)) == 0)
        return 0;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    return error != 0 ? error : ECONNREFUSED;
}

static void work(int fd, short events)
{
    int error = failure(fd, events);
    int rc = error != 0 ? MOSQ_ERR_ERRNO : mosquitto_loop(self.client, 0, 1);

    if (rc == MOSQ_ERR_SUCCESS && mosquitto_socket(self.client) < 0)
        rc = MOSQ_ERR_CONN_LOST;
    if (rc == MOSQ_ERR_SUCCESS)
        return;
    if (self.state == CONNECTING && self.reason[0] == '\0')
        self.ipv6 = !self.ipv6;
    if (error != 0)
        errno = error;
    lost(rc);
}

static struct timespec patience(void)
{
    int64_t now = now_ms(), until = now + (in_handshake() ? HANDSHAKE_MS : TICK_MS);

    if (self.state == AWAY)
        until = self.reconnect_at;
    if (may_send() && self.waiting[self.first].due < until)
        until = self.waiting[self.first].due;
    int64_t ms = until > now ? until - now : 0;
    return (struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
}

static void turn(const sigset_t *unblocked)
{
    struct pollfd wire = {.fd = -1, .events = POLLIN}; /* of a negative fd, poll hears nothing */
    struct timespec timeout;

    if (self.state == AWAY && now_ms() >= self.reconnect_at)
        dial();
    if (self.state != AWAY) {
        wire.fd = mosquitto_socket(self.client);
        /* 2.0.21 wants to write all through a TLS handshake. mosquitto_loop() knows better: call it often. */
        if (!in_handshake() && mosquitto_want_write(self.client))
            wire.events |= POLLOUT;
    }
    timeout = patience();
    /* Linux delivers no signal when ppoll() finds the socket ready, and under load it always is. */
    if (ppoll(&wire, 1, &timeout, unblocked) > 0)
        ppoll(NULL, 0, &(struct timespec){0}, unblocked);
    if (self.state != AWAY)
        work(wire.fd, wire.revents);
    send_due();
    report_refused(&self.report);
}

/* Goes with MQTT 5's "disconnect with Will message" (3.14.2.1, reason 4): the broker publishes our "offline",
 * as it does when the connection just breaks, so there is no acknowledgement to wait for. */
static void leave(void)
{
    int64_t end = now_ms() + FAREWELL_MS;

    if (self.state != ONLINE)
        return;
    mosquitto_disconnect_v5(self.client, MQTT_RC_DISCONNECT_WITH_WILL_MSG, NULL);
    while (mosquitto_socket(self.client) >= 0 && now_ms() < end) { /* it closes when all is written */
        struct pollfd wire = {.fd = mosquitto_socket(self.client), .events = POLLOUT};
        poll(&wire, 1, FAREWELL_MS / 10);
        if (mosquitto_loop_write(self.client, 1) != MOSQ_ERR_SUCCESS)
            break;
    }
}

/* All that the client is before it connects. Returns NULL, or what is wrong. */
static const char *prepare(void)
{
    const struct settings *settings = &self.settings;

    self.client = mosquitto_new(settings->id, true, NULL);
    if (self.client == NULL)
        return "out of memory";
    snprintf(self.status_topic, sizeof self.status_topic, STATUS "%s", settings->id);
    if (mosquitto_int_option(self.client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5) != MOSQ_ERR_SUCCESS
        || mosquitto_int_option(self.client, MOSQ_OPT_TCP_NODELAY, 1) != MOSQ_ERR_SUCCESS
        || mosquitto_will_set(self.client, self.status_topic, (int)strlen("offline"), "offline", QOS, true)
            != MOSQ_ERR_SUCCESS)
        return "this libmosquitto is not fit for MQTT 5";
    if (settings->username != NULL
        && mosquitto_username_pw_set(self.client, settings->username, settings->password) != MOSQ_ERR_SUCCESS)
        return "VALIDATOR_USERNAME must be UTF-8 of at most 65535 bytes";
    /* With a CA given, libmosquitto verifies the certificate and the name on it. */
    if (settings->ca_file != NULL
        && mosquitto_tls_set(self.client, settings->ca_file, NULL, NULL, NULL, NULL) != MOSQ_ERR_SUCCESS)
        return "MQTT_CA_FILE must name a readable file of PEM certificates";
    mosquitto_connect_callback_set(self.client, on_connect);
    mosquitto_subscribe_callback_set(self.client, on_subscribe);
    mosquitto_message_v5_callback_set(self.client, on_message);
    mosquitto_publish_v5_callback_set(self.client, on_publish);
    mosquitto_disconnect_callback_set(self.client, on_disconnect);
    mosquitto_log_callback_set(self.client, on_log);
    return NULL;
}

/* Blocks the signals that stop us everywhere but in ppoll(), so that none falls between a look at the flag
 * and the wait. A socket that breaks is an error code, not a signal. */
static void catch_signals(sigset_t *unblocked)
{
    struct sigaction stop = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, unblocked);
    sigdelset(unblocked, SIGTERM); /* whoever started us may have had them blocked */
    sigdelset(unblocked, SIGINT);
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

int main(void)
{
    sigset_t unblocked;
    const char *wrong;

    setvbuf(stdout, NULL, _IOLBF, 0);
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 0); /* or glibc asks a dead name server for 10 s */
    catch_signals(&unblocked);
    mosquitto_lib_init();
    wrong = settings_read(&self.settings);
    if (wrong == NULL)
        wrong = prepare();
    if (wrong == NULL) {
        while (!stopping)
            turn(&unblocked);
        leave();
    } else {
        say(stderr, "validator: %s\n", wrong);
    }
    mosquitto_destroy(self.client);
    mosquitto_lib_cleanup();
    return wrong == NULL ? 0 : 2;
}
