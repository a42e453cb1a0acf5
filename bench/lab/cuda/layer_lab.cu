// layer_lab.cu - one decode row through whole layers: a CUDA graph of kernels against one persistent kernel with
// grid barriers, microseconds per layer. Same arithmetic as ref.c, compared after two layers.
//
// A layer here: norm + quantise -> qkv -> (attention's place is taken by quantising its q part) -> o, 8 slabs, tree,
// residual -> norm + quantise -> gate/up -> silu, quantise -> down, tree, residual. Real shapes, 4 bits group 64.
//
// Partial sums meet without a kernel or barrier of their own: whoever delivers the last slab of a panel (counted
// by a ticket) adds the tree and the residual; whoever delivers the last of the 32 panels of 256 gate and up
// channels does silu and quantises them.
#include "host.cuh"

using F = Mlx4;

enum { EPI_STORE, EPI_TREE, EPI_SILU };
enum { SKIP_NORM = 1, SKIP_BARRIER = 2, SKIP_PRODUCT = 4 }; // to see what a part costs; results are then wrong

struct Quantised { // one row, in lane order
    uint8_t *x;
    int *sum;
    float *scale;
};

struct Step { // an op of the chain
    Mat m;
    int epilogue;
};

constexpr int MAX_OPS = 64;
__constant__ Mat c_mats[MAX_OPS];

// ---- small device pieces, as in ref.c ----
__device__ float exp_device(float x)
{
    if (!(x >= -87.0f))
        return 0;
    x = x > 88.0f ? 88.0f : x;
    float n = rintf(__fmul_rn(x, 1.44269502f));
    float r = __fmaf_rn(-n, 0x1.62e4p-1f, x);
    r = __fmaf_rn(-n, 0x1.7f7d1cp-20f, r);
    float p = 0x1.6d113cp-10f;
    p = __fmaf_rn(p, r, 0x1.120ba2p-7f);
    p = __fmaf_rn(p, r, 0x1.55551ap-5f);
    p = __fmaf_rn(p, r, 0x1.5554dcp-3f);
    p = __fmaf_rn(p, r, 0.5f);
    p = __fmaf_rn(p, r, 1.0f);
    p = __fmaf_rn(p, r, 1.0f);
    return __uint_as_float(__float_as_uint(p) + ((uint32_t)(int)n << 23));
}
__device__ __forceinline__ float silu_device(float g, float up)
{
    return __fmul_rn(__fdiv_rn(g, __fadd_rn(1.0f, exp_device(-g))), up);
}

// A warp quantises block b; lane l holds inputs 8l .. 8l + 7 of it.
__device__ __forceinline__ void quantize_block(const float (&v)[8], const Quantised &to, int b, int lane)
{
    float top = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
        top = fmaxf(top, fabsf(v[i]));
#pragma unroll
    for (int d = 16; d; d >>= 1)
        top = fmaxf(top, __shfl_xor_sync(~0u, top, d));
    bool tiny = top < 0x1p-100f;
    float inverse = tiny ? 0 : __fdiv_rn(127.0f, top);
    uint32_t w[2] = {0, 0};
    int sum = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int q = tiny ? 0 : (int)rintf(fminf(fmaxf(__fmul_rn(v[i], inverse), -127.0f), 127.0f));
        sum += q;
        w[i >> 2] |= (uint32_t)(q & 255) << 8 * (i & 3);
    }
    uint8_t *x = to.x + (b * 4 + (lane >> 3)) * 64 + (lane >> 1 & 3) * 4;
    *(uint32_t *)(x + (lane & 1) * 32) = w[0];
    *(uint32_t *)(x + (lane & 1) * 32 + 16) = w[1];
#pragma unroll
    for (int d = 1; d < F::GROUP / 8; d <<= 1)
        sum += __shfl_xor_sync(~0u, sum, d);
    if (lane % (F::GROUP / 8) == 0)
        to.sum[b * F::G + lane / (F::GROUP / 8)] = F::FACTOR * sum;
    if (lane == 0)
        to.scale[b] = tiny ? 0 : __fdiv_rn(top, 127.0f);
}

