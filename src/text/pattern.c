/* pattern.c - the regular expressions of tokenizers, on PCRE2; see tokenizer_impl.h. A compiled pattern is
 * read-only, any thread; a matcher belongs to one encoding.
 *
 * Tokenizer files are written for Oniguruma. The two dialects agree on what tokenizers need except for the
 * points translated here; whatever else could mean something different is refused when the file is opened.
 * Both pattern and text may be hostile: every match has step and memory limits, and all matches of one
 * encoding together a limit of processor time far above what any real pattern needs. */
#define PCRE2_CODE_UNIT_WIDTH 8

#include "text/tokenizer_impl.h"

#include <assert.h>
#include <ctype.h>
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct pattern {
    pcre2_code *code;
};

struct matcher {
    pcre2_match_data *data;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    int64_t cpu_limit_ns, next_check_ns; /* thread CPU time; monotonic time */
};

/* Members of a class. White_Space: PCRE2's own \s also has U+180E. Word: PCRE2's own lacks marks. */
static const char SPACE[] = "\\t-\\r\\x{85}\\p{Z}", WORD[] = "\\p{L}\\p{M}\\p{Nd}\\p{Pc}",
                  HEX[] = "0-9A-Fa-f";

struct translation {
    const char *s, *end;
    struct buf out;
    struct err *err;
};

static int refuse(struct translation *t, size_t n, const char *why)
{
    size_t left = (size_t)(t->end - t->s);
    return err_set(t->err, ERR_INPUT, "regular expression: \"%.*s\" %s", (int)(n < left ? n : left), t->s,
                   why);
}

static void put_class(struct translation *t, const char *members, bool negated, bool in_class)
{
    buf_puts(&t->out, in_class ? "" : negated ? "[^" : "[");
    buf_puts(&t->out, members);
    buf_puts(&t->out, in_class ? "" : "]");
}

/* \p{name}: general categories are spelt alike; a longer name is a script, which PCRE2 would take to mean
 * script extensions. */
static int put_property(struct translation *t)
{
    const char *close =
        t->end - t->s > 2 && t->s[2] == '{' ? memchr(t->s, '}', (size_t)(t->end - t->s)) : NULL;
    if (!close)
        return refuse(t, 3, "is not a property in braces");
    const char *name = t->s + 3;
    size_t n = (size_t)(close - name);
    bool negated = n && name[0] == '^';
    buf_append(&t->out, t->s, 3);
    buf_puts(&t->out, negated ? "^" : "");
    name += negated;
    n -= negated;
    buf_puts(&t->out, n > 2 && !(n == 3 && strncasecmp(name, "any", 3) == 0) ? "sc:" : "");
    buf_append(&t->out, name, n);
    buf_puts(&t->out, "}");
    t->s = close + 1;
    return 0;
}

static int put_escape(struct translation *t, bool in_class)
{
    if (t->end - t->s < 2)
        return refuse(t, 1, "ends with a backslash");
    char c = t->s[1];
    if (c == 'p' || c == 'P')
        return put_property(t);
    const char *members = strchr("sS", c) ? SPACE : strchr("wW", c) ? WORD : strchr("hH", c) ? HEX : NULL;
    if (members && in_class && isupper((unsigned char)c)) {
        if (c != 'S')
            return refuse(t, 2, "is not supported inside [ ]");
        members = "\\S";
    }
    if (members) {
        put_class(t, members, isupper((unsigned char)c), in_class);
    } else if (c == 'v') {
        buf_puts(&t->out, "\\x0b");
    } else if (c == 'u' && t->end - t->s >= 6) {
        buf_puts(&t->out, "\\x{");
        buf_append(&t->out, t->s + 2, 4);
        buf_puts(&t->out, "}");
        t->s += 4;
    } else if (!isalpha((unsigned char)c) || strchr("dDnrtfaexbBAzZ", c)) {
        buf_append(&t->out, t->s, 2);
    } else {
        return refuse(t, 2, "is not supported");
    }
    t->s += 2;
    return 0;
}

