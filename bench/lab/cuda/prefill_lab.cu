// prefill_lab.cu - what the tensor cores give the contract in prefill: rate of the inner loop alone (weights
// and activations of one block of 256 stay in shared memory), wgmma s8 against bf16. mlx4 (4 bits, group 64,
// mins).
//
// D = weights (64 outputs a warpgroup, from registers, 16 a warp: the frag layout as it is) x activations (N
// tokens, shared memory, 128-byte swizzle). Ways to the contract's integers:
//   groups  a product per group of 64 (2 wgmma), times sc into int32 by the ordinary units; mins by two
//   products of
//           mn with the sums of activations cut into 7-bit halves. Fold once per 256.
//   planes  sc * q = 256 hi + lo, two s8 planes laid out beforehand: 16 wgmma, nothing by hand within the
//   256; mins
//           as above. Also the only way for groups of 16.
// One block's result is compared with ref.c bit for bit.
#include "host.cuh"

using F = Mlx4;

enum Kind { PEAK_S8, PEAK_BF16, GROUPS, PLANES };
static const char *kind_names[] = {"s8 peak", "bf16 peak", "groups", "planes"};

struct Tile {              // global memory; per warp w of the CTA: panel w mod 4
    const uint8_t *frag;   // 4 panels, one block each
    const uint8_t *planes; // 4 panels x 2 planes x 8 products x 512
    const uint8_t *x;      // N x 256 in two swizzled halves, then N x 128 with sums: low at 0, high at 32
    const float *scale;    // N
    float *out;            // (N, 64) of warpgroup 0
    int iterations;
};

__device__ __forceinline__ uint64_t
descriptor(uint32_t address) // K-major rows of 128 bytes, 128-byte swizzle
{
    return (uint64_t)((address & 0x3ffff) >> 4) | 1ull << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

#define L4(d, i)  "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define L16(d, i) L4(d, i), L4(d, i + 4), L4(d, i + 8), L4(d, i + 12)
#define S8(b)     "%" #b "0,%" #b "1,%" #b "2,%" #b "3,%" #b "4,%" #b "5,%" #b "6,%" #b "7,%" #b "8,%" #b "9,"
#define S32       "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," S8(1) S8(2) "%30,%31"
#define S64       "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9," S8(1) S8(2) S8(3) S8(4) S8(5) "%60,%61,%62,%63"

#define WGMMA64(shape, tail)                                                                                 \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %37, 0;\n\twgmma.mma_async.sync.aligned." shape       \
                 " {" S32 "}, {%32,%33,%34,%35}, %36, p" tail ";\n\t}"                                       \
                 : L16(d, 0), L16(d, 16)                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define WGMMA128(shape, tail)                                                                                \
    asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\twgmma.mma_async.sync.aligned." shape       \
                 " {" S64 "}, {%64,%65,%66,%67}, %68, p" tail ";\n\t}"                                       \
                 : L16(d, 0), L16(d, 16), L16(d, 32), L16(d, 48)                                             \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

enum Types { U8S8, S8S8, BF16 };
// Registers are ints to the compiler, also bf16's fp32 sums.
template <int TYPES, int N>
__device__ __forceinline__ void wgmma(int (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add)
{
    if constexpr (N == 64) {
        if (TYPES == U8S8)
            WGMMA64("m64n64k32.s32.u8.s8", "");
        else if (TYPES == S8S8)
            WGMMA64("m64n64k32.s32.s8.s8", "");
    } else {
        if (TYPES == U8S8)
            WGMMA128("m64n128k32.s32.u8.s8", "");
        else if (TYPES == S8S8)
            WGMMA128("m64n128k32.s32.s8.s8", "");
    }
}
#undef L4
#define L4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
template <int N>
__device__ __forceinline__ void wgmma_bf16(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add)
{
    if constexpr (N == 64)
        WGMMA64("m64n64k16.f32.bf16.bf16", ", 1, 1, 0");
    else
        WGMMA128("m64n128k16.f32.bf16.bf16", ", 1, 1, 0");
}
__device__ __forceinline__ void wgmma_fence()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_finish()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}
// Keeps the compiler from touching accumulators across asynchronous products.
template <int N> __device__ __forceinline__ void pin(int (&d)[N])
{
#pragma unroll
    for (int i = 0; i < N; i++)
        asm volatile("" : "+r"(d[i])::"memory");
}

