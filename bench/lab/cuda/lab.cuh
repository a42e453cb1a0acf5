// lab.cuh - what the GPU labs share: the formats as compile-time traits, PTX wrappers, and the block product:
// the two exact integers (t, u) of ARCHITECTURE.md "One answer" for 16 outputs x up to 8 rows by one warp.
//
// A warp multiplies a panel of 16 outputs with mma.sync m16n8k32 (u8 codes x s8 activations, s32 sums): the
// 16 outputs are the 16 rows of A, up to 8 activation rows are the columns of B (fewer are repeated: column n
// is row n mod R), and inside a group the order of inputs is free, because the sum is an exact integer. Lane
// (g = lane / 4, t = lane % 4) holds outputs 2g, 2g + 1 and, of each 64 inputs, 16: four sets of four.
//
// Two layouts of a (panel, block of 256), equal in size:
//   as-is  pack.h's.
//   frag   the same bytes in the order lanes want them: header per output pair g: {d1, d1, (d2, d2)} then
//          {sc of output 2g over groups, sc of 2g + 1, (mn, mn)}; codes in pieces of 512 bytes, 16 per lane.
//          Sets of a 64-chunk c are inputs 64c + 16i + 4t .. + 3, i = 0..3:
//            4 bits  piece c: words {sets 0|1 of a, of b, sets 2|3 of a, of b} (low nibbles | high nibbles)
//            6 bits  low nibbles as 4 bits; then 2 pieces: lane's {c even: a, b, c odd: a, b}, bit pair i =
//            set i 8 bits  pieces 2c, 2c + 1: {set 2h of a, of b, set 2h + 1 of a, of b}
// Activations, 16 bytes per (64-chunk, row, t): the four sets. as-is 4 and 8 bits want other sets: 64c + 32j
// + 8t + 4h, set 2j + h ("ord8").
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

extern "C" {
#include "ops/kernels.h"
#include "ops/pack.h"
}

#define CHECK(call)                                                                                          \
    do {                                                                                                     \
        cudaError_t e_ = (call);                                                                             \
        if (e_ != cudaSuccess) {                                                                             \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));                    \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

template <int BITS_, int GROUP_, int WIDTH_, bool MIN_, int ZERO_> struct Fmt {
    static constexpr int BITS = BITS_, GROUP = GROUP_, WIDTH = WIDTH_, ZERO = ZERO_, G = 256 / GROUP_;
    static constexpr bool MIN = MIN_;
    static constexpr int PLANES = MIN ? 2 : 1;
    static constexpr int SC = 64 * PLANES;         // as-is: offset of sc
    static constexpr int MN = SC + G * 16 * WIDTH; // as-is: offset of mn
    static constexpr int HEADER = (PLANES * (64 + G * 16 * WIDTH) + 63) / 64 * 64;
    static constexpr int BLOCK = HEADER + 512 * BITS;
    static constexpr int LANE_INTS = 2 * PLANES * G * WIDTH; // frag: bytes of sc and mn of an output pair
    static constexpr int FACTOR = MIN ? 1 : -ZERO;           // what the sums of activations are stored times
    static_assert(SC + 8 * LANE_INTS == HEADER && LANE_INTS % 16 == 0, "frag header fills as-is header");
};
using Mlx4 = Fmt<4, 64, 1, true, 0>;
using Q4K = Fmt<4, 32, 1, true, 0>;
using Q6K = Fmt<6, 16, 1, false, 32>;
using Q80 = Fmt<8, 32, 2, false, 128>;

// One matrix (of one rank) and what it is multiplied with, for kernels.
struct Mat {
    const uint8_t *w;   // panels x slabs x blocks of a slab
    const uint8_t *x;   // activations, lane order (see above); natural order for dp4a
    const int *sum;     // (blocks, groups, R) sums of activations x FACTOR
    const float *scale; // (blocks, R)
    float *out;         // (slabs, R, rows)
    int n_panels, n_slabs, slab_blocks;
    int split;        // ring: warps that share a unit = (panel, slab)
    int x_blocks;     // stream: blocks of x; a unit longer than that starts again (gate and up panels)
    unsigned *ticket; // epilogues of layer_lab only
    float *h;
    uint8_t *next_x;
    int *next_sum;
    float *next_scale;
};

// ---- PTX ----
__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

__device__ __forceinline__ void mma32(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                      uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma16(int (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0)
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a0), "r"(a1), "r"(b0));
}

