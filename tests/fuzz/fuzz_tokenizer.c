/* fuzz_tokenizer.c - any bytes as a tokenizer.json (up to the first NUL) and a text (what follows): opened
 * and used, or refused. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *end = size ? memchr(data, 0, size) : NULL;
    size_t n = end ? (size_t)(end - data) : size;
    struct tokenizer *t;
    struct err err;
    if (tokenizer_open_json(&t, (const char *)data, n, NULL, 0, "t.json", &err)) {
        if (t || !err.message[0])
            abort();
        return 0;
    }
    struct ids ids = {0};
    struct buf out = {0};
    const char *text = end ? (const char *)end + 1 : "a b";
    size_t text_size = end ? size - n - 1 : 3;
    for (int flags = 0; flags < 4; flags++) {
        if (tokenizer_encode(t, text, text_size, flags, &ids, &err))
            break;
        for (size_t i = 0; i < ids.n; i++)
            if (ids.data[i] < 0 || ids.data[i] >= tokenizer_n_tokens(t))
                abort();
        tokenizer_decode(t, ids.data, ids.n, flags & 1, &out);
    }
    ids_free(&ids);
    buf_free(&out);
    tokenizer_close(t);
    return 0;
}