// acc += the block's t (u) times its factors; f(i) is the integer of accumulator i.
template <int N, class Fn>
__device__ __forceinline__ void fold_tile(float (&acc)[N / 2], float2 d, const float *scale, int t, Fn f)
{
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        float2 s = *(const float2 *)(scale + 8 * j + 2 * t);
#pragma unroll
        for (int i = 0; i < 4; i++)
            acc[4 * j + i] = __fmaf_rn(__fmul_rn(i < 2 ? d.x : d.y, i & 1 ? s.y : s.x),
                                       __int2float_rn(f(4 * j + i)), acc[4 * j + i]);
    }
}

template <int KIND, int N, int WARPGROUPS>
__global__ void __launch_bounds__(WARPGROUPS * 128, 1) tile_kernel(const Tile tile)
{
    extern __shared__ __align__(1024) uint8_t shared[];
    uint8_t *x = shared, *scale_bytes = x + N * 384, *weights = scale_bytes + 1024;
    constexpr int WEIGHTS = KIND == PLANES ? F::HEADER + 8192 : F::BLOCK;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    for (int i = threadIdx.x; i < N * 384; i += blockDim.x)
        x[i] = tile.x[i];
    for (int i = threadIdx.x; i < N; i += blockDim.x)
        ((float *)scale_bytes)[i] = tile.scale[i];
    uint8_t *mine = weights + warp * WEIGHTS;
    for (int i = lane; i < WEIGHTS; i += 32)
        mine[i] = KIND == PLANES && i >= F::HEADER ? tile.planes[(warp & 3) * 8192 + i - F::HEADER]
                                                   : tile.frag[(warp & 3) * F::BLOCK + i];
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const float *scale = (const float *)scale_bytes;
    uint32_t x0 = shared_address(x);
    uint64_t b_of[9];
    for (int k = 0; k < 8; k++)
        b_of[k] = descriptor(x0 + k / 4 * N * 128 + k % 4 * 32);
    uint64_t b_low = descriptor(x0 + N * 256), b_high = descriptor(x0 + N * 256 + 32);

    float acc[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[i] = 0;

    if constexpr (KIND == PEAK_S8 || KIND == PEAK_BF16) {
        uint32_t a[4] = {mix(lane) & 0x3f3f3f3f, mix(lane + 32) & 0x3f3f3f3f, mix(lane + 64) & 0x3f3f3f3f,
                         mix(lane + 96) & 0x3f3f3f3f};
        int d[N / 2];
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            d[i] = 0;
        for (int it = 0; it < tile.iterations; it++) {
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < (KIND == PEAK_S8 ? 8 : 16); k++) {
                if constexpr (KIND == PEAK_S8)
                    wgmma<U8S8, N>(d, a, b_of[k & 7], 1);
                else
                    wgmma_bf16<N>(acc, a, b_of[k & 7], 1);
            }
            wgmma_finish();
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++)
            acc[i] += (float)d[i];
    } else {
        for (int it = 0; it < tile.iterations; it++) {
            uint4 h = *(const uint4 *)(mine + 16 * g);
            float2 d1 = make_float2(__uint_as_float(h.x), __uint_as_float(h.y));
            float2 d2 = make_float2(__uint_as_float(h.z), __uint_as_float(h.w));
            uint4 ints = *(const uint4 *)(mine + F::SC + 16 * g); // sc a, sc b, mn a, mn b: four groups each
            int first[N / 2], second[N / 2];
            if constexpr (KIND == GROUPS) { // first: a group's dot; second: t
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    uint32_t code[4][2];
                    chunk_codes<F, true, false>(mine + F::HEADER, c, lane, code);
                    uint32_t a0[4] = {code[0][0], code[0][1], code[1][0], code[1][1]};
                    uint32_t a1[4] = {code[2][0], code[2][1], code[3][0], code[3][1]};
                    pin(first);
                    wgmma_fence();
                    wgmma<U8S8, N>(first, a0, b_of[2 * c], 0);
                    wgmma<U8S8, N>(first, a1, b_of[2 * c + 1], 1);
                    wgmma_finish();
                    pin(first);
                    int sa = (int8_t)(ints.x >> 8 * c), sb = (int8_t)(ints.y >> 8 * c);
#pragma unroll
                    for (int i = 0; i < N / 2; i++)
                        second[i] = (i & 2 ? sb : sa) * first[i] + (c ? second[i] : 0);
                }
                fold_tile<N>(acc, d1, scale, t, [&](int i) { return second[i]; });
            } else { // first: low plane, second: high plane
                pin(first);
                pin(second);
                wgmma_fence();
#pragma unroll
                for (int k = 0; k < 8; k++) {
                    uint4 lo = *(const uint4 *)(mine + F::HEADER + (2 * k) * 512 + lane * 16);
                    uint4 hi = *(const uint4 *)(mine + F::HEADER + (2 * k + 1) * 512 + lane * 16);
                    uint32_t al[4] = {lo.x, lo.y, lo.z, lo.w}, ah[4] = {hi.x, hi.y, hi.z, hi.w};
                    wgmma<S8S8, N>(first, al, b_of[k], k > 0);
                    wgmma<S8S8, N>(second, ah, b_of[k], k > 0);
                }
                wgmma_finish();
                pin(first);
                pin(second);
                fold_tile<N>(acc, d1, scale, t, [&](int i) { return first[i] + 256 * second[i]; });
            }
            uint32_t am[4] = {t == 0 ? ints.z : 0, t == 0 ? ints.w : 0, 0, 0};
            pin(first);
            pin(second);
            wgmma_fence();
            wgmma<S8S8, N>(first, am, b_low, 0);
            wgmma<S8S8, N>(second, am, b_high, 0);
            wgmma_finish();
            pin(first);
            pin(second);
            fold_tile<N>(acc, d2, scale, t, [&](int i) { return first[i] + 128 * second[i]; });
        }
    }
    float keep = 0;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            keep += acc[4 * j + i];
            if (warp < 4 && blockIdx.x == 0)
                tile.out[(8 * j + 2 * t + (i & 1)) * 64 + warp * 16 + 2 * g + (i >> 1)] = acc[4 * j + i];
        }
    if (keep == 1.2345e30f)
        tile.out[0] = keep;
}

