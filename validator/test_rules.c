/* Tests of rules.c: tables of inputs and what must come of them, then the verdicts' statistics. */
#include "rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID "01890a5d-ac96-774b-bcce-b302099a8057"
#define WITH(id, station) "{\"transaction_id\":" id ",\"station_id\":" station "}"
#define GOOD WITH("\"" ID "\"", "1")
#define BYTES(literal) literal, sizeof(literal) - 1
#define MANY 100000

static int passed, failed;

static void check(bool good, const char *what)
{
    if (good) {
        passed++;
    } else {
        failed++;
        fprintf(stderr, "FAILED: %s\n", what);
    }
}

static const struct {
    const char *payload;
    size_t length;
    enum rules_code code;
} questions[] = {
    {BYTES(GOOD), RULES_OK},
    {BYTES(" \t\r\n" GOOD " \t\r\n"), RULES_OK},
    {BYTES("{\"station_id\":1,\"transaction_id\":\"" ID "\"}"), RULES_OK},
    {BYTES("{\"x\":[{}],\"transaction_id\":\"" ID "\",\"y\":null,\"station_id\":1}"), RULES_OK},
    {BYTES("{\"x\":\"\xC2\xA2 \xE2\x82\xAC \xF0\x9F\x94\x8B\",\"transaction_id\":\"" ID "\",\"station_id\":1}"),
     RULES_OK},
    {BYTES("{\"x\":\"\\u00e9 \\\\u0000\",\"transaction_id\":\"" ID "\",\"station_id\":1}"), RULES_OK},
    {BYTES(WITH("\"\\u0030" "1890a5d-ac96-774b-bcce-b302099a8057\"", "1")), RULES_OK},
    {BYTES(WITH("\"01890A5D-AC96-774B-BCCE-B302099A8057\"", "1")), RULES_OK},
    {BYTES(WITH("\"00000000-0000-0000-0000-000000000000\"", "1")), RULES_OK},
    {BYTES(WITH("\"" ID "\"", "2147483647")), RULES_OK},
    {BYTES(WITH("\"" ID "\"", "1.0")), RULES_OK},
    {BYTES(WITH("\"" ID "\"", "2e3")), RULES_OK},

    {BYTES(""), RULES_NOT_JSON},
    {BYTES(" "), RULES_NOT_JSON},
    {BYTES("hello"), RULES_NOT_JSON},
    {BYTES("transaction " ID), RULES_NOT_JSON},
    {BYTES("{"), RULES_NOT_JSON},
    {BYTES("{}}"), RULES_NOT_JSON},
    {BYTES(GOOD "x"), RULES_NOT_JSON},
    {BYTES(GOOD GOOD), RULES_NOT_JSON},
    {BYTES("{\"transaction_id\":\"" ID "\",\"station_id\":1,}"), RULES_NOT_JSON},
    {BYTES("{\"transaction_id\":\"" ID "\",\"station_id\":1"), RULES_NOT_JSON},
    {BYTES("{'transaction_id':'" ID "','station_id':1}"), RULES_NOT_JSON},
    {BYTES("{transaction_id:\"" ID "\",station_id:1}"), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\\u0000\"", "1")), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\\uZZZZ\"", "1")), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\\\"", "1")), RULES_NOT_JSON},
    {BYTES("\x01" GOOD), RULES_NOT_JSON},
    {BYTES("{\"x\":\"\x1B[2J\",\"transaction_id\":\"" ID "\",\"station_id\":1}"), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\"", "NaN")), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\"", "+1")), RULES_NOT_JSON},
    {BYTES(WITH("\"" ID "\"", "0x1")), RULES_NOT_JSON},

    {BYTES("{\0}"), RULES_HOLDS_NUL},
    {BYTES(GOOD "\0"), RULES_HOLDS_NUL},
    {BYTES("\xFF"), RULES_NOT_UTF8},
    {BYTES("\x80"), RULES_NOT_UTF8},
    {BYTES("\"\xC0\x80\""), RULES_NOT_UTF8},         /* overlong */
    {BYTES("\"\xE0\x9F\xBF\""), RULES_NOT_UTF8},     /* overlong */
    {BYTES("\"\xF0\x8F\xBF\xBF\""), RULES_NOT_UTF8}, /* overlong */
    {BYTES("\"\xED\xA0\x80\""), RULES_NOT_UTF8},     /* surrogate */
    {BYTES("\"\xF4\x90\x80\x80\""), RULES_NOT_UTF8}, /* past U+10FFFF */
    {BYTES("\"\xF5\x80\x80\x80\""), RULES_NOT_UTF8},
    {BYTES("\"\xE2\x82\""), RULES_NOT_UTF8},
    {BYTES("\"\xE2\x82"), RULES_NOT_UTF8},
    {BYTES("\"\xF0\x9F\x94"), RULES_NOT_UTF8},
    {BYTES("{\"x\":\"\xE9\",\"transaction_id\":\"" ID "\",\"station_id\":1}"), RULES_NOT_UTF8},

    {BYTES("null"), RULES_NOT_AN_OBJECT},
    {BYTES("17"), RULES_NOT_AN_OBJECT},
    {BYTES("\"" ID "\""), RULES_NOT_AN_OBJECT},
    {BYTES("[" GOOD "]"), RULES_NOT_AN_OBJECT},
    {BYTES("[\"transaction_id\",\"station_id\"]"), RULES_NOT_AN_OBJECT},

    {BYTES("{}"), RULES_ID_MISSING},
    {BYTES("{\"station_id\":1}"), RULES_ID_MISSING},
    {BYTES("{\"Transaction_ID\":\"" ID "\",\"station_id\":1}"), RULES_ID_MISSING},
    {BYTES("{\"x\":" GOOD "}"), RULES_ID_MISSING},
    {BYTES(WITH("null", "1")), RULES_ID_NOT_A_STRING},
    {BYTES(WITH("7", "1")), RULES_ID_NOT_A_STRING},
    {BYTES(WITH("[\"" ID "\"]", "1")), RULES_ID_NOT_A_STRING},
    {BYTES(WITH("\"\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"7\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\" " ID "\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"" ID "0\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"{" ID "}\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"urn:uuid:" ID "\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5dac96774bbcceb302099a8057\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcce-b302099a805g\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcce-b302099a805\xC3\xA9\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcceb-302099a8057\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"------------------------------------\"", "1")), RULES_ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcce-b302099a80%s\"", "1")), RULES_ID_NOT_A_UUID},

    {BYTES("{\"transaction_id\":\"" ID "\"}"), RULES_STATION_MISSING},
    {BYTES(WITH("\"" ID "\"", "null")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "true")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "\"1\"")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "[1]")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "0")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "-1")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "1.5")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "2147483648")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "4294967297")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "1e999")), RULES_STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "-1e999")), RULES_STATION_NOT_WHOLE},
};