__device__ __forceinline__ void load8_cg(const float *p, float (&v)[8])
{
    float4 a = __ldcg((const float4 *)p), b = __ldcg((const float4 *)p + 1);
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// 1 / rms of hs (n, shared) by the whole CTA. LANES 16 is the contract; 256 shows what a wider one would cost.
template <int LANES> __device__ float norm_factor(const float *hs, int n, float *scratch)
{
    if (LANES == 16) {
        if (threadIdx.x < 32) {
            float s = 0;
            int lane = threadIdx.x & 15;
#pragma unroll 16
            for (int i = lane; i < n; i += 16)
                s = __fmaf_rn(hs[i], hs[i], s);
            for (int d = 8; d; d >>= 1)
                s = __fadd_rn(s, __shfl_down_sync(~0u, s, d));
            if (threadIdx.x == 0)
                scratch[0] = s;
        }
    } else {
        float s = 0;
        if (threadIdx.x < LANES)
            for (int i = threadIdx.x; i < n; i += LANES)
                s = __fmaf_rn(hs[i], hs[i], s);
        scratch[threadIdx.x] = s;
        for (int d = LANES / 2; d; d >>= 1) {
            __syncthreads();
            if (threadIdx.x < d)
                scratch[threadIdx.x] = __fadd_rn(scratch[threadIdx.x], scratch[threadIdx.x + d]);
        }
    }
    __syncthreads();
    float mean = __fdiv_rn(scratch[0], (float)n);
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(mean, 1e-5f)));
}

__device__ __forceinline__ void norm_block(const float *hs, const float *w, float r, const Quantised &to, int b)
{
    int lane = threadIdx.x & 31;
    float v[8];
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = __fmul_rn(__fmul_rn(hs[b * 256 + 8 * lane + i], r), w[b * 256 + 8 * lane + i]);
    quantize_block(v, to, b, lane);
}

// ---- epilogues of the products ----
__device__ __forceinline__ bool last_of(unsigned *ticket, unsigned n, int lane)
{
    unsigned last = 0;
    __syncwarp();
    if (lane == 0) {
        __threadfence();
        last = atomicAdd(ticket, 1) == n - 1;
        __threadfence();
        if (last)
            *ticket = 0;
    }
    return __shfl_sync(~0u, last, 0);
}

__device__ __forceinline__ void finish_unit(const Mat &m, int epilogue, int panel, int slab, const float (&acc)[2])
{
    int lane = threadIdx.x & 31, rows = m.n_panels * 16;
    store_unit<1>(m, panel, slab, acc);
    if (epilogue == EPI_TREE && last_of(m.ticket + panel, m.n_slabs, lane)) {
        if (lane < 16) {
            int o = panel * 16 + lane;
            float p[8];
#pragma unroll
            for (int s = 0; s < 8; s++)
                p[s] = s < m.n_slabs ? __ldcg(m.out + (size_t)s * rows + o) : 0;
            float a = __fadd_rn(__fadd_rn(p[0], p[1]), __fadd_rn(p[2], p[3]));
            if (m.n_slabs == 8)
                a = __fadd_rn(a, __fadd_rn(__fadd_rn(p[4], p[5]), __fadd_rn(p[6], p[7])));
            __stcg(m.h + o, __fadd_rn(__ldcg(m.h + o), a));
        }
    } else if (epilogue == EPI_SILU) {
        int half = m.n_panels / 2, b = panel % half / 16;
        if (last_of(m.ticket + b, 32, lane)) {
            float g[8], up[8];
            load8_cg(m.out + b * 256 + 8 * lane, g);
            load8_cg(m.out + half * 16 + b * 256 + 8 * lane, up);
#pragma unroll
            for (int i = 0; i < 8; i++)
                g[i] = silu_device(g[i], up[i]);
            quantize_block(g, {m.next_x, m.next_sum, m.next_scale}, b, lane);
        }
    }
}

