/* utf8.c - UTF-8 and the byte-level alphabet; see tokenizer_impl.h. Pure functions, any thread. */
#include "text/tokenizer_impl.h"

static bool is_continuation(unsigned char c)
{
    return (c & 0xc0) == 0x80;
}

size_t utf8_valid_bytes(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    size_t i = 0;
    while (i < size) {
        unsigned char c = s[i];
        size_t left = size - i;
        if (c < 0x80) {
            i++;
        } else if (c >= 0xc2 && c <= 0xdf && left >= 2 && is_continuation(s[i + 1])) {
            i += 2;
        } else if ((c & 0xf0) == 0xe0 && left >= 3 && is_continuation(s[i + 1]) &&
                   is_continuation(s[i + 2])) {
            if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f)) /* overlong, surrogate */
                return i;
            i += 3;
        } else if (c >= 0xf0 && c <= 0xf4 && left >= 4 && is_continuation(s[i + 1]) &&
                   is_continuation(s[i + 2]) && is_continuation(s[i + 3])) {
            if ((c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f)) /* overlong, too large */
                return i;
            i += 4;
        } else {
            return i;
        }
    }
    return size;
}

uint32_t utf8_read(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    switch (utf8_length(text[0])) {
    case 1:
        return s[0];
    case 2:
        return (uint32_t)(s[0] & 31) << 6 | (s[1] & 63);
    case 3:
        return (uint32_t)(s[0] & 15) << 12 | (uint32_t)(s[1] & 63) << 6 | (s[2] & 63);
    default:
        return (uint32_t)(s[0] & 7) << 18 | (uint32_t)(s[1] & 63) << 12 | (uint32_t)(s[2] & 63) << 6 |
               (s[3] & 63);
    }
}

void utf8_append(struct buf *out, uint32_t c)
{
    char s[4];
    size_t n;
    if (c < 0x80) {
        s[0] = (char)c;
        n = 1;
    } else if (c < 0x800) {
        s[0] = (char)(0xc0 | c >> 6);
        s[1] = (char)(0x80 | (c & 63));
        n = 2;
    } else if (c < 0x10000) {
        s[0] = (char)(0xe0 | c >> 12);
        s[1] = (char)(0x80 | (c >> 6 & 63));
        s[2] = (char)(0x80 | (c & 63));
        n = 3;
    } else {
        s[0] = (char)(0xf0 | c >> 18);
        s[1] = (char)(0x80 | (c >> 12 & 63));
        s[2] = (char)(0x80 | (c >> 6 & 63));
        s[3] = (char)(0x80 | (c & 63));
        n = 4;
    }
    buf_append(out, s, n);
}

/* Printable bytes stand for themselves; the other 68 follow in order from U+0100: 0 to 32, 127 to 160, 173.
 */
uint32_t byte_level_character(uint8_t b)
{
    if (b <= 32)
        return 256u + b;
    if (b >= 127 && b <= 160)
        return 256u + 33u + (b - 127u);
    if (b == 173)
        return 256u + 67u;
    return b;
}

int byte_level_byte(uint32_t c)
{
    if (c < 256)
        return c <= 32 || (c >= 127 && c <= 160) || c == 173 ? -1 : (int)c;
    if (c <= 256 + 32)
        return (int)(c - 256);
    if (c <= 256 + 66)
        return (int)(c - 256 - 33 + 127);
    return c == 256 + 67 ? 173 : -1;
}