/* What opens with "(": plain and non-capturing groups, look-around, atomic groups and flags. */
static int put_group(struct translation *t)
{
    size_t left = (size_t)(t->end - t->s);
    if (left > 1 && t->s[1] == '*')
        return refuse(t, 8, "is not supported");
    if (left < 3 || t->s[1] != '?') {
        buf_puts(&t->out, "(");
        t->s++;
        return 0;
    }
    static const char *const kinds[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t n = strlen(kinds[i]);
        if (left >= n && memcmp(t->s, kinds[i], n) == 0) {
            buf_append(&t->out, t->s, n);
            t->s += n;
            return 0;
        }
    }
    size_t n = 2;
    while (n < left && strchr("imx-", t->s[n]) && t->s[n])
        n++;
    if (n == 2 || n >= left || (t->s[n] != ':' && t->s[n] != ')'))
        return refuse(t, 8, "is a kind of group that is not supported");
    for (size_t i = 0; i <= n; i++) /* there, "m" lets the dot match a newline */
        buf_append(&t->out, t->s[i] == 'm' ? "s" : &t->s[i], 1);
    t->s += n + 1;
    return 0;
}

static int put_class_member(struct translation *t, bool *in_class, bool first)
{
    if (*t->s == '\\')
        return put_escape(t, true);
    if (*t->s == '[') {
        const char *close =
            t->end - t->s > 1 && t->s[1] == ':' ? memchr(t->s, ']', (size_t)(t->end - t->s)) : NULL;
        if (!close || close[-1] != ':')
            return refuse(t, 8, "is a class inside a class, which is not supported");
        buf_append(&t->out, t->s, (size_t)(close + 1 - t->s));
        t->s = close + 1;
        return 0;
    }
    if (t->end - t->s > 1 && t->s[0] == '&' && t->s[1] == '&')
        return refuse(t, 8, "is an intersection of classes, which is not supported");
    if (*t->s == ']' && !first)
        *in_class = false;
    buf_append(&t->out, t->s++, 1);
    return 0;
}

/* A quantifier in braces: "{,3}" starts at 0, and "{1,3}+" there repeats again, it is not possessive. */
static int put_brace(struct translation *t)
{
    const char *p = t->s + 1;
    bool no_minimum = p < t->end && *p == ',';
    while (p < t->end && (isdigit((unsigned char)*p) || *p == ','))
        p++;
    bool quantifier = p < t->end && *p == '}' && p > t->s + 1;
    if (quantifier && p + 1 < t->end && p[1] == '+')
        return refuse(t, (size_t)(p + 2 - t->s), "is not supported");
    buf_puts(&t->out, quantifier && no_minimum ? "{0" : "{");
    t->s++;
    return 0;
}

static int translate(struct translation *t)
{
    bool in_class = false;
    while (t->s < t->end) {
        int rc = 0;
        if (in_class) {
            rc = put_class_member(t, &in_class, false);
        } else if (*t->s == '[') {
            in_class = true;
            buf_append(&t->out, t->s++, 1);
            if (t->s < t->end && *t->s == '^')
                buf_append(&t->out, t->s++, 1);
            if (t->s < t->end)
                rc = put_class_member(t, &in_class, true);
        } else if (*t->s == '\\') {
            rc = put_escape(t, false);
        } else if (*t->s == '(') {
            rc = put_group(t);
        } else if (*t->s == '{') {
            rc = put_brace(t);
        } else {
            buf_append(&t->out, t->s++, 1);
        }
        if (rc)
            return rc;
    }
    return t->out.failed ? err_set(t->err, ERR_SYSTEM, "out of memory for a regular expression") : 0;
}