// ---- separate kernels ----
template <int LANES> __global__ void norm_kernel(const float *h, const float *w, int n, Quantised to)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float scratch[512];
    float *hs = (float *)shared;
    pdl_release();
    pdl_wait();
    for (int i = threadIdx.x * 4; i < n; i += blockDim.x * 4)
        *(float4 *)(hs + i) = __ldcg((const float4 *)(h + i));
    __syncthreads();
    float r = norm_factor<LANES>(hs, n, scratch);
    if (threadIdx.x < 32)
        norm_block(hs, w, r, to, blockIdx.x);
}

__global__ void quantize_kernel(const float *y, Quantised to)
{
    pdl_release();
    pdl_wait();
    float v[8];
    load8_cg(y + blockIdx.x * 256 + 8 * threadIdx.x, v);
    quantize_block(v, to, blockIdx.x, threadIdx.x);
}

__global__ void silu_kernel(const float *gate_up, int ffn, Quantised to)
{
    pdl_release();
    pdl_wait();
    float g[8], up[8];
    load8_cg(gate_up + blockIdx.x * 256 + 8 * threadIdx.x, g);
    load8_cg(gate_up + ffn + blockIdx.x * 256 + 8 * threadIdx.x, up);
    for (int i = 0; i < 8; i++)
        g[i] = silu_device(g[i], up[i]);
    quantize_block(g, to, blockIdx.x, threadIdx.x);
}

__global__ void __launch_bounds__(512, 1) product_kernel(const __grid_constant__ Mat m, int epilogue, int stages, int staging)
{
    extern __shared__ __align__(128) uint8_t shared[];
    pdl_release();
    Ring<F> ring(shared + 2048 + staging, (uint64_t *)shared, stages, &m, 1);
    pdl_wait();
    ring_product<F, true, 1>(m, ring, (uint32_t *)(shared + 2048), [&](int panel, int slab, const float(&acc)[2]) {
        finish_unit(m, epilogue, panel, slab, acc);
    });
}

// ---- the persistent kernel ----
struct Layers {
    float *h, *y;
    const float *norm_w;
    Quantised xo;
    unsigned *counter; // of the grid barrier; zero at start
    int n_layers, dim, ko, stages, staging, skip;
};

__device__ __forceinline__ void grid_barrier(unsigned *counter, unsigned &target)
{
    __syncthreads();
    target += gridDim.x;
    if (threadIdx.x == 0) {
        unsigned seen;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        } while ((int)(seen - target) < 0);
    }
    __syncthreads();
}

__global__ void barrier_kernel(unsigned *counter, int n)
{
    unsigned target = 0;
    for (int i = 0; i < n; i++)
        grid_barrier(counter, target);
}

template <int LANES> __global__ void __launch_bounds__(512, 1) layers_kernel(const __grid_constant__ Layers a)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float scratch[512];
    uint32_t *staging = (uint32_t *)(shared + 2048);
    float *hs = (float *)(shared + 2048 + a.staging), *scale = hs + a.dim;
    int *sum = (int *)(scale + a.dim / 256);
    uint8_t *x = (uint8_t *)(sum + a.dim / F::GROUP);
    Quantised own = {x, sum, scale};
    uint8_t *memory = (uint8_t *)(((uintptr_t)(x + a.dim) + 127) / 128 * 128);
    Ring<F> ring(memory, (uint64_t *)shared, a.stages, c_mats, 4 * a.n_layers);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    unsigned target = 0;

    auto norm = [&] {
        if (!(a.skip & SKIP_NORM)) {
            for (int i = threadIdx.x * 4; i < a.dim; i += blockDim.x * 4)
                *(float4 *)(hs + i) = __ldcg((const float4 *)(a.h + i));
            __syncthreads();
            float r = norm_factor<LANES>(hs, a.dim, scratch);
            for (int b = warp; b < a.dim / 256; b += warps)
                norm_block(hs, a.norm_w, r, own, b);
        }
        __syncthreads();
    };
    auto barrier = [&] {
        if (!(a.skip & SKIP_BARRIER))
            grid_barrier(a.counter, target);
    };
    auto product = [&](int op, int epilogue, bool from_shared) {
        Mat m = c_mats[op];
        if (from_shared)
            m.x = x, m.sum = sum, m.scale = scale;
        if (a.skip & SKIP_PRODUCT) {
            Share s(m.split);
            for (int unit = s.first(); unit < m.n_panels * m.n_slabs; unit += s.stride())
                for (int b = s.j; b < m.slab_blocks; b += s.split) {
                    ring.front();
                    ring.pop();
                }
            return;
        }
        ring_product<F, true, 1>(m, ring, staging, [&](int panel, int slab, const float(&acc)[2]) {
            finish_unit(m, epilogue, panel, slab, acc);
        });
    };

    for (int layer = 0; layer < a.n_layers; layer++) {
        norm();
        product(4 * layer, EPI_STORE, true);
        barrier();
        for (int b = blockIdx.x + gridDim.x * warp; b < a.ko / 256; b += gridDim.x * warps) {
            float v[8];
            load8_cg(a.y + b * 256 + 8 * lane, v);
            quantize_block(v, a.xo, b, lane);
        }
        barrier();
        product(4 * layer + 1, EPI_TREE, false);
        barrier();
        norm();
        product(4 * layer + 2, EPI_SILU, true);
        barrier();
        product(4 * layer + 3, EPI_TREE, false);
        barrier();
    }
}

