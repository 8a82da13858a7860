/* The equipment of energy2go: takes questions from an MQTT 5 broker and answers each with a verdict.
 *
 * One thread, one loop: connect, serve that connection until it ends, wait, connect again. The service asks again
 * about anything that is lost, and the same id gets the same verdict, so nothing is stored here. */
#define _POSIX_C_SOURCE 200809L /* sigaction(), nanosleep() */
#include "connection.h"
#include "report.h"
#include "rules.h"

#include <mqtt_protocol.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ANSWERS "EQUIPMENT/VALIDATION/RESPONSE"
#define CONTENT_TYPE "application/json"
#define CORRELATION_MAX 1024
#define PUBLISH_OVERHEAD 15 /* bytes in a PUBLISH besides topic, properties' values and payload */

#define WAITING_MAX 16384 /* answers: a delay of 16 s at 1,000 questions a second */
#define TICK_MS 1000      /* libmosquitto's keepalive counts in seconds */
#define CONNECT_S 10
#define FIRST_RETRY_MS 50
#define RETRY_MS 1000
#define START_MS 3000

struct answer {
    int64_t due;
    void *correlation; /* allocated; NULL if the question had none */
    uint16_t correlation_length;
    bool confirmed;
    char id[RULES_ID_SIZE];
};

static struct {
    struct settings settings;
    struct report report;
    struct connection connection;
    struct answer waiting[WAITING_MAX]; /* a ring; all have the same delay, so the first is due first */
    size_t first, count;
} self;

static volatile sig_atomic_t stopping;

/* A signal ends the blocking call that it hits. The alarm makes it come again, in case it came just before one. */
static void on_signal(int number)
{
    if (number != SIGALRM)
        stopping = 1;
    alarm(stopping ? 1 : CONNECT_S);
}

static void on_message(struct mosquitto *client, void *unused, const struct mosquitto_message *message,
                       const mosquitto_property *properties)
{
    struct question question;
    struct answer answer = {.due = now_ms() + (int64_t)self.settings.delay_ms};
    const char *wrong = rules_read(message->payload, (size_t)message->payloadlen, &question);

    mosquitto_property_read_binary(properties, MQTT_PROP_CORRELATION_DATA, &answer.correlation,
                                   &answer.correlation_length, false);
    if (wrong == NULL && answer.correlation_length > CORRELATION_MAX)
        wrong = "the correlation data is longer than 1024 bytes";
    if (wrong == NULL && self.count == WAITING_MAX)
        wrong = "too many answers are waiting";
    if (wrong != NULL) {
        report_refusal(&self.report, wrong, message->payload, (size_t)message->payloadlen);
        free(answer.correlation);
        return;
    }
    answer.confirmed = rules_confirm(question.id, self.settings.seed, self.settings.confirm_rate);
    memcpy(answer.id, question.id, sizeof answer.id);
    self.waiting[(self.first + self.count++) % WAITING_MAX] = answer;
    if (self.settings.verbose)
        say(stdout, "%s station %d %s\n", question.id, question.station, rules_status(answer.confirmed));
}

/* We ignore the question's Response Topic: the broker's access list decides where the equipment may publish,
 * not the client that asks. */
static int send_answer(const struct answer *answer)
{
    char payload[RULES_ANSWER_SIZE];
    mosquitto_property *properties = NULL;
    const char *reason = rules_reason(answer->id, self.settings.seed, answer->confirmed);
    int length = rules_write(answer->id, answer->confirmed, reason, self.settings.id, payload);

    /* libmosquitto 2.0.11 has this check, but lets packets pass that are one byte too large. */
    if (strlen(ANSWERS CONTENT_TYPE) + answer->correlation_length + (size_t)length + PUBLISH_OVERHEAD
        > self.connection.packet_max)
        return MOSQ_ERR_OVERSIZE_PACKET;
    mosquitto_property_add_string(&properties, MQTT_PROP_CONTENT_TYPE, CONTENT_TYPE);
    if (answer->correlation != NULL)
        mosquitto_property_add_binary(&properties, MQTT_PROP_CORRELATION_DATA, answer->correlation,
                                      answer->correlation_length);
    int rc = connection_publish(&self.connection, ANSWERS, payload, false, properties);
    mosquitto_property_free_all(&properties);
    return rc;
}

static bool may_send(void)
{
    return self.count > 0 && connection_has_room(&self.connection);
}