// A word in shared memory that one warp sets and others wait for.
__device__ __forceinline__ void mark_set(uint32_t mark, uint32_t value)
{
    asm volatile("st.release.cta.shared::cta.u32 [%0], %1;" ::"r"(mark), "r"(value) : "memory");
}
__device__ __forceinline__ void mark_wait(uint32_t mark, uint32_t value)
{
    uint32_t seen;
    do {
        asm volatile("ld.acquire.cta.shared::cta.u32 %0, [%1];" : "=r"(seen) : "r"(mark) : "memory");
    } while (seen != value);
    __syncwarp();
}
__device__ __forceinline__ void bar_init(uint32_t bar)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar));
}
__device__ __forceinline__ void bar_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void bar_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bar_wait(uint32_t bar, uint32_t phase)
{
    uint32_t done;
    do {
        asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, p;\n\t}"
                     : "=r"(done)
                     : "r"(bar), "r"(phase)
                     : "memory");
    } while (!done);
}
__device__ __forceinline__ uint64_t evict_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ void bulk_load(uint32_t to, const void *from, uint32_t bytes, uint32_t bar,
                                          uint64_t policy)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, "
        "[%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(bar), "l"(policy)
        : "memory");
}
__device__ __forceinline__ void pdl_wait()
{
    asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void pdl_release()
{
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

__device__ __forceinline__ uint4 stream16(const void *p)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 stream8(const void *p)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}

// Weights: from the ring in shared memory, or straight from global memory.
template <bool GLOBAL> __device__ __forceinline__ uint4 load16(const uint8_t *p)
{
    return GLOBAL ? stream16(p) : *(const uint4 *)p;
}
template <bool GLOBAL> __device__ __forceinline__ uint2 load8(const uint8_t *p)
{
    return GLOBAL ? stream8(p) : *(const uint2 *)p;
}

// ---- the block product ----
template <int R>
constexpr int N_SUMS = R == 1 ? 2 : 4; // per lane: {a} {b} or {a col 2t, a 2t+1, b 2t, b 2t+1}

// Codes of 64-chunk c as bytes: a[set][output of the pair].
template <class F, bool FRAG, bool GLOBAL>
__device__ __forceinline__ void chunk_codes(const uint8_t *codes, int c, int lane, uint32_t (&a)[4][2])
{
    constexpr uint32_t LOW = 0x0f0f0f0f, HIGH = 0x30303030;
    int g = lane >> 2, t = lane & 3;
    if (FRAG && F::BITS == 8) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint4 v = load16<GLOBAL>(codes + (2 * c + h) * 512 + lane * 16);
            a[2 * h][0] = v.x, a[2 * h][1] = v.y, a[2 * h + 1][0] = v.z, a[2 * h + 1][1] = v.w;
        }
    } else if (FRAG) {
        uint4 v = load16<GLOBAL>(codes + c * 512 + lane * 16);
        a[0][0] = v.x & LOW, a[0][1] = v.y & LOW, a[1][0] = v.x >> 4 & LOW, a[1][1] = v.y >> 4 & LOW;
        a[2][0] = v.z & LOW, a[2][1] = v.w & LOW, a[3][0] = v.z >> 4 & LOW, a[3][1] = v.w >> 4 & LOW;
        if (F::BITS == 6) {
            uint2 hi = load8<GLOBAL>(codes + 2048 + (c >> 1) * 512 + lane * 16 + (c & 1) * 8);
            a[0][0] |= hi.x << 4 & HIGH, a[1][0] |= hi.x << 2 & HIGH;
            a[2][0] |= hi.x & HIGH, a[3][0] |= hi.x >> 2 & HIGH;
            a[0][1] |= hi.y << 4 & HIGH, a[1][1] |= hi.y << 2 & HIGH;
            a[2][1] |= hi.y & HIGH, a[3][1] |= hi.y >> 2 & HIGH;
        }
    } else if (F::BITS == 8) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint2 v = load8<GLOBAL>(codes + (16 * c + 8 * (i >> 1) + 2 * t + (i & 1)) * 64 + 8 * g);
            a[i][0] = v.x, a[i][1] = v.y;
        }
    } else if (F::BITS == 4) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint2 v = load8<GLOBAL>(codes + (4 * (2 * c + j) + t) * 64 + 8 * g);
            a[2 * j][0] = v.x & LOW, a[2 * j][1] = v.y & LOW;
            a[2 * j + 1][0] = v.x >> 4 & LOW, a[2 * j + 1][1] = v.y >> 4 & LOW;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; i++) { // set i = 16 inputs; lane t takes step t of them
            const uint8_t *quad = codes + (4 * c + i) * 192 + 8 * g;
            uint2 lo = load8<GLOBAL>(quad + (t >> 1) * 64), hi = load8<GLOBAL>(quad + 128);
            a[i][0] = (lo.x >> (4 * (t & 1)) & LOW) | (hi.x >> (2 * t) & 0x03030303) << 4;
            a[i][1] = (lo.y >> (4 * (t & 1)) & LOW) | (hi.y >> (2 * t) & 0x03030303) << 4;
        }
    }
}