static int sms;
static cudaStream_t stream;
static bool all_equal = true;

struct Data {
    static constexpr int N = 128;
    Tile tile[2]; // for 64 and 128 tokens
    std::vector<float> expected;

    Data()
    {
        uint8_t *as_is = device_alloc<uint8_t>(4 * F::BLOCK), *frag = device_alloc<uint8_t>(4 * F::BLOCK);
        random_blocks<F><<<4, 256>>>(as_is, 4, 5);
        to_frag<F><<<4, 32>>>(as_is, frag, 4);
        std::vector<uint8_t> bytes = host_copy(as_is, 4 * F::BLOCK), codes = host_copy(frag, 4 * F::BLOCK);
        kcut cut = make_cut(256, 1);
        HostQact x(256, 1, N);
        std::vector<float> row(256);
        for (int r = 0; r < N; r++) {
            for (int i = 0; i < 256; i++)
                row[i] = random_float((uint64_t)r * 7919 + i);
            kernels_ref.quantize(&cut, row.data(), &x.a, r);
        }
        expected.resize(N * 64);
        for (int p = 0; p < 4; p++) {
            std::vector<float> o(N * 16);
            ref_panel<F>(&bytes[p * F::BLOCK], cut, x.a, N, o.data());
            for (int r = 0; r < N; r++)
                memcpy(&expected[r * 64 + p * 16], &o[r * 16], 64);
        }
        // Planes in the order of A's registers: product k, lane: {a, b of inputs 4t.., a, b of inputs 16 +
        // 4t..}.
        std::vector<uint8_t> planes(4 * 8192);
        for (int p = 0; p < 4; p++)
            for (int k = 0; k < 8; k++)
                for (int lane = 0; lane < 32; lane++)
                    for (int i = 0; i < 16; i++) {
                        int g = lane / 4, t = lane % 4, o = 2 * g + i / 4 % 2,
                            in = 32 * k + 16 * (i / 8) + 4 * t + i % 4;
                        const uint8_t *blk = &bytes[p * F::BLOCK];
                        int byte = blk[F::HEADER + in / 8 * 64 + 4 * o + in % 4];
                        int q = byte >> 4 * (in / 4 % 2) & 15, sc = (int8_t)blk[F::SC + in / 64 * 16 + o],
                            v = sc * q;
                        int hi = (v + 128) >> 8, lo = v - 256 * hi;
                        planes[p * 8192 + (2 * k) * 512 + lane * 16 + i] = (uint8_t)lo;
                        planes[p * 8192 + (2 * k + 1) * 512 + lane * 16 + i] = (uint8_t)hi;
                    }
        const uint8_t *planes_d = device_copy(planes);
        for (int w = 0; w < 2; w++) {
            int n = 64 << w;
            std::vector<uint8_t> b((size_t)n * 384);
            auto put = [&](int part, int r, int k, int8_t v) {
                b[(size_t)part * n * 128 + r * 128 + ((k / 16) ^ (r % 8)) * 16 + k % 16] = (uint8_t)v;
            };
            for (int r = 0; r < n; r++) {
                for (int k = 0; k < 256; k++)
                    put(k / 128, r, k % 128, x.q[(size_t)r * 256 + k]);
                for (int group = 0; group < 4; group++) {
                    int s = x.sums[2][(size_t)r * 4 + group];
                    put(2, r, group, (int8_t)(s & 127));
                    put(2, r, 32 + group, (int8_t)(s >> 7));
                }
            }
            std::vector<float> scale(x.scale.begin(), x.scale.begin() + n);
            tile[w] = {
                frag, planes_d, device_copy(b), device_copy(scale), device_alloc<float>((size_t)n * 64), 1};
        }
    }
};

