/* The equipment's rules, as pure functions. rules.h documents each one. */
#include "rules.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static bool read_uuid(const char *text, char id[RULES_ID_SIZE])
{
    if (strlen(text) != RULES_ID_SIZE - 1)
        return false;
    for (size_t i = 0; i < RULES_ID_SIZE; i++) {
        unsigned char c = (unsigned char)text[i];
        bool dash = i == 8 || i == 13 || i == 18 || i == 23;
        if (c != '\0' && (dash ? c != '-' : !isxdigit(c)))
            return false;
        id[i] = (char)tolower(c);
    }
    return true;
}

static const char *read_object(const json_t *object, struct question *question)
{
    const json_t *id = json_object_get(object, "transaction_id");
    const json_t *station = json_object_get(object, "station_id");

    if (!json_is_object(object))
        return "the question is not a JSON object";
    if (id == NULL)
        return "transaction_id is missing";
    if (!json_is_string(id))
        return "transaction_id is not a string";
    if (!read_uuid(json_string_value(id), question->id))
        return "transaction_id is not a UUID";
    if (station == NULL)
        return "station_id is missing";
    /* json_integer_value() is 0 for anything that isn't an integer, 1.0 included. */
    json_int_t number = json_integer_value(station);
    if (number < 1 || number > INT32_MAX)
        return "station_id is not a whole number from 1 to 2147483647";
    question->station = (int32_t)number;
    return NULL;
}

/* Jansson's own text quotes the question, so it could put control characters into our log. */
static const char *what_is_wrong(const json_error_t *error)
{
    switch (json_error_code(error)) {
    case json_error_invalid_utf8: return "the question is not UTF-8";
    case json_error_duplicate_key: return "the question has the same key twice";
    case json_error_numeric_overflow: return "the question has a number that is too large";
    default: return "the question is not JSON";
    }
}

const char *rules_read(const void *payload, size_t length, struct question *question)
{
    /* Two equal keys are refused, because other JSON parsers take the last one where we would take the first.
     * "Any" value is decoded, so that `17` gets another sentence than text without JSON. */
    json_error_t error;

    if (length > RULES_QUESTION_MAX)
        return "the question is too long";
    json_t *json = json_loadb(payload, length, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    if (json == NULL)
        return what_is_wrong(&error);
    const char *wrong = read_object(json, question);
    json_decref(json);
    return wrong;
}

/* splitmix64's finalizer: each bit of the result depends on every bit of x. */
static uint64_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

static uint64_t draw(const char *id, uint64_t seed)
{
    /* FNV-1a over the id, starting from the seed. FNV alone hardly changes its high bits, so mix() follows. */
    uint64_t hash = UINT64_C(0xCBF29CE484222325) ^ mix(seed + UINT64_C(0x9E3779B97F4A7C15));
    for (; *id != '\0'; id++)
        hash = (hash ^ (unsigned char)*id) * UINT64_C(0x100000001B3);
    return mix(hash);
}

bool rules_confirm(const char *id, uint64_t seed, double rate)
{
    /* A double holds 53 bits. The upper 53 bits of the hash make a number in [0, 1): 0 confirms none, 1 all. */
    return (double)(draw(id, seed) >> 11) * 0x1p-53 < rate;
}

const char *rules_reason(const char *id, uint64_t seed, bool confirmed)
{
    static const char *const refusals[] = {"the battery is unknown", "the battery is too warm",
                                           "the slot is blocked", "the connector does not lock"};
    return confirmed ? "the battery is locked in" : refusals[draw(id, seed) % 4];
}

const char *rules_status(bool confirmed)
{
    return confirmed ? "COMPLETED" : "ERROR";
}

int rules_write(const char id[RULES_ID_SIZE], bool confirmed, const char *reason, const char *equipment,
                char answer[RULES_ANSWER_SIZE])
{
    return snprintf(answer, RULES_ANSWER_SIZE,
                    "{\"transaction_id\":\"%s\",\"status\":\"%s\",\"reason\":\"%s\",\"equipment\":\"%s\"}",
                    id, rules_status(confirmed), reason, equipment);
}