static void test_questions(void)
{
    struct question question;

    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        /* On the heap and without a NUL, so that the sanitizer sees a read past the end. */
        char *payload = malloc(questions[i].length);
        if (payload != NULL)
            memcpy(payload, questions[i].payload, questions[i].length);
        check(rules_read(payload, questions[i].length, &question) == questions[i].code, questions[i].payload);
        free(payload);
    }
    check(rules_read(BYTES(WITH("\"01890A5D-AC96-774b-bcce-b302099a8057\"", "2147483647")), &question) == RULES_OK
              && strcmp(question.id, ID) == 0 && question.station == 2147483647,
          "the id is lower-cased, the station is what was sent");
    check(rules_read(NULL, 0, &question) == RULES_NOT_JSON, "no payload at all");
}

static void test_bounds(void)
{
    struct question question;
    char payload[RULES_QUESTION_MAX + 1];

    memset(payload, ' ', sizeof payload);
    memcpy(payload, BYTES(GOOD));
    check(rules_read(payload, RULES_QUESTION_MAX, &question) == RULES_OK, "the longest question");
    check(rules_read(payload, RULES_QUESTION_MAX + 1, &question) == RULES_TOO_LONG, "one byte more");
    check(rules_read(payload, SIZE_MAX, &question) == RULES_TOO_LONG, "the length alone decides");
    memset(payload, '[', sizeof payload);
    check(rules_read(payload, RULES_QUESTION_MAX, &question) == RULES_NOT_JSON, "nested as deep as it goes");
    memset(payload + RULES_QUESTION_MAX / 2, ']', RULES_QUESTION_MAX / 2);
    check(rules_read(payload, RULES_QUESTION_MAX, &question) == RULES_NOT_AN_OBJECT, "nested, and closed again");
    for (size_t cut = 0; cut < sizeof GOOD - 1; cut++)
        check(rules_read(GOOD, cut, &question) == RULES_NOT_JSON, "a question cut short");
}