template <int KIND, int N, int WARPGROUPS> static void measure(Data &data)
{
    Tile tile = data.tile[N == 128];
    auto kernel = tile_kernel<KIND, N, WARPGROUPS>;
    size_t shared = N * 384 + 1024 + (size_t)WARPGROUPS * 4 * (KIND == PLANES ? F::HEADER + 8192 : F::BLOCK);
    const char *verdict = "";
    if (KIND == GROUPS || KIND == PLANES) {
        CHECK(cudaMemset(tile.out, 0xff, (size_t)N * 64 * 4));
        launch(kernel, 1, WARPGROUPS * 128, shared, stream, false, tile);
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        std::vector<float> got = host_copy(tile.out, N * 64);
        bool equal = !memcmp(got.data(), data.expected.data(), (size_t)N * 64 * 4);
        verdict = equal ? "equal to ref.c" : "DIFFERENT from ref.c";
        if (!equal)
            for (int i = 0; i < N * 64; i++)
                if (got[i] != data.expected[i]) {
                    printf("first at token %d output %d: %g, ref %g\n", i / 64, i % 64, got[i],
                           data.expected[i]);
                    break;
                }
        all_equal = all_equal && equal;
    }
    tile.iterations = 4000;
    float us = graph_us(
        stream, 5, [&](cudaStream_t s) { launch(kernel, sms, WARPGROUPS * 128, shared, s, false, tile); });
    double ops = 2.0 * 64 * WARPGROUPS * N * 256 * tile.iterations * sms;
    printf("%-10s N %3d, %d warpgroups an SM: %6.0f TOPS  %s\n", kind_names[KIND], N, WARPGROUPS,
           ops / us / 1e6, verdict);
    fflush(stdout);
}

int main()
{
    setvbuf(stdout, NULL, _IOLBF, 0); // a run that is stopped keeps what it found
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    CHECK(cudaStreamCreate(&stream));
    sms = p.multiProcessorCount;
    Data data;
    measure<PEAK_S8, 64, 2>(data);
    measure<PEAK_S8, 64, 4>(data);
    measure<PEAK_S8, 128, 2>(data);
    measure<PEAK_BF16, 64, 4>(data);
    measure<PEAK_BF16, 128, 2>(data);
    measure<GROUPS, 64, 2>(data);
    measure<GROUPS, 64, 3>(data);
    measure<GROUPS, 64, 4>(data);
    measure<GROUPS, 128, 2>(data);
    measure<PLANES, 64, 2>(data);
    measure<PLANES, 64, 3>(data);
    measure<PLANES, 64, 4>(data);
    measure<PLANES, 128, 2>(data);
    return all_equal ? 0 : 1;
}
