/* Tests for rules.c: questions and the answers we expect, then the verdicts' statistics. */
#include "rules.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ID "01890a5d-ac96-774b-bcce-b302099a8057"
#define WITH(id, station) "{\"transaction_id\":" id ",\"station_id\":" station "}"
#define GOOD WITH("\"" ID "\"", "1")
#define BYTES(literal) literal, sizeof(literal) - 1
#define MANY 100000

#define TOO_LONG "the question is too long"
#define NOT_JSON "the question is not JSON"
#define NOT_UTF8 "the question is not UTF-8"
#define SAME_KEY_TWICE "the question has the same key twice"
#define TOO_LARGE "the question has a number that is too large"
#define NOT_AN_OBJECT "the question is not a JSON object"
#define ID_MISSING "transaction_id is missing"
#define ID_NOT_A_STRING "transaction_id is not a string"
#define ID_NOT_A_UUID "transaction_id is not a UUID"
#define STATION_MISSING "station_id is missing"
#define STATION_NOT_WHOLE "station_id is not a whole number from 1 to 2147483647"

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
    const char *wrong; /* NULL for a good question */
} questions[] = {
    {BYTES(" \t\r\n" GOOD " \t\r\n"), NULL},
    {BYTES("{\"station_id\":1,\"x\":[{}],\"transaction_id\":\"" ID "\",\"y\":\"\xC2\xA2 \\u00e9\"}"), NULL},
    {BYTES(WITH("\"\\u0030"
                "1890a5d-ac96-774b-bcce-b302099a8057\"",
                "1")),
     NULL},
    {BYTES(WITH("\"00000000-0000-0000-0000-000000000000\"", "2147483647")), NULL},

    {BYTES(""), NOT_JSON},
    {BYTES("transaction " ID), NOT_JSON},
    {BYTES(GOOD "x"), NOT_JSON},
    {BYTES(GOOD "\0"), NOT_JSON},
    {BYTES(WITH("\"" ID "\\u0000\"", "1")), NOT_JSON},
    {BYTES("\xEF\xBB\xBF" GOOD), NOT_JSON}, /* a byte order mark */

    {BYTES("\xFF"), NOT_UTF8},
    {BYTES("\"\xED\xA0\x80\""), NOT_UTF8}, /* surrogate */

    {BYTES("{\"transaction_id\":\"" ID "\",\"station_id\":1,\"station_id\":1}"), SAME_KEY_TWICE},
    {BYTES("{\"x\":[{\"y\":1,\"\\u0079\":1}],\"transaction_id\":\"" ID "\",\"station_id\":1}"),
     SAME_KEY_TWICE},

    {BYTES("17"), NOT_AN_OBJECT},
    {BYTES("[" GOOD "]"), NOT_AN_OBJECT},

    {BYTES("{\"x\":" GOOD "}"), ID_MISSING},
    {BYTES(WITH("null", "1")), ID_NOT_A_STRING},
    {BYTES(WITH("\" " ID "\"", "1")), ID_NOT_A_UUID},
    {BYTES(WITH("\"" ID "0\"", "1")), ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5dac96774bbcceb302099a8057\"", "1")), ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcce-b302099a805g\"", "1")), ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcceb-302099a8057\"", "1")), ID_NOT_A_UUID},
    {BYTES(WITH("\"01890a5d-ac96-774b-bcce-b302099a80\xC3\xA9\"", "1")), ID_NOT_A_UUID},

    {BYTES("{\"transaction_id\":\"" ID "\"}"), STATION_MISSING},
    {BYTES(WITH("\"" ID "\"", "\"1\"")), STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "0")), STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "-1")), STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "1.0")), STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "4294967297")), STATION_NOT_WHOLE},
    {BYTES(WITH("\"" ID "\"", "9223372036854775808")), TOO_LARGE},
    {BYTES(WITH("\"" ID "\"", "1e999")), TOO_LARGE},
};

static bool reads(const char *payload, size_t length, const char *expected, struct question *question)
{
    const char *wrong = rules_read(payload, length, question);
    return expected == NULL || wrong == NULL ? wrong == expected : strcmp(wrong, expected) == 0;
}