static void test_answers(void)
{
    char buffer[RULES_ANSWER_SIZE];
    const char *completed = "{\"transaction_id\":\"" ID "\",\"status\":\"COMPLETED\"}";
    const char *error = "{\"transaction_id\":\"" ID "\",\"status\":\"ERROR\"}";

    check(rules_write(ID, true, buffer, sizeof buffer) == RULES_OK && strcmp(buffer, completed) == 0, completed);
    check(rules_write(ID, false, buffer, sizeof buffer) == RULES_OK && strcmp(buffer, error) == 0, error);
    check(rules_write(ID, true, buffer, strlen(completed) + 1) == RULES_OK, "it fits exactly");
    check(rules_write(ID, true, buffer, strlen(completed)) == RULES_NO_ROOM, "one byte short");
    check(rules_write(ID, true, buffer, 0) == RULES_NO_ROOM, "no room at all");
}

static void test_sentences(void)
{
    for (enum rules_code code = RULES_OK; code <= RULES_NO_ROOM; code++)
        for (enum rules_code other = RULES_OK; other < code; other++)
            check(strcmp(rules_sentence(code), rules_sentence(other)) != 0, rules_sentence(code));
    check(strcmp(rules_sentence(RULES_NO_ROOM + 1), "unknown code") == 0, "a code there is not");
}

/* Ids as the service makes them: they begin with the time, so neighbours share most of their digits. */
static void make_id(char id[RULES_ID_SIZE], unsigned number)
{
    snprintf(id, RULES_ID_SIZE, "01890a5d-%04x-7%03x-8000-%012x", number >> 12 & 0xFFFF, number & 0xFFF, number * 7);
}

static void test_share(uint64_t seed, double rate)
{
    char id[RULES_ID_SIZE], what[80];
    int confirmed = 0, repeats = 0, pairs = 0;
    bool last = false;

    for (unsigned number = 0; number < MANY; number++) {
        make_id(id, number);
        bool verdict = rules_confirm(id, seed, rate);
        confirmed += verdict;
        repeats += verdict == rules_confirm(id, seed, rate);
        pairs += verdict && last;
        last = verdict;
    }
    double share = (double)confirmed / MANY - rate, in_pairs = (double)pairs / MANY - rate * rate;
    snprintf(what, sizeof what, "seed %llu, rate %g: confirmed %d", (unsigned long long)seed, rate, confirmed);
    check(share > -0.01 && share < 0.01, what);
    check(in_pairs > -0.01 && in_pairs < 0.01, "a verdict tells nothing about the next one");
    check(repeats == MANY, "a verdict is the same when asked again");
    check(rate > 0 || confirmed == 0, "rate 0 confirms none");
    check(rate < 1 || confirmed == MANY, "rate 1 confirms all");
}

static void test_seeds(uint64_t one, uint64_t other)
{
    char id[RULES_ID_SIZE];
    int equal = 0;

    for (unsigned number = 0; number < MANY; number++) {
        make_id(id, number);
        equal += rules_confirm(id, one, 0.5) == rules_confirm(id, other, 0.5);
    }
    check(equal > MANY * 0.49 && equal < MANY * 0.51, "two seeds agree on half of all ids");
}

/* A verdict must outlive an upgrade, since the service may ask again after one. */
static void test_known_verdicts(void)
{
    char verdicts[17] = "", id[RULES_ID_SIZE];

    for (unsigned number = 0; number < 16; number++) {
        make_id(id, number);
        verdicts[number] = rules_confirm(id, 1, 0.6) ? 'y' : 'n';
    }
    check(strcmp(verdicts, "yynyyyyyyyynyynn") == 0, verdicts);
}

int main(void)
{
    const uint64_t seeds[] = {0, 1, 42, UINT64_MAX};
    const double rates[] = {0, 0.01, 0.25, 0.5, 0.6, 0.99, 1};

    test_questions();
    test_bounds();
    test_answers();
    test_sentences();
    for (size_t i = 0; i < sizeof seeds / sizeof seeds[0]; i++) {
        for (size_t k = 0; k < sizeof rates / sizeof rates[0]; k++)
            test_share(seeds[i], rates[k]);
        test_seeds(seeds[i], seeds[i] + 1);
    }
    test_known_verdicts();
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
