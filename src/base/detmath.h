/* detmath.h - elementary functions in double with the same bits on every machine.
 *
 * libm's exp, log, sin and cos differ between machines and versions, and tables made from them (RoPE) enter
 * every logit. These are plain sequences of IEEE operations (no fma, no contraction), accurate to about
 * 1e-15 relative, far below the fp32 they are rounded to. Any thread. */
#ifndef BASE_DETMATH_H
#define BASE_DETMATH_H

double det_exp(double x);           /* |x| <= 700, else saturates to 0 or infinity */
double det_log(double x);           /* x > 0 and finite */
double det_pow(double x, double y); /* x > 0: det_exp(y * det_log(x)) */
/* |x| <= 2^30 radians. */
void det_sincos(double x, double *sine, double *cosine);

#endif