// ---- host ----
struct Model {
    const char *name;
    int dim, qkv, ko, ffn, n_slabs;
};
static const Model models[] = {
    {"70B", 8192, 10240, 8192, 28672, 8}, {"70B/2", 8192, 5120, 4096, 14336, 4}, {"8B", 4096, 6144, 4096, 14336, 8}};

static int sms;
static size_t shared_limit;
static cudaStream_t stream;
static bool all_equal = true;

static Quantised new_quantised(int k)
{
    return {device_alloc<uint8_t>(k), device_alloc<int>(k / F::GROUP), device_alloc<float>(k / 256)};
}

struct Chain {
    const Model &m;
    int sets;
    size_t set_bytes = 0, at[4];
    int rows[4], ks[4], slabs[4];
    uint8_t *as_is, *frag;
    float *h, *y, *gu, *partial, *norm_w;
    Quantised xn, xo, xd;
    unsigned *tickets, *counter;
    std::vector<float> h0, w0, expected;

    explicit Chain(const Model &model) : m(model)
    {
        int r[4] = {m.qkv, m.dim, 2 * m.ffn, m.dim}, k[4] = {m.dim, m.ko, m.dim, m.ffn};
        for (int i = 0; i < 4; i++) {
            rows[i] = r[i], ks[i] = k[i], slabs[i] = i % 2 ? m.n_slabs : 1, at[i] = set_bytes;
            set_bytes += (size_t)(r[i] / 16) * (k[i] / 256) * F::BLOCK;
        }
        sets = (int)std::max<size_t>(2, ((size_t)1 << 30) / set_bytes + 1);
        size_t n_blocks = set_bytes * sets / F::BLOCK;
        as_is = device_alloc<uint8_t>(set_bytes * sets);
        frag = device_alloc<uint8_t>(set_bytes * sets);
        random_blocks<F><<<sms * 8, 512>>>(as_is, n_blocks, 99);
        to_frag<F><<<sms * 16, 256>>>(as_is, frag, n_blocks);
        h = device_alloc<float>(m.dim), y = device_alloc<float>(m.qkv), gu = device_alloc<float>(2 * m.ffn);
        partial = device_alloc<float>((size_t)8 * m.dim);
        tickets = device_alloc<unsigned>(2048), counter = device_alloc<unsigned>(1);
        CHECK(cudaMemset(tickets, 0, 2048 * 4));
        xn = new_quantised(m.dim), xo = new_quantised(m.ko), xd = new_quantised(m.ffn);
        for (int i = 0; i < m.dim; i++) {
            h0.push_back(random_float((uint64_t)i));
            w0.push_back(1 + 0.2f * random_float((uint64_t)i + 1234567));
        }
        norm_w = device_copy(w0);
    }
    ~Chain()
    {
        for (void *p : {(void *)as_is, (void *)frag, (void *)h, (void *)y, (void *)gu, (void *)partial, (void *)norm_w,
                        (void *)tickets, (void *)counter, (void *)xn.x, (void *)xn.sum, (void *)xn.scale, (void *)xo.x,
                        (void *)xo.sum, (void *)xo.scale, (void *)xd.x, (void *)xd.sum, (void *)xd.scale})
            cudaFree(p);
    }