int pattern_compile(struct pattern **out, const char *source, size_t size, struct err *err)
{
    *out = NULL;
    if (size > 1 << 16)
        return err_set(err, ERR_INPUT, "regular expression of %zu bytes is too long", size);
    struct translation t = {.s = source, .end = source + size, .err = err};
    struct pattern *p = calloc(1, sizeof *p);
    int rc = p ? translate(&t) : err_set(err, ERR_SYSTEM, "out of memory for a regular expression");
    if (!rc) {
        int code;
        size_t where;
        p->code = pcre2_compile((PCRE2_SPTR)(t.out.data ? t.out.data : ""), t.out.size,
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code,
                                &where, NULL);
        if (!p->code) {
            PCRE2_UCHAR why[128] = "";
            pcre2_get_error_message(code, why, sizeof why);
            rc = err_set(err, ERR_INPUT, "regular expression \"%.*s\": %s", size < 200 ? (int)size : 200,
                         source, (char *)why);
        } else if (pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE)) {
            /* No just-in-time compiler here, or memory may not be made executable: PCRE2 interprets. */
        }
    }
    buf_free(&t.out);
    if (rc) {
        pattern_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

void pattern_free(struct pattern *p)
{
    if (!p)
        return;
    pcre2_code_free(p->code);
    free(p);
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

int matcher_open(struct matcher **out, size_t text_bytes, struct err *err)
{
    struct matcher *m = *out = calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_SYSTEM, "out of memory while tokenizing");
    m->data = pcre2_match_data_create(1, NULL);
    m->context = pcre2_match_context_create(NULL);
    m->stack = pcre2_jit_stack_create(32 << 10, 1 << 20, NULL);
    if (!m->data || !m->context)
        return err_set(err, ERR_SYSTEM, "out of memory while tokenizing");
    if (m->stack)
        pcre2_jit_stack_assign(m->context, NULL, m->stack);
    size_t extra =
        text_bytes < 1 << 30 ? text_bytes : 1 << 30; /* backing out of one match of the whole text */
    pcre2_set_match_limit(m->context, (uint32_t)(2000000 + 2 * extra));
    pcre2_set_heap_limit(m->context, 256 << 10); /* KiB */
    m->cpu_limit_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) + INT64_C(2000000000) + (int64_t)text_bytes * 5000;
    m->next_check_ns = clock_ns(CLOCK_MONOTONIC) + 50000000;
    return 0;
}

void matcher_close(struct matcher *m)
{
    if (!m)
        return;
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->context);
    pcre2_jit_stack_free(m->stack);
    free(m);
}

/* The CPU clock is a system call, the monotonic one is not: it says when to look. */
static bool out_of_time(struct matcher *m)
{
    int64_t now = clock_ns(CLOCK_MONOTONIC);
    if (now < m->next_check_ns)
        return false;
    m->next_check_ns = now + 50000000;
    return clock_ns(CLOCK_THREAD_CPUTIME_ID) > m->cpu_limit_ns;
}

static int match_from(const struct pattern *p, struct matcher *m, const char *text, size_t size, size_t from,
                      size_t *begin, size_t *end, struct err *err)
{
    uint32_t options = PCRE2_NO_UTF_CHECK; /* the text was checked once; a check in every call is quadratic */
    int rc = pcre2_match(p->code, (PCRE2_SPTR)text, size, from, options, m->data, m->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(p->code, (PCRE2_SPTR)text, size, from, options | PCRE2_NO_JIT, m->data, m->context);
    if (rc == PCRE2_ERROR_NOMATCH)
        return 0;
    if (rc < 0) {
        PCRE2_UCHAR why[128] = "";
        pcre2_get_error_message(rc, why, sizeof why);
        return err_set(err, ERR_INPUT,
                       "the tokenizer's regular expression fails on this text at byte %zu: %s", from,
                       (char *)why);
    }
    if (out_of_time(m))
        return err_set(err, ERR_INPUT, "the tokenizer's regular expression takes too long on this text");
    const size_t *bounds = pcre2_get_ovector_pointer(m->data);
    assert(bounds[0] >= from && bounds[0] <= bounds[1] && bounds[1] <= size); /* \K is refused */
    *begin = bounds[0];
    *end = bounds[1];
    return 1;
}

int pattern_next(const struct pattern *p, struct matcher *m, const char *text, size_t size, struct search *at,
                 size_t *begin, size_t *end, struct err *err)
{
    while (at->from <= size) {
        int found = match_from(p, m, text, size, at->from, begin, end, err);
        if (found <= 0)
            return found;
        if (*end > *begin || !at->any || *end != at->last_end) {
            *at = (struct search){*end, *end, true};
            return 1;
        }
        at->from = *end < size ? *end + utf8_length(text[*end]) : size + 1;
    }
    return 0;
}