// The integers of the lane's two outputs. frag: read at once; as-is: read per group.
template <class F, bool FRAG, bool GLOBAL> struct GroupInts {
    uint32_t words[FRAG ? F::LANE_INTS / 4 : 1];
    const uint8_t *block;
    int g;
    __device__ __forceinline__ GroupInts(const uint8_t *blk, int lane) : block(blk), g(lane >> 2)
    {
        if (FRAG) {
#pragma unroll
            for (int i = 0; i < F::LANE_INTS / 16; i++) {
                uint4 v = load16<GLOBAL>(blk + F::SC + g * F::LANE_INTS + 16 * i);
                words[4 * i] = v.x, words[4 * i + 1] = v.y, words[4 * i + 2] = v.z, words[4 * i + 3] = v.w;
            }
        }
    }
    __device__ __forceinline__ int at(int i) const
    {
        return F::WIDTH == 1 ? (int)(int8_t)(words[i >> 2] >> 8 * (i & 3))
                             : (int)(int16_t)(words[i >> 1] >> 16 * (i & 1));
    }
    __device__ __forceinline__ void pair(int plane, int group, int &a, int &b) const
    {
        if (FRAG) {
            a = at(2 * F::G * plane + group), b = at(2 * F::G * plane + F::G + group);
        } else if (F::WIDTH == 1) {
            uint16_t v = *(const uint16_t *)(block + (plane ? F::MN : F::SC) + group * 16 + 2 * g);
            a = (int8_t)v, b = (int8_t)(v >> 8);
        } else {
            uint32_t v = *(const uint32_t *)(block + (plane ? F::MN : F::SC) + group * 32 + 4 * g);
            a = (int16_t)v, b = (int16_t)(v >> 16);
        }
    }
};

template <class F, bool FRAG, bool GLOBAL>
__device__ __forceinline__ void block_factors(const uint8_t *blk, int lane, float2 &d1, float2 &d2)
{
    int g = lane >> 2;
    d2 = make_float2(0, 0);
    if (FRAG && F::MIN) {
        uint4 v = load16<GLOBAL>(blk + 16 * g);
        d1 = make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
        d2 = make_float2(__uint_as_float(v.z), __uint_as_float(v.w));
        return;
    }
    uint2 v = load8<GLOBAL>(blk + 8 * g);
    d1 = make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
    if (F::MIN) {
        v = load8<GLOBAL>(blk + 64 + 8 * g);
        d2 = make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
    }
}

// The lane's activations of a block.
template <int R> __device__ __forceinline__ void load_x(const uint8_t *x, int lane, uint4 (&v)[4])
{
#pragma unroll
    for (int c = 0; c < 4; c++)
        v[c] = *(const uint4 *)(x + ((c * R + (lane >> 2 & (R - 1))) * 4 + (lane & 3)) * 16);
}

// sum: already at the block. t, u as N_SUMS says.
template <class F, bool FRAG, int R, bool GLOBAL>
__device__ __forceinline__ void block_ints(const uint8_t *blk, const uint4 (&x)[4], const int *sum, int lane,
                                           int (&t)[N_SUMS<R>], int (&u)[N_SUMS<R>])
{
    constexpr int N = N_SUMS<R>;
    int tl = lane & 3;
    GroupInts<F, FRAG, GLOBAL> ints(blk, lane);
#pragma unroll
    for (int i = 0; i < N; i++)
        t[i] = u[i] = 0;

    auto finish = [&](int group, const int(&c)[4], int s0, int s1) {
        int a, b;
        ints.pair(0, group, a, b);
        t[0] += a * c[0];
        t[N / 2] += b * c[2];
        if (R > 1) {
            t[1] += a * c[1];
            t[N - 1] += b * c[3];
        }
        if (F::MIN) {
            ints.pair(1, group, a, b);
            u[0] += a * s0;
            u[N / 2] += b * s0;
            if (R > 1) {
                u[1] += a * s1;
                u[N - 1] += b * s1;
            }
        }
    };
    auto sums = [&](int group, int &s0, int &s1) {
        if (R == 1) {
            s0 = s1 = sum[group];
        } else {
            int2 v = *(const int2 *)(sum + group * R + (2 * tl & (R - 1)));
            s0 = v.x, s1 = v.y;
        }
    };

#pragma unroll
    for (int c = 0; c < 4; c++) {
        uint32_t xs[4] = {x[c].x, x[c].y, x[c].z, x[c].w}, a[4][2];
        chunk_codes<F, FRAG, GLOBAL>(blk + F::HEADER, c, lane, a);
        int s0, s1;
        if (F::GROUP == 16) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sums(4 * c + i, s0, s1);
                int d[4] = {0, 0, 0, 0};
                if (F::ZERO)
                    d[0] = d[2] = s0, d[1] = d[3] = s1;
                mma16(d, a[i][0], a[i][1], xs[i]);
                finish(4 * c + i, d, s0, s1);
            }
        } else {
            constexpr int PER = F::GROUP == 32 ? 1 : 2; // products of a group in this chunk
#pragma unroll
            for (int j = 0; j < 2; j += PER) {
                int group = (64 * c + 32 * j) / F::GROUP;
                sums(group, s0, s1);
                int d[4] = {0, 0, 0, 0};
                if (F::ZERO)
                    d[0] = d[2] = s0, d[1] = d[3] = s1;
#pragma unroll
                for (int i = j; i < j + PER; i++)
                    mma32(d, a[2 * i][0], a[2 * i][1], a[2 * i + 1][0], a[2 * i + 1][1], xs[2 * i],
                          xs[2 * i + 1]);
                finish(group, d, s0, s1);
            }
        }
    }
}