    std::vector<float> ref_product(const uint8_t *set, int op, const std::vector<float> &in)
    {
        kcut cut = make_cut(ks[op], slabs[op]);
        HostQact x(ks[op], ks[op] / 256, 1);
        kernels_ref.quantize(&cut, in.data(), &x.a, 0);
        size_t panel_bytes = (size_t)(ks[op] / 256) * F::BLOCK;
        std::vector<float> out((size_t)slabs[op] * rows[op]);
        parallel(rows[op] / 16, [&](int panel) {
            std::vector<float> o((size_t)slabs[op] * 16);
            ref_panel<F>(set + at[op] + panel * panel_bytes, cut, x.a, 1, o.data());
            for (int s = 0; s < slabs[op]; s++)
                memcpy(&out[(size_t)s * rows[op] + panel * 16], &o[(size_t)s * 16], 64);
        });
        kcut_free(&cut);
        return out;
    }
    void add_tree(std::vector<float> &hv, const std::vector<float> &p)
    {
        for (int o = 0; o < m.dim; o++) {
            float v[8];
            for (int s = 0; s < m.n_slabs; s++)
                v[s] = p[(size_t)s * m.dim + o];
            for (int n = m.n_slabs; n > 1; n /= 2)
                for (int s = 0; s < n / 2; s++)
                    v[s] = v[2 * s] + v[2 * s + 1];
            hv[o] += v[0];
        }
    }
    void make_expected(int n_layers)
    {
        std::vector<float> hv = h0, x((size_t)m.dim);
        for (int l = 0; l < n_layers; l++) {
            std::vector<uint8_t> set = host_copy(as_is + set_bytes * (l % sets), set_bytes);
            kernels_ref.rmsnorm(hv.data(), w0.data(), m.dim, 1e-5f, x.data());
            std::vector<float> yv = ref_product(set.data(), 0, x);
            yv.resize((size_t)m.ko);
            add_tree(hv, ref_product(set.data(), 1, yv));
            kernels_ref.rmsnorm(hv.data(), w0.data(), m.dim, 1e-5f, x.data());
            std::vector<float> g = ref_product(set.data(), 2, x), up(g.begin() + m.ffn, g.end());
            g.resize((size_t)m.ffn);
            kernels_ref.silu_mul(g.data(), up.data(), m.ffn, g.data());
            add_tree(hv, ref_product(set.data(), 3, g));
        }
        expected = hv;
    }

    Step step(int layer, int op, int split) const
    {
        Mat mt = {};
        const Quantised *in[4] = {&xn, &xo, &xn, &xd};
        float *out[4] = {y, partial, gu, partial};
        mt.w = frag + set_bytes * (layer % sets) + at[op];
        mt.x = in[op]->x, mt.sum = in[op]->sum, mt.scale = in[op]->scale, mt.out = out[op];
        mt.n_panels = rows[op] / 16, mt.n_slabs = slabs[op], mt.slab_blocks = ks[op] / 256 / slabs[op];
        mt.split = op == 0 ? split : 1;
        mt.ticket = tickets + (op == 2 ? 1024 : 0), mt.h = h;
        mt.next_x = xd.x, mt.next_sum = xd.sum, mt.next_scale = xd.scale;
        return {mt, op == 0 ? EPI_STORE : op == 2 ? EPI_SILU : EPI_TREE};
    }
    void reset() { CHECK(cudaMemcpy(h, h0.data(), m.dim * 4, cudaMemcpyHostToDevice)); }
    void check(const char *what)
    {
        CHECK(cudaGetLastError());
        CHECK(cudaStreamSynchronize(stream));
        std::vector<float> got = host_copy(h, m.dim);
        if (memcmp(got.data(), expected.data(), m.dim * 4)) {
            int n = 0, first = -1;
            for (int i = 0; i < m.dim; i++)
                if (memcmp(&got[i], &expected[i], 4) && (n++, first < 0))
                    first = i;
            printf("DIFFERENT: %s %s: %d of %d, first %d: %g, ref %g\n", m.name, what, n, m.dim, first, got[first],
                   expected[first]);
            all_equal = false;
        }
    }
    void report(const char *what, float us) const
    {
        printf("%-6s %-74s %8.1f us/layer %6.0f GB/s\n", m.name, what, us, set_bytes / us / 1e3);
        fflush(stdout);
    }

