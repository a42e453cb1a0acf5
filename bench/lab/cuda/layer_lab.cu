// layer_lab.cu - one decode row through whole layers: a CUDA graph of kernels against one persistent kernel
// with grid barriers, microseconds per layer. Same arithmetic as ref.c, compared after two layers.
//
// A layer here: norm + quantise -> qkv -> (attention's place is taken by quantising its q part) -> o, 8
// slabs, tree, residual -> norm + quantise -> gate/up -> silu, quantise -> down, tree, residual. Real shapes,
// 4 bits group 64.
//
// The products are lab.cuh's stream: a CTA owns whole panels, so that the tree over slabs and the residual
// are added by the warp that folded them, and silu by the one that folded a gate panel and the up panel
// stored after it. Only the quantisation of silu's 256-blocks needs values of 16 CTAs: whoever delivers the
// last (a ticket counts) does it.
#include "host.cuh"

using F = Mlx4;

enum { EPI_STORE, EPI_TREE, EPI_SILU };
enum {
    SKIP_NORM = 1,
    SKIP_BARRIER = 2,
    SKIP_PRODUCT = 4
}; // to see what a part costs; results are then wrong

struct Quantised { // one row, in lane order
    uint8_t *x;
    int *sum;
    float *scale;
};

constexpr int MAX_OPS = 64, SHIFT = 5; // 32 slots
constexpr int SLOT_BYTES = Stage<F, 1>::WORDS * 4 << SHIFT;
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

// 1 / rms of hs (n, shared) by the whole CTA. LANES 16 is the contract; 256 shows what a wider one would
// cost.
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

__device__ __forceinline__ void norm_block(const float *hs, const float *w, float r, const Quantised &to,
                                           int b)
{
    int lane = threadIdx.x & 31;
    float v[8], k[8];
    const float4 *hp = (const float4 *)(hs + b * 256 + 8 * lane);
    load8_cg(w + b * 256 + 8 * lane, k);
    float4 p = hp[0], q = hp[1];
    v[0] = p.x, v[1] = p.y, v[2] = p.z, v[3] = p.w, v[4] = q.x, v[5] = q.y, v[6] = q.z, v[7] = q.w;
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = __fmul_rn(__fmul_rn(v[i], r), k[i]);
    quantize_block(v, to, b, lane);
}