// One step of the contract's fold.
template <class F> __device__ __forceinline__ float fold(float acc, float d1, float d2, float s, int t, int u)
{
    acc = __fmaf_rn(__fmul_rn(d1, s), __int2float_rn(t), acc);
    if (F::MIN)
        acc = __fmaf_rn(__fmul_rn(d2, s), __int2float_rn(u), acc);
    return acc;
}

// The lane's fold of one block in registers; scale already at the block.
template <class F, int R>
__device__ __forceinline__ void fold_lane(float (&acc)[N_SUMS<R>], float2 d1, float2 d2, const float *scale,
                                          int lane, const int (&t)[N_SUMS<R>], const int (&u)[N_SUMS<R>])
{
    if (R == 1) {
        float s = *scale;
        acc[0] = fold<F>(acc[0], d1.x, d2.x, s, t[0], u[0]);
        acc[1] = fold<F>(acc[1], d1.y, d2.y, s, t[1], u[1]);
    } else {
        float2 s = *(const float2 *)(scale + (2 * (lane & 3) & (R - 1)));
        acc[0] = fold<F>(acc[0], d1.x, d2.x, s.x, t[0], u[0]);
        acc[1] = fold<F>(acc[1], d1.x, d2.x, s.y, t[1], u[1]);
        acc[N_SUMS<R> - 2] = fold<F>(acc[N_SUMS<R> - 2], d1.y, d2.y, s.x, t[N_SUMS<R> - 2], u[N_SUMS<R> - 2]);
        acc[N_SUMS<R> - 1] = fold<F>(acc[N_SUMS<R> - 1], d1.y, d2.y, s.y, t[N_SUMS<R> - 1], u[N_SUMS<R> - 1]);
    }
}

// Calls f(row, value of output 2g, value of output 2g + 1) for the rows whose results this lane holds.
template <int R, class T, class Fn>
__device__ __forceinline__ void lane_rows(int lane, const T (&v)[N_SUMS<R>], Fn f)
{
    int t = lane & 3;
    if (R == 1) {
        if (t == 0)
            f(0, v[0], v[1]);
    } else if (2 * t < R) {
        f(2 * t, v[0], v[N_SUMS<R> - 2]);
        f(2 * t + 1, v[1], v[N_SUMS<R> - 1]);
    }
}

// Several warps share a unit: each leaves (t, u) of its blocks here, one folds them in order. Words per
// block: d1[16], (d2[16]), t[R][16], (u[R][16]).
template <class F, int R> struct Stage {
    static constexpr int WORDS = 16 * F::PLANES * (1 + R);
    static __device__ __forceinline__ void put(uint32_t *block, int lane, float2 d1, float2 d2,
                                               const int (&t)[N_SUMS<R>], const int (&u)[N_SUMS<R>])
    {
        int g = lane >> 2;
        if ((lane & 3) == 3) {
            *(float2 *)(block + 2 * g) = d1;
            if (F::MIN)
                *(float2 *)(block + 16 + 2 * g) = d2;
        }
        uint32_t *ints = block + 16 * F::PLANES;
        lane_rows<R>(lane, t,
                     [&](int r, int a, int b) { *(int2 *)(ints + 16 * r + 2 * g) = make_int2(a, b); });
        if (F::MIN)
            lane_rows<R>(lane, u, [&](int r, int a, int b) {
                *(int2 *)(ints + 16 * (R + r) + 2 * g) = make_int2(a, b);
            });
    }
    // scale: at the unit's first block. out: (R, rows) at the panel's first output.
    static __device__ __forceinline__ void fold_all(const uint32_t *unit, int n_blocks, const float *scale,
                                                    int lane, float *out, int rows)
    {
        for (int i = lane; i < 16 * R; i += 32) {
            int o = i & 15, r = i >> 4;
            float acc = 0;
#pragma unroll 4
            for (int b = 0; b < n_blocks; b++) {
                const uint32_t *p = unit + b * WORDS;
                float d1 = __uint_as_float(p[o]), d2 = F::MIN ? __uint_as_float(p[16 + o]) : 0;
                const int *ints = (const int *)p + 16 * F::PLANES;
                acc = fold<F>(acc, d1, d2, scale[b * R + r], ints[16 * r + o],
                              F::MIN ? ints[16 * (R + r) + o] : 0);
            }
            out[(size_t)r * rows + o] = acc;
        }
    }
};