    struct GraphConfig {
        int warps, split, lanes;
        bool pdl, fuse_silu;
        int ring_kb; // per CTA
    };
    void graph_layers(cudaStream_t s, int n_layers, GraphConfig c)
    {
        for (int l = 0; l < n_layers; l++)
            for (int op = 0; op < 4; op++) {
                Step st = step(l, op, c.split);
                if (op % 2 == 0) {
                    if (c.lanes == 16)
                        launch(norm_kernel<16>, m.dim / 256, 256, (size_t)m.dim * 4, s, c.pdl, h, norm_w, m.dim, xn);
                    else
                        launch(norm_kernel<256>, m.dim / 256, 256, (size_t)m.dim * 4, s, c.pdl, h, norm_w, m.dim, xn);
                } else if (op == 1) {
                    launch(quantize_kernel, m.ko / 256, 32, 0, s, c.pdl, y, xo);
                } else if (!c.fuse_silu) {
                    launch(silu_kernel, m.ffn / 256, 32, 0, s, c.pdl, gu, m.ffn, xd);
                }
                int staging = st.m.split > 1 ? 2 * c.warps / st.m.split * st.m.slab_blocks * Stage<F, 1>::WORDS * 4 : 0;
                int stages = std::min((c.ring_kb * 1024 - 2048 - staging) / (c.warps * F::BLOCK), 256 / c.warps);
                launch(product_kernel, sms, c.warps * 32, (size_t)2048 + staging + stages * c.warps * F::BLOCK, s, c.pdl,
                       st.m, op == 2 && !c.fuse_silu ? EPI_STORE : st.epilogue, stages, staging);
            }
    }
    void graph(GraphConfig c)
    {
        char what[128];
        snprintf(what, sizeof what, "graph, %d kernels, %d warps, split %d, ring %d KB, norm %d lanes%s", c.fuse_silu ? 7 : 8,
                 c.warps, c.split, c.ring_kb, c.lanes, c.pdl ? ", pdl" : "");
        reset();
        graph_layers(stream, 2, c);
        if (c.lanes == 16)
            check(what);
        report(what, graph_us(stream, 7, [&](cudaStream_t s) { graph_layers(s, 12, c); }) / 12);
    }

    void persistent(int warps, int split, int lanes, int skip)
    {
        int staging = split > 1 ? 2 * warps / split * (m.dim / 256) * Stage<F, 1>::WORDS * 4 : 0;
        size_t fixed = 2048 + staging + m.dim * 5 + m.dim / 256 * 4 + m.dim / F::GROUP * 4 + 128;
        int stages = std::min((int)((shared_limit - 1024 - 2048 - fixed) / (warps * F::BLOCK)), 256 / warps);
        size_t shared = fixed + (size_t)stages * warps * F::BLOCK;
        int n_layers = 12;
        std::vector<Mat> mats;
        for (int l = 0; l < n_layers; l++)
            for (int op = 0; op < 4; op++)
                mats.push_back(step(l, op, split).m);
        CHECK(cudaMemcpyToSymbol(c_mats, mats.data(), mats.size() * sizeof(Mat)));
        auto kernel = lanes == 16 ? layers_kernel<16> : layers_kernel<256>;
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
        auto go = [&](cudaStream_t s, int n, int skip_) {
            Layers a = {h, y, norm_w, xo, counter, n, m.dim, m.ko, stages, staging, skip_};
            CHECK(cudaMemsetAsync(counter, 0, 4, s));
            void *args[] = {&a};
            CHECK(cudaLaunchCooperativeKernel((void *)kernel, dim3((unsigned)sms), dim3((unsigned)warps * 32), args, shared, s));
        };
        char what[128];
        snprintf(what, sizeof what, "persistent, %d warps x %d stages, split %d, norm %d lanes%s%s%s", warps, stages, split,
                 lanes, skip & SKIP_NORM ? ", no norm" : "", skip & SKIP_BARRIER ? ", no barriers" : "",
                 skip & SKIP_PRODUCT ? ", reading only" : "");
        if (!skip) {
            reset();
            go(stream, 2, 0);
            if (lanes == 16)
                check(what);
        }
        // The difference of 12 and 4 layers leaves launch, filling and draining out.
        float us12 = graph_us(stream, 7, [&](cudaStream_t s) { go(s, 12, skip); });
        float us4 = graph_us(stream, 7, [&](cudaStream_t s) { go(s, 4, skip); });
        report(what, (us12 - us4) / 8);
        CHECK(cudaMemset(tickets, 0, 2048 * 4));
    }
};

