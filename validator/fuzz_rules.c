/* Feeds generated questions to the rules, under ASan and UBSan: make fuzz. */
#include "rules.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct question question, again;
    char answer[RULES_ANSWER_SIZE];
    uint8_t *payload =
        malloc(size > 0 ? size : 1); /* exactly this size, so that ASan sees a read past the end */

    if (payload == NULL)
        return 0;
    if (size > 0)
        memcpy(payload, data, size);
    if (rules_read(payload, size, &question) == NULL) {
        bool confirmed = rules_confirm(question.id, 1, 0.5);
        if (question.station < 1 || strlen(question.id) != RULES_ID_SIZE - 1)
            abort();
        if (rules_read(payload, size, &again) != NULL || rules_confirm(again.id, 1, 0.5) != confirmed)
            abort();
        const char *reason = rules_reason(question.id, 1, confirmed);
        if (rules_write(question.id, confirmed, reason, "one", answer) != (int)strlen(answer))
            abort();
    }
    free(payload);
    return 0;
}