__device__ __forceinline__ void named_barrier(int id, int threads)
{
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- the ring: a warp's private stream of blocks, fetched ahead by bulk copies, across units and matrices
// ---- Which warp does which units of a matrix: teams of `split` warps; unit = cta + grid * team + ...; of a
// unit's blocks, warp j of the team takes j, j + split, ...
struct Share {
    int team, teams, j, split;
    __device__ __forceinline__ Share(int split_) : split(split_)
    {
        int warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
        team = warp / split, teams = warps / split, j = warp - team * split;
    }
    __device__ __forceinline__ int first() const { return blockIdx.x + gridDim.x * team; }
    __device__ __forceinline__ int stride() const { return gridDim.x * teams; }
};

// The order in which a ring's warp takes blocks, as above.
template <class F> struct UnitOrder {
    const Mat *mats;
    int n_ops, op, unit, b, units, unit_stride, slab_blocks, split;
    const uint8_t *from;

    __device__ __forceinline__ void seek_unit()
    {
        const Mat &m = mats[op];
        int slab = unit / m.n_panels, panel = unit - slab * m.n_panels;
        Share s(split);
        b = s.j;
        from = m.w + ((size_t)(panel * m.n_slabs + slab) * m.slab_blocks + b) * F::BLOCK;
    }
    __device__ __forceinline__ void seek_op()
    {
        for (; op < n_ops; op++) {
            const Mat &m = mats[op];
            split = m.split, slab_blocks = m.slab_blocks, units = m.n_panels * m.n_slabs;
            Share s(split);
            unit = s.first(), unit_stride = s.stride();
            if (s.team < s.teams && s.j < slab_blocks && unit < units) {
                seek_unit();
                return;
            }
        }
    }
    __device__ __forceinline__ void start(const Mat *mats_, int n_ops_, int)
    {
        mats = mats_, n_ops = n_ops_, op = 0;
        seek_op();
    }
    __device__ __forceinline__ const uint8_t *next() // NULL at the end
    {
        if (op >= n_ops)
            return nullptr;
        const uint8_t *block = from;
        b += split, from += (size_t)split * F::BLOCK;
        if (b >= slab_blocks) {
            unit += unit_stride;
            if (unit < units) {
                seek_unit();
            } else {
                op++;
                seek_op();
            }
        }
        return block;
    }
};

// The order of a stream's warp: the CTA's panels (cta, cta + grid, ...) are one row of blocks, of which warp
// w takes w, w + consumers, ...
template <class F> struct FlatOrder {
    const Mat *mats;
    const uint8_t *w;
    int n_ops, op, unit, b, units, n_blocks, step;

    __device__ __forceinline__ void wrap()
    {
        while (b >= n_blocks)
            b -= n_blocks, unit += gridDim.x;
    }
    __device__ __forceinline__ void seek_op()
    {
        for (; op < n_ops; op++) {
            const Mat &m = mats[op];
            w = m.w, units = m.n_panels, n_blocks = m.n_slabs * m.slab_blocks;
            unit = blockIdx.x, b = threadIdx.x >> 5;
            wrap();
            if (unit < units)
                return;
        }
    }
    __device__ __forceinline__ void start(const Mat *mats_, int n_ops_, int consumers)
    {
        mats = mats_, n_ops = n_ops_, op = 0, step = consumers;
        seek_op();
    }
    __device__ __forceinline__ const uint8_t *next()
    {
        if (op >= n_ops)
            return nullptr;
        const uint8_t *block = w + ((size_t)unit * n_blocks + b) * F::BLOCK;
        b += step;
        wrap();
        if (unit >= units) {
            op++;
            seek_op();
        }
        return block;
    }
};

// A stage is fetched anew only when every lane has *used* what it loaded from it: loads still in flight and
// the copy engine are not ordered. pop() therefore refills the stage of the block before; pop_used() this
// one's, for callers that have just stored results computed from all of it.
template <class F, class Order> struct Ring {
    const uint8_t *base; // this warp's stages
    uint32_t buffer, bars, phase;
    int stages, at, before, lane;
    Order order; // lane 0
    uint64_t policy;

    __device__ __forceinline__ void fetch(int stage) // lane 0
    {
        const uint8_t *from = order.next();
        if (!from)
            return;
        bar_expect(bars + 8 * stage, F::BLOCK);
        bulk_load(buffer + stage * F::BLOCK, from, F::BLOCK, bars + 8 * stage, policy);
    }
    __device__ __forceinline__ Ring(uint8_t *memory, uint64_t *barriers, int stages_, const Mat *mats,
                                    int n_ops, int consumers)
        : stages(stages_), at(0), before(-1)
    {
        int warp = threadIdx.x >> 5;
        lane = threadIdx.x & 31;
        base = memory + (size_t)warp * stages * F::BLOCK;
        buffer = shared_address(base);
        bars = shared_address(barriers + warp * stages);
        phase = 0;
        if (lane == 0 && warp < consumers) {
            policy = evict_first();
            for (int i = 0; i < stages; i++)
                bar_init(bars + 8 * i);
            bar_init_done();
            order.start(mats, n_ops, consumers);
            for (int i = 0; i < stages; i++)
                fetch(i);
        }
        __syncwarp();
    }
    __device__ __forceinline__ const uint8_t *front()
    {
        bar_wait(bars + 8 * at, phase);
        return base + at * F::BLOCK;
    }
    __device__ __forceinline__ void advance()
    {
        if (++at == stages)
            at = 0, phase ^= 1;
    }
    __device__ __forceinline__ void pop()
    {
        __syncwarp();
        if (lane == 0 && before >= 0)
            fetch(before);
        before = at;
        advance();
    }
    __device__ __forceinline__ void pop_used()
    {
        __syncwarp();
        if (lane == 0)
            fetch(at);
        advance();
    }
};

// All of one matrix's units that fall to this warp, from the ring. done(panel, slab, acc) once per unit for
// split 1 (every lane holds acc); otherwise the folding warp writes m.out itself. staging: 2 x unit words per
// team.
template <class F, bool FRAG, int R, class Done>
__device__ __forceinline__ void ring_product(const Mat &m, Ring<F, UnitOrder<F>> &ring, uint32_t *staging,
                                             Done done)
{
    int lane = threadIdx.x & 31, units = m.n_panels * m.n_slabs, rows = m.n_panels * 16;
    Share s(m.split);
    if (s.team >= s.teams)
        return;
    int parity = 0, turn = 0;
    for (int unit = s.first(); unit < units; unit += s.stride()) {
        int slab = unit / m.n_panels, panel = unit - slab * m.n_panels, b0 = slab * m.slab_blocks;
        uint32_t *stage = staging + (size_t)(2 * s.team + parity) * m.slab_blocks * Stage<F, R>::WORDS;
        float acc[N_SUMS<R>];
#pragma unroll
        for (int i = 0; i < N_SUMS<R>; i++)
            acc[i] = 0;
        for (int b = s.j; b < m.slab_blocks; b += s.split) {
            int t[N_SUMS<R>], u[N_SUMS<R>];
            float2 d1, d2;
            uint4 x[4];
            load_x<R>(m.x + (size_t)(b0 + b) * 256 * R, lane, x);
            const uint8_t *blk = ring.front();
            block_ints<F, FRAG, R, false>(blk, x, m.sum + (b0 + b) * F::G * R, lane, t, u);
            block_factors<F, FRAG, false>(blk, lane, d1, d2);
            ring.pop();
            if (m.split == 1)
                fold_lane<F, R>(acc, d1, d2, m.scale + (b0 + b) * R, lane, t, u);
            else
                Stage<F, R>::put(stage + b * Stage<F, R>::WORDS, lane, d1, d2, t, u);
        }
        if (m.split == 1) {
            done(panel, slab, acc);
        } else {
            named_barrier(1 + s.team, 32 * s.split);
            if (turn == s.j)
                Stage<F, R>::fold_all(stage, m.slab_blocks, m.scale + b0 * R, lane,
                                      m.out + (size_t)slab * R * rows + panel * 16, rows);
            turn = turn + 1 == s.split ? 0 : turn + 1;
            parity ^= 1;
        }
    }
}

// ---- the stream: all consumer warps of a CTA work on one panel, other warps fold ----
// Consumer warps take blocks in turn and leave (t, u) and factors in slots; a panel's blocks are folded in
// order by one of the folding warps, which also owns the epilogue, so that the slabs of a panel never leave
// the SM. Block number seq of the CTA (over all matrices) uses slot seq mod n_slots; filled[slot] and
// emptied[slot] hold the seq + 1 of who did so last. (Not mbarriers: several warps wait for one slot at
// different laps, and the parity of a phase cannot tell a lap from the one after the next.)
template <class F, bool FRAG, int R> struct Stream {
    static constexpr int WORDS = Stage<F, R>::WORDS;
    static constexpr int CHAINS = R <= 2 ? 1 : R / 2; // per folding lane
    Ring<F, FlatOrder<F>> ring;
    uint32_t *slots;
    uint32_t filled, emptied, base;
    int shift, consumers, folders, unit_base;

    // barriers: ring's (consumers x stages), then 1 << shift words for the two marks. Ends with a CTA
    // barrier.
    __device__ __forceinline__ Stream(uint8_t *ring_memory, uint32_t *slots_, uint64_t *barriers, int stages,
                                      int shift_, int consumers_, const Mat *mats, int n_ops)
        : ring(ring_memory, barriers, stages, mats, n_ops, consumers_), slots(slots_), base(0), shift(shift_),
          consumers(consumers_), unit_base(0)
    {
        folders = (blockDim.x >> 5) - consumers;
        uint32_t *marks = (uint32_t *)(barriers + consumers * stages);
        filled = shared_address(marks);
        emptied = filled + (4 << shift);
        if (threadIdx.x < (2 << shift))
            marks[threadIdx.x] = 0;
        __syncthreads();
    }
    static __device__ __forceinline__ int x_block(const Mat &m, int b)
    {
        return b >= m.x_blocks ? b - m.x_blocks : b;
    }

    __device__ __forceinline__ void consume(const Mat &m, int n_blocks, int total)
    {
        int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, b = warp;
        while (b >= n_blocks)
            b -= n_blocks;
        int bx = x_block(m, b);
        uint4 next[4];
        load_x<R>(m.x + (size_t)bx * 256 * R, lane, next);
        for (int pos = warp; pos < total; pos += consumers) {
            uint4 x[4] = {next[0], next[1], next[2], next[3]};
            const int *sum = m.sum + bx * F::G * R;
            b += consumers;
            while (b >= n_blocks)
                b -= n_blocks;
            bx = x_block(m, b);
            load_x<R>(m.x + (size_t)bx * 256 * R, lane, next);

            uint32_t seq = base + pos, slot = seq & ((1u << shift) - 1);
            int t[N_SUMS<R>], u[N_SUMS<R>];
            float2 d1, d2;
            const uint8_t *blk = ring.front();
            block_factors<F, FRAG, false>(blk, lane, d1, d2);
            block_ints<F, FRAG, R, false>(blk, x, sum, lane, t, u);
            if (seq >> shift)
                mark_wait(emptied + 4 * slot, seq + 1 - (1u << shift));
            Stage<F, R>::put(slots + slot * WORDS, lane, d1, d2, t, u);
            __syncwarp();
            if (lane == 0)
                mark_set(filled + 4 * slot, seq + 1);
            ring.pop_used();
        }
    }
    template <class Epilogue>
    __device__ __forceinline__ void fold_units(const Mat &m, int n_units, Epilogue &epilogue)
    {
        int lane = threadIdx.x & 31, folder = (threadIdx.x >> 5) - consumers, o = lane & 15;
        uint32_t seq = base;
        for (int n = 0; n < n_units; n++) {
            if ((unit_base + n) % folders != folder) {
                seq += m.n_slabs * m.slab_blocks;
                continue;
            }
            int panel = blockIdx.x + n * gridDim.x;
            for (int s = 0; s < m.n_slabs; s++) {
                float acc[CHAINS];
#pragma unroll
                for (int c = 0; c < CHAINS; c++)
                    acc[c] = 0;
                for (int j = 0; j < m.slab_blocks; j++, seq++) {
                    const float *scale = m.scale + x_block(m, s * m.slab_blocks + j) * R;
                    float sx[CHAINS];
#pragma unroll
                    for (int c = 0; c < CHAINS; c++)
                        sx[c] = scale[R == 1 ? 0 : (lane >> 4) + 2 * c];
                    uint32_t slot = seq & ((1u << shift) - 1);
                    mark_wait(filled + 4 * slot, seq + 1);
                    const uint32_t *p = slots + slot * WORDS;
                    float d1 = __uint_as_float(p[o]), d2 = F::MIN ? __uint_as_float(p[16 + o]) : 0;
                    const int *ints = (const int *)p + 16 * F::PLANES;
#pragma unroll
                    for (int c = 0; c < CHAINS; c++) {
                        int r = R == 1 ? 0 : (lane >> 4) + 2 * c;
                        acc[c] = fold<F>(acc[c], d1, d2, sx[c], ints[16 * r + o],
                                         F::MIN ? ints[16 * (R + r) + o] : 0);
                    }
                    __syncwarp();
                    if (lane == 0)
                        mark_set(emptied + 4 * slot, seq + 1);
                }
#pragma unroll
                for (int c = 0; c < CHAINS; c++)
                    epilogue.segment(panel, s, R == 1 ? 0 : (lane >> 4) + 2 * c, acc[c]);
            }
            epilogue.unit(panel);
        }
    }
    // One matrix, by all warps of the CTA. epilogue.segment(panel, slab, row, value): every lane, output lane
    // % 16 (R = 1: both halves of the warp hold the same); epilogue.unit(panel) after the last slab.
    template <class Epilogue> __device__ __forceinline__ void product(const Mat &m, Epilogue &epilogue)
    {
        int n_blocks = m.n_slabs * m.slab_blocks, left = m.n_panels - (int)blockIdx.x;
        int n_units = left > 0 ? (left + (int)gridDim.x - 1) / (int)gridDim.x : 0, total = n_units * n_blocks;
        if ((int)(threadIdx.x >> 5) < consumers)
            consume(m, n_blocks, total);
        else
            fold_units(m, n_units, epilogue);
        base += total;
        unit_base += n_units;
    }
};

// Plain epilogue: (slabs, R, rows).
template <int R>
__device__ __forceinline__ void store_unit(const Mat &m, int panel, int slab, const float (&acc)[N_SUMS<R>])
{
    int lane = threadIdx.x & 31, rows = m.n_panels * 16;
    float *out = m.out + (size_t)slab * R * rows + panel * 16 + 2 * (lane >> 2);
    lane_rows<R>(lane, acc,
                 [&](int r, float a, float b) { *(float2 *)(out + (size_t)r * rows) = make_float2(a, b); });
}

// ---- data: random packed bytes in pack.h's layout, and the way from there to frag ----
__device__ __forceinline__ uint32_t mix(uint64_t i)
{
    i = (i ^ (i >> 31)) * 0x9e3779b97f4a7c15ull;
    i = (i ^ (i >> 29)) * 0xbf58476d1ce4e5b9ull;
    return (uint32_t)(i >> 32);
}

// Word `word` of a block of a matrix: factors in [2e-5, 4e-5), integers within +-127 (or +-500), codes
// random.
template <class F> __device__ __forceinline__ uint32_t random_word(int word, uint64_t key)
{
    uint32_t r = mix(key);
    int byte = word * 4;
    if (byte < F::SC)
        return __float_as_uint(2e-5f + 2e-5f * (float)(r >> 8) * 0x1p-24f);
    if (byte < F::HEADER) {
        if (F::WIDTH == 1) {
            uint32_t v = 0;
            for (int i = 0; i < 4; i++)
                v |= (uint32_t)(uint8_t)(int8_t)((int)((r >> 8 * i & 255) * 254 / 255) - 127) << 8 * i;
            return v;
        }
        int a = (int)(r & 0xffff) % 1001 - 500, b = (int)(r >> 16) % 1001 - 500;
        return (uint32_t)(uint16_t)(int16_t)a | (uint32_t)(uint16_t)(int16_t)b << 16;
    }
    return r;
}
template <class F> __global__ void random_blocks(uint8_t *data, size_t n_blocks, uint64_t seed)
{
    size_t n = n_blocks * (F::BLOCK / 4);
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
        ((uint32_t *)data)[i] = random_word<F>((int)(i % (F::BLOCK / 4)), seed + i);
}

template <class F> __device__ __forceinline__ uint32_t code_at(const uint8_t *codes, int o, int k)
{
    int step = k / 4, byte = 4 * o + k % 4;
    if (F::BITS == 8)
        return codes[step * 64 + byte];
    if (F::BITS == 4)
        return codes[step / 2 * 64 + byte] >> (4 * (step % 2)) & 15;
    const uint8_t *quad = codes + step / 4 * 192;
    int j = step % 4;
    return (uint32_t)(quad[j / 2 * 64 + byte] >> (4 * (j % 2)) & 15) |
           (uint32_t)(quad[128 + byte] >> (2 * j) & 3) << 4;
}

template <class F> __device__ uint32_t set_word(const uint8_t *codes, int o, int c, int set, int t)
{
    uint32_t v = 0;
    for (int e = 0; e < 4; e++)
        v |= code_at<F>(codes, o, 64 * c + 16 * set + 4 * t + e) << 8 * e;
    return v;
}

// One CTA per block, 32 lanes write codes, 8 of them headers.
template <class F> __global__ void to_frag(const uint8_t *from, uint8_t *to, size_t n_blocks)
{
    int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    size_t warp = (blockIdx.x * (size_t)blockDim.x + threadIdx.x) >> 5,
           warps = (size_t)gridDim.x * blockDim.x >> 5;
    for (size_t block = warp; block < n_blocks; block += warps) {
        const uint8_t *src = from + block * F::BLOCK, *codes = src + F::HEADER;
        uint8_t *dst = to + block * F::BLOCK;
        uint32_t *out = (uint32_t *)(dst + F::HEADER);
        if (t == 0) {
            for (int plane = 0; plane < F::PLANES; plane++)
                for (int i = 0; i < 2; i++) {
                    ((uint32_t *)dst)[(g * F::PLANES + plane) * 2 + i] =
                        ((const uint32_t *)src)[16 * plane + 2 * g + i];
                    for (int group = 0; group < F::G; group++)
                        for (int w = 0; w < F::WIDTH; w++)
                            dst[F::SC + g * F::LANE_INTS + ((2 * plane + i) * F::G + group) * F::WIDTH + w] =
                                src[(plane ? F::MN : F::SC) + (group * 16 + 2 * g + i) * F::WIDTH + w];
                }
        }
        for (int c = 0; c < 4; c++)
            for (int o = 0; o < 2; o++) {
                uint32_t s[4];
                for (int i = 0; i < 4; i++)
                    s[i] = set_word<F>(codes, 2 * g + o, c, i, t);
                if (F::BITS == 8) {
                    for (int i = 0; i < 4; i++)
                        out[(2 * c + i / 2) * 128 + lane * 4 + (i % 2) * 2 + o] = s[i];
                    continue;
                }
                for (int j = 0; j < 2; j++)
                    out[c * 128 + lane * 4 + 2 * j + o] =
                        (s[2 * j] & 0x0f0f0f0f) | (s[2 * j + 1] & 0x0f0f0f0f) << 4;
                if (F::BITS == 6)
                    out[512 + (c / 2) * 128 + lane * 4 + (c % 2) * 2 + o] =
                        (s[0] & 0x30303030) >> 4 | (s[1] & 0x30303030) >> 2 | (s[2] & 0x30303030) |
                        (s[3] & 0x30303030) << 2;
            }
    }
}