static void test_questions(void)
{
    struct question question;

    for (size_t i = 0; i < sizeof questions / sizeof questions[0]; i++) {
        /* On the heap and without a NUL, so that the sanitizer sees a read past the end. */
        char *payload = malloc(questions[i].length);
        if (payload != NULL)
            memcpy(payload, questions[i].payload, questions[i].length);
        check(reads(payload, questions[i].length, questions[i].wrong, &question), questions[i].payload);
        free(payload);
    }
    check(rules_read(BYTES(WITH("\"01890A5D-AC96-774b-bcce-b302099a8057\"", "2147483647")), &question)
                  == NULL
              && strcmp(question.id, ID) == 0 && question.station == 2147483647,
          "the id is lower-cased, the station is what was sent");
    check(reads(NULL, 0, NOT_JSON, &question), "no payload at all");
}

static void test_bounds(void)
{
    struct question question;
    char payload[RULES_QUESTION_MAX + 1];

    memset(payload, ' ', sizeof payload);
    memcpy(payload, BYTES(GOOD));
    check(reads(payload, RULES_QUESTION_MAX, NULL, &question), "the longest question");
    check(reads(payload, RULES_QUESTION_MAX + 1, TOO_LONG, &question), "one byte more");
    check(reads(payload, SIZE_MAX, TOO_LONG, &question), "the length alone decides");
    memset(payload, '[', sizeof payload);
    check(reads(payload, RULES_QUESTION_MAX, NOT_JSON, &question), "nested as deep as it goes");
    memset(payload + RULES_QUESTION_MAX / 2, ']', RULES_QUESTION_MAX / 2);
    check(reads(payload, RULES_QUESTION_MAX, NOT_AN_OBJECT, &question), "nested, and closed again");
    for (size_t cut = 0; cut < sizeof GOOD - 1; cut++)
        check(reads(GOOD, cut, NOT_JSON, &question), "a question cut short");
}

static void test_answers(void)
{
    char buffer[RULES_ANSWER_SIZE];
    const char *completed =
        "{\"transaction_id\":\"" ID "\",\"status\":\"COMPLETED\",\"reason\":\"fine\",\"equipment\":\"one\"}";
    char longest[65];
    int reasons = 0;

    check(rules_write(ID, true, "fine", "one", buffer) == (int)strlen(completed)
              && strcmp(buffer, completed) == 0,
          completed);
    memset(longest, 'x', 64);
    longest[64] = '\0';
    for (uint64_t seed = 0; seed < 100; seed++) {
        const char *reason = rules_reason(ID, seed, seed % 2 == 0);
        check(rules_write(ID, true, reason, longest, buffer) == (int)strlen(buffer), "an answer fits");
        check(strcmp(reason, rules_reason(ID, seed, seed % 2 == 0)) == 0, "the reason is always the same");
        reasons += strcmp(reason, rules_reason(ID, 1, false)) != 0;
    }
    check(reasons > 60 && reasons < 99, "there are several reasons");
}

/* Ids as the service makes them: they begin with the time, so neighbours have most digits in common. */
static void make_id(char id[RULES_ID_SIZE], unsigned number)
{
    snprintf(id, RULES_ID_SIZE, "01890a5d-%04x-7%03x-8000-%012x", number >> 12 & 0xFFFF, number & 0xFFF,
             number * 7);
}

static void test_share(uint64_t seed, double rate)
{
    char id[RULES_ID_SIZE], what[80];
    int confirmed = 0, pairs = 0, agreed = 0;
    bool last = false;

    for (unsigned number = 0; number < MANY; number++) {
        make_id(id, number);
        bool verdict = rules_confirm(id, seed, rate);
        confirmed += verdict;
        pairs += verdict && last;
        agreed += rules_confirm(id, seed, 0.5) == rules_confirm(id, seed + 1, 0.5);
        last = verdict;
    }
    double share = (double)confirmed / MANY - rate, in_pairs = (double)pairs / MANY - rate * rate;
    snprintf(what, sizeof what, "seed %llu, rate %g: confirmed %d", (unsigned long long)seed, rate,
             confirmed);
    check(share > -0.01 && share < 0.01, what);
    check(in_pairs > -0.01 && in_pairs < 0.01, "a verdict tells nothing about the next one");
    check(rate > 0 || confirmed == 0, "rate 0 confirms none");
    check(rate < 1 || confirmed == MANY, "rate 1 confirms all");
    check(agreed > MANY * 0.49 && agreed < MANY * 0.51, "two seeds agree on half of all ids");
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
    const double rates[] = {0, 0.01, 0.6, 1};

    test_questions();
    test_bounds();
    test_answers();
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        test_share(1, rates[i]);
        test_share(UINT64_MAX, rates[i]);
    }
    test_known_verdicts();
    printf("%d passed, %d failed\n", passed, failed);
    return failed == 0 ? 0 : 1;
}