static void send_due(void)
{
    while (!stopping && may_send() && self.waiting[self.first].due <= now_ms()) {
        struct answer *answer = &self.waiting[self.first];
        int rc = send_answer(answer);
        if (rc == MOSQ_ERR_OVERSIZE_PACKET) { /* to keep it would block the answers behind it */
            report(&self.report, "an answer is larger than the broker's Maximum Packet Size");
        } else if (rc != MOSQ_ERR_SUCCESS) { /* it stays, and is sent on the next connection */
            connection_end(&self.connection, "cannot send an answer: %s", mosquitto_strerror(rc));
            return;
        }
        free(answer->correlation);
        self.first = (self.first + 1) % WAITING_MAX;
        self.count--;
    }
    if (self.count == 0)
        self.first = 0; /* otherwise all the ring's pages would come into memory, one after the other */
}

static int timeout_ms(void)
{
    int64_t ms = may_send() ? self.waiting[self.first].due - now_ms() : TICK_MS;
    return ms < 0 ? 0 : ms < TICK_MS ? (int)ms : TICK_MS;
}

static void report_news(bool was_online)
{
    struct connection *connection = &self.connection;

    if (!was_online && connection->state == ONLINE)
        report(&self.report, "%s is online at %s:%d%s", self.settings.id, self.settings.host,
               (int)self.settings.port,
               connection->will == NO_WILL ? ", without the status topic: the broker does not retain" : "");
    /* Mostly a wrong rule in the broker's access list. We stay connected; the service asks again. */
    if (connection->refusal != 0)
        report(&self.report, "the broker refuses what is published: %s",
               mosquitto_reason_string(connection->refusal));
    connection->refusal = 0;
}

static void serve(void)
{
    struct connection *connection = &self.connection;

    mosquitto_message_v5_callback_set(connection->client, on_message);
    alarm(CONNECT_S); /* connect() itself may wait for two minutes */
    connection_open(connection);
    alarm(0);
    while (!stopping && connection->end[0] == '\0') {
        bool was_online = connection->state == ONLINE;
        connection_turn(connection, timeout_ms());
        send_due();
        report_news(was_online);
    }
    /* We always leave with MQTT 5's "disconnect with Will message" (3.14.2.1, reason 4): the broker publishes our
     * "offline", as it does when the connection just breaks. So there is no acknowledgement to wait for. */
    mosquitto_disconnect_v5(connection->client, MQTT_RC_DISCONNECT_WITH_WILL_MSG, NULL);
}

/* The first attempts follow each other quickly, so that starting together with the broker doesn't cost a second.
 * Returns NULL once it is stopped, or why it cannot start: there was no CA file for START_MS. It may be renewed now. */
static const char *serve_until_stopped(void)
{
    int64_t start_end = now_ms() + START_MS;

    for (int retry_ms = FIRST_RETRY_MS; !stopping;
         retry_ms = 2 * retry_ms < RETRY_MS ? 2 * retry_ms : RETRY_MS) {
        if (connection_new(&self.connection, &self.settings)) {
            start_end = INT64_MAX;
            serve();
        } else if (now_ms() > start_end) {
            return self.connection.end;
        }
        if (self.connection.state == ONLINE)
            retry_ms = RETRY_MS;
        if (stopping)
            break;
        report(&self.report, "not connected to %s:%d, trying again: %s", self.settings.host,
               (int)self.settings.port, self.connection.end);
        nanosleep(&(struct timespec){retry_ms / 1000, retry_ms % 1000 * 1000000L}, NULL);
    }
    return NULL;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART, so that blocking calls end */

    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGALRM, &action, NULL);
    sigprocmask(SIG_SETMASK, &action.sa_mask, NULL); /* the parent may have left them blocked */
    action.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &action, NULL); /* a broken socket or pipe is an error code instead */
}

int main(void)
{
    const char *wrong = settings_read(&self.settings);

    setvbuf(stdout, NULL, _IOLBF, 0);
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 0); /* otherwise glibc asks a dead name server for 10 s */
    catch_signals();
    mosquitto_lib_init();
    if (wrong == NULL)
        wrong = serve_until_stopped();
    if (wrong != NULL)
        say(stderr, "validator: %s\n", wrong);
    mosquitto_destroy(self.connection.client);
    mosquitto_lib_cleanup();
    return wrong == NULL ? 0 : 2;
}