__device__ __forceinline__ void load_h(float *hs, const float *h, int n)
{
#pragma unroll 4
    for (int i = threadIdx.x * 4; i < n; i += blockDim.x * 4)
        *(float4 *)(hs + i) = __ldcg((const float4 *)(h + i));
    __syncthreads();
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

// What becomes of a panel's sums (see Stream::product).
struct LayerEpilogue {
    const Mat &m;
    int kind;
    float v0, v1, v2; // tree: sums of 1, 2, 4 slabs that wait for their right neighbour. silu: v0 gate
    float value;

    __device__ __forceinline__ LayerEpilogue(const Mat &m_, int kind_) : m(m_), kind(kind_) {}
    __device__ __forceinline__ void segment(int, int s, int, float x)
    {
        if (kind == EPI_TREE) {
            if (!(s & 1)) {
                v0 = x;
            } else {
                x = __fadd_rn(v0, x);
                if (!(s & 2)) {
                    v1 = x;
                } else {
                    x = __fadd_rn(v1, x);
                    if (!(s & 4))
                        v2 = x;
                    else
                        x = __fadd_rn(v2, x);
                }
            }
        } else if (kind == EPI_SILU) {
            if (s == 0)
                v0 = x;
        }
        value = x;
    }
    __device__ __forceinline__ void unit(int panel)
    {
        int lane = threadIdx.x & 31, o = panel * 16 + (lane & 15);
        if (kind == EPI_STORE) {
            if (lane < 16)
                __stcg(m.out + o, value);
        } else if (kind == EPI_TREE) {
            if (lane < 16)
                __stcg(m.h + o, __fadd_rn(__ldcg(m.h + o), value));
        } else {
            if (lane < 16)
                __stcg(m.out + o, silu_device(v0, value));
            int b = panel / 16;
            if (last_of(m.ticket + b, 16, lane)) {
                float v[8];
                load8_cg(m.out + b * 256 + 8 * lane, v);
                quantize_block(v, {m.next_x, m.next_sum, m.next_scale}, b, lane);
            }
        }
    }
};

// ---- separate kernels ----
template <int LANES> __global__ void norm_kernel(const float *h, const float *w, int n, Quantised to)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float scratch[512];
    float *hs = (float *)shared;
    pdl_release();
    pdl_wait();
    load_h(hs, h, n);
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

// THREADS as in decode.cuh.
template <int THREADS>
__global__ void __launch_bounds__(THREADS, THREADS == 384 ? 2 : 1)
    product_kernel(const __grid_constant__ Mat m, int kind, int stages, int consumers)
{
    extern __shared__ __align__(128) uint8_t shared[];
    pdl_release();
    uint32_t *slots = (uint32_t *)(shared + 4096);
    Stream<F, true, 1> stream((uint8_t *)(slots + (Stage<F, 1>::WORDS << SHIFT)), slots, (uint64_t *)shared,
                              stages, SHIFT, consumers, &m, 1);
    pdl_wait();
    LayerEpilogue epilogue(m, kind);
    stream.product(m, epilogue);
}

// ---- the persistent kernel ----
struct Layers {
    float *h, *y;
    const float *norm_w;
    Quantised xo;
    unsigned *counter; // of the grid barrier; zero at start
    int n_layers, dim, ko, stages, consumers, skip;
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

template <int LANES, int THREADS>
__global__ void __launch_bounds__(THREADS, 1) layers_kernel(const __grid_constant__ Layers a)
{
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float scratch[THREADS];
    uint32_t *slots = (uint32_t *)(shared + 4096);
    float *hs = (float *)(shared + 4096 + SLOT_BYTES), *scale = hs + a.dim;
    int *sum = (int *)(scale + a.dim / 256);
    uint8_t *x = (uint8_t *)(sum + a.dim / F::GROUP);
    Quantised own = {x, sum, scale};
    uint8_t *memory = (uint8_t *)(((uintptr_t)(x + a.dim) + 127) / 128 * 128);
    Stream<F, true, 1> stream(memory, slots, (uint64_t *)shared, a.stages, SHIFT, a.consumers, c_mats,
                              4 * a.n_layers);
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    unsigned target = 0;

    auto norm = [&] {
        if (!(a.skip & SKIP_NORM)) {
            load_h(hs, a.h, a.dim);
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
    auto product = [&](int op, int kind, bool from_shared) {
        Mat m = c_mats[op];
        if (from_shared)
            m.x = x, m.sum = sum, m.scale = scale;
        if (a.skip & SKIP_PRODUCT) {
            int left = m.n_panels - (int)blockIdx.x, n = left > 0 ? (left - 1) / (int)gridDim.x + 1 : 0;
            if (warp < a.consumers)
                for (int pos = warp; pos < n * m.n_slabs * m.slab_blocks; pos += a.consumers) {
                    stream.ring.front();
                    stream.ring.pop_used();
                }
            return;
        }
        LayerEpilogue epilogue(m, kind);
        stream.product(m, epilogue);
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
static const Model models[] = {{"70B", 8192, 10240, 8192, 28672, 8},
                               {"70B/2", 8192, 5120, 4096, 14336, 4},
                               {"8B", 4096, 6144, 4096, 14336, 8}};

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
    float *h, *y, *act, *norm_w;
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
        h = device_alloc<float>(m.dim), y = device_alloc<float>(m.qkv), act = device_alloc<float>(m.ffn);
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
        for (void *p :
             {(void *)as_is, (void *)frag, (void *)h, (void *)y, (void *)act, (void *)norm_w, (void *)tickets,
              (void *)counter, (void *)xn.x, (void *)xn.sum, (void *)xn.scale, (void *)xo.x, (void *)xo.sum,
              (void *)xo.scale, (void *)xd.x, (void *)xd.sum, (void *)xd.scale})
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
            std::vector<float> both = ref_product(set.data(), 2, x), g, up;
            for (int i = 0; i < 2 * m.ffn; i++) // panels alternate
                (i / 16 % 2 ? up : g).push_back(both[(size_t)i]);
            kernels_ref.silu_mul(g.data(), up.data(), m.ffn, g.data());
            add_tree(hv, ref_product(set.data(), 3, g));
        }
        expected = hv;
    }

    Mat mat(int layer, int op) const
    {
        Mat mt = {};
        const Quantised *in[4] = {&xn, &xo, &xn, &xd};
        mt.w = frag + set_bytes * (layer % sets) + at[op];
        mt.x = in[op]->x, mt.sum = in[op]->sum, mt.scale = in[op]->scale, mt.out = op == 2 ? act : y;
        mt.n_panels = rows[op] / 16, mt.n_slabs = slabs[op], mt.slab_blocks = ks[op] / 256 / slabs[op];
        mt.x_blocks = ks[op] / 256;
        if (op == 2)
            mt.n_panels /= 2, mt.n_slabs = 2;
        mt.ticket = tickets, mt.h = h;
        mt.next_x = xd.x, mt.next_sum = xd.sum, mt.next_scale = xd.scale;
        return mt;
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
            printf("DIFFERENT: %s %s: %d of %d, first %d: %g, ref %g\n", m.name, what, n, m.dim, first,
                   got[first], expected[first]);
            all_equal = false;
        }
    }
    void report(const char *what, float us) const
    {
        printf("%-6s %-74s %8.1f us/layer %6.0f GB/s\n", m.name, what, us, set_bytes / us / 1e3);
        fflush(stdout);
    }

    struct GraphConfig {
        int threads, consumers, lanes;
        bool pdl;
    };
    void graph_layers(cudaStream_t s, int n_layers, GraphConfig c)
    {
        size_t fixed = 4096 + SLOT_BYTES, room = shared_limit / (c.threads == 384 ? 2 : 1) - 1024;
        int stages = (int)((room - fixed) / ((size_t)c.consumers * F::BLOCK));
        auto product = c.threads == 384 ? product_kernel<384> : product_kernel<512>;
        for (int l = 0; l < n_layers; l++)
            for (int op = 0; op < 4; op++) {
                if (op % 2 == 0) {
                    if (c.lanes == 16)
                        launch(norm_kernel<16>, m.dim / 256, 256, (size_t)m.dim * 4, s, c.pdl, h, norm_w,
                               m.dim, xn);
                    else
                        launch(norm_kernel<256>, m.dim / 256, 256, (size_t)m.dim * 4, s, c.pdl, h, norm_w,
                               m.dim, xn);
                } else if (op == 1) {
                    launch(quantize_kernel, m.ko / 256, 32, 0, s, c.pdl, y, xo);
                }
                launch(product, sms, c.threads, fixed + (size_t)stages * c.consumers * F::BLOCK, s, c.pdl,
                       mat(l, op),
                       op == 0   ? EPI_STORE
                       : op == 2 ? EPI_SILU
                                 : EPI_TREE,
                       stages, c.consumers);
            }
    }
    void graph(GraphConfig c)
    {
        char what[128];
        snprintf(what, sizeof what, "graph, 7 kernels, %d+%d warps, norm %d lanes%s", c.consumers,
                 c.threads / 32 - c.consumers, c.lanes, c.pdl ? ", pdl" : "");
        reset();
        graph_layers(stream, 2, c);
        if (c.lanes == 16)
            check(what);
        report(what, graph_us(stream, 7, [&](cudaStream_t s) { graph_layers(s, 12, c); }) / 12);
    }

    void persistent(int warps, int consumers, int lanes, int skip)
    {
        size_t fixed = 4096 + SLOT_BYTES + m.dim * 5 + m.dim / 256 * 4 + m.dim / F::GROUP * 4 + 128;
        int stages = (int)((shared_limit - 1024 - 640 * 4 - fixed) / ((size_t)consumers * F::BLOCK));
        size_t shared = fixed + (size_t)stages * consumers * F::BLOCK;
        int n_layers = 12;
        std::vector<Mat> mats;
        for (int l = 0; l < n_layers; l++)
            for (int op = 0; op < 4; op++)
                mats.push_back(mat(l, op));
        CHECK(cudaMemcpyToSymbol(c_mats, mats.data(), mats.size() * sizeof(Mat)));
        auto kernel = warps == 20   ? layers_kernel<16, 640>
                      : lanes == 16 ? layers_kernel<16, 512>
                                    : layers_kernel<256, 512>;
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
        auto go = [&](cudaStream_t s, int n, int skip_) {
            Layers a = {h, y, norm_w, xo, counter, n, m.dim, m.ko, stages, consumers, skip_};
            CHECK(cudaMemsetAsync(counter, 0, 4, s));
            void *args[] = {&a};
            CHECK(cudaLaunchCooperativeKernel((void *)kernel, dim3((unsigned)sms), dim3((unsigned)warps * 32),
                                              args, shared, s));
        };
        char what[128];
        snprintf(what, sizeof what, "persistent, %d+%d warps x %d stages, norm %d lanes%s%s%s", consumers,
                 warps - consumers, stages, lanes, skip & SKIP_NORM ? ", no norm" : "",
                 skip & SKIP_BARRIER ? ", no barriers" : "", skip & SKIP_PRODUCT ? ", reading only" : "");
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
        CHECK(
            cudaLaunchCooperativeKernel((void *)barrier_kernel, dim3((unsigned)sms), dim3(256), args, 0, s));
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
    printf("kernel in a graph: quantise 8192 %.2f us; norm + quantise 8192: 16 lanes %.2f us, 256 lanes %.2f "
           "us\n",
           empty / 100, y_us[0] / 100, y_us[1] / 100);
}

int main()
{
    setvbuf(stdout, NULL, _IOLBF, 0); // a run that is stopped keeps what it found
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
        c.graph({512, 14, 16, false});
        c.graph({512, 14, 16, true});
        c.graph({384, 8, 16, true});
        c.graph({384, 10, 16, true});
        c.graph({384, 10, 256, true});
        c.persistent(16, 12, 16, 0);
        c.persistent(16, 14, 16, 0);
        c.persistent(20, 16, 16, 0);
        c.persistent(20, 18, 16, 0);
        c.persistent(16, 14, 256, 0);
        c.persistent(16, 14, 16, SKIP_NORM);
        c.persistent(16, 14, 16, SKIP_NORM | SKIP_BARRIER);
        c.persistent(16, 14, 16, SKIP_NORM | SKIP_BARRIER | SKIP_PRODUCT);
    }
    printf("%s\n", all_equal ? "every result equal to ref.c's" : "SOME RESULTS DIFFER");
    return all_equal ? 0 : 1;
}