static void barrier_cost()
{
    unsigned *counter = device_alloc<unsigned>(1);
    int n = 1000;
    void *args[] = {&counter, &n};
    float us = graph_us(stream, 5, [&](cudaStream_t s) {
        CHECK(cudaMemsetAsync(counter, 0, 4, s));
        CHECK(cudaLaunchCooperativeKernel((void *)barrier_kernel, dim3((unsigned)sms), dim3(256), args, 0, s));
    });
    printf("grid barrier, %d CTAs of 256: %.2f us\n", sms, us / n);
    float y_us[2];
    Quantised q = new_quantised(8192);
    float *h = device_alloc<float>(8192), *w = device_alloc<float>(8192);
    CHECK(cudaMemset(h, 1, 8192 * 4));
    CHECK(cudaMemset(w, 1, 8192 * 4));
    for (int wide = 0; wide < 2; wide++)
        y_us[wide] = graph_us(stream, 5, [&](cudaStream_t s) {
            for (int i = 0; i < 100; i++)
                launch(wide ? norm_kernel<256> : norm_kernel<16>, 32, 256, 8192 * 4, s, false, h, w, 8192, q);
        });
    float empty = graph_us(stream, 5, [&](cudaStream_t s) {
        for (int i = 0; i < 100; i++)
            launch(quantize_kernel, 32, 32, 0, s, false, h, q);
    });
    printf("kernel in a graph: quantise 8192 %.2f us; norm + quantise 8192: 16 lanes %.2f us, 256 lanes %.2f us\n", empty / 100,
           y_us[0] / 100, y_us[1] / 100);
}

int main()
{
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    CHECK(cudaStreamCreate(&stream));
    sms = p.multiProcessorCount, shared_limit = p.sharedMemPerMultiprocessor;
    printf("%s, %d SMs\n", p.name, sms);
    barrier_cost();
    for (const Model &model : models) {
        Chain c(model);
        c.make_expected(2);
        printf("%s: %.1f MB a layer, %d sets\n", model.name, c.set_bytes / 1e6, c.sets);
        c.graph({8, 1, 16, false, false, 200});
        c.graph({8, 1, 16, false, true, 200});
        c.graph({8, 1, 16, true, false, 104});
        c.graph({8, 1, 16, true, true, 104});
        c.graph({8, 2, 16, true, true, 104});
        c.graph({8, 4, 16, true, true, 104});
        c.graph({8, 1, 256, true, true, 104});
        c.persistent(8, 1, 16, 0);
        c.persistent(8, 2, 16, 0);
        c.persistent(16, 1, 16, 0);
        c.persistent(16, 2, 16, 0);
        c.persistent(16, 1, 256, 0);
        c.persistent(16, 1, 16, SKIP_NORM);
        c.persistent(16, 1, 16, SKIP_NORM | SKIP_BARRIER);
        c.persistent(16, 1, 16, SKIP_NORM | SKIP_BARRIER | SKIP_PRODUCT);
    }
    printf("%s\n", all_equal ? "every result equal to ref.c's" : "SOME RESULTS DIFFER");
    return all_equal ? 0 : 1;
}
