/* detmath.c - see detmath.h. Textbook range reduction and Taylor / atanh series. */
#include "base/detmath.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

/* ln 2 and pi/2 as a leading part with trailing zero bits (so that n * part is exact) and the rest. */
static const double ln2_hi = 0x1.62e42fee00000p-1, ln2_lo = 0x1.a39ef35793c76p-33;
static const double pio2_1 = 0x1.921fb54400000p+0, pio2_2 = 0x1.0b4611a600000p-34,
                    pio2_3 = 0x1.3198a2e037073p-69;

double det_exp(double x)
{
    if (x > 700)
        return INFINITY;
    if (x < -700)
        return 0;
    double n = rint(x * 0x1.71547652b82fep+0);
    double r = (x - n * ln2_hi) - n * ln2_lo; /* |r| <= 0.35 */
    double sum = 1;
    for (int i = 16; i >= 1; i--)
        sum = 1 + sum * r / i;
    int64_t exponent = (int64_t)n + 1023; /* 1 + 1023 - 1010 > 0 by the range check */
    uint64_t bits = (uint64_t)exponent << 52;
    double scale;
    memcpy(&scale, &bits, 8);
    return sum * scale;
}

double det_log(double x)
{
    int exponent;
    double m = frexp(x, &exponent); /* exact: x = m * 2^exponent, m in [0.5, 1) */
    if (m < 0x1.6a09e667f3bcdp-1) {
        m *= 2;
        exponent--;
    }
    double s = (m - 1) / (m + 1), s2 = s * s, sum = 0; /* log m = 2 atanh s, |s| < 0.172 */
    for (int i = 23; i >= 1; i -= 2)
        sum = sum * s2 + 1.0 / i;
    return exponent * ln2_hi + (2 * s * sum + exponent * ln2_lo);
}

double det_pow(double x, double y)
{
    return det_exp(y * det_log(x));
}

void det_sincos(double x, double *sine, double *cosine)
{
    double n = rint(x * 0x1.45f306dc9c883p-1);
    double r = ((x - n * pio2_1) - n * pio2_2) - n * pio2_3; /* |r| <= pi/4 */
    double r2 = r * r, s = 1, c = 1;
    for (int i = 20; i >= 2; i -= 2) {
        s = 1 - s * r2 / (i * (i + 1));
        c = 1 - c * r2 / (i * (i - 1));
    }
    s *= r;
    switch ((int64_t)n & 3) {
    case 0:
        *sine = s, *cosine = c;
        break;
    case 1:
        *sine = c, *cosine = -s;
        break;
    case 2:
        *sine = -s, *cosine = -c;
        break;
    default:
        *sine = -c, *cosine = s;
        break;
    }
}
