// host.cuh - what the labs' host sides share: random activations quantised by ref.c and laid out for the
// kernels, oracle calls on packed bytes fetched from the device, threads, graph timing.
#pragma once
#include "lab.cuh"
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

template <class T> T *device_alloc(size_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    return p;
}
template <class T> T *device_copy(const std::vector<T> &v)
{
    T *p = device_alloc<T>(v.size());
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <class T> std::vector<T> host_copy(const T *p, size_t n)
{
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

inline void parallel(int n, const std::function<void(int)> &f)
{
    std::atomic<int> next(0);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < std::max(1u, std::thread::hardware_concurrency()); i++)
        threads.emplace_back([&] {
            for (int j; (j = next++) < n;)
                f(j);
        });
    for (auto &t : threads)
        t.join();
}

inline float random_float(uint64_t i) // roughly normal, never zero for long
{
    float s = 0;
    for (int j = 0; j < 4; j++) {
        uint64_t z = (i * 4 + (uint64_t)j + 1) * 0x9e3779b97f4a7c15ull;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        s += (float)(z >> 40) * 0x1p-24f - 0.5f;
    }
    return s * 1.7f;
}

// n_slabs of the model's 8 slabs (8 = TP 1, 4 = TP 2, ...; 1 = not cut), every block 256 long.
inline kcut make_cut(int k, int n_slabs)
{
    kcut c;
    int n_ranks = n_slabs > 1 ? 8 / n_slabs : 1;
    if (kcut_make(&c, (int64_t)k * n_ranks, n_slabs > 1 ? 256 : 0, 0, n_ranks, true) || c.n_blocks != k / 256)
        printf("make_cut: %d inputs are not whole blocks\n", k), exit(1);
    return c;
}

// ref.c's quantised activations with room for `rows`.
struct HostQact {
    std::vector<int8_t> q;
    std::vector<float> scale;
    std::vector<int32_t> sums[4];
    qact a;
    HostQact(int k, int n_blocks, int rows) : q((size_t)k * rows), scale((size_t)n_blocks * rows)
    {
        a.q = q.data(), a.scale = scale.data(), a.q_stride = k, a.sum_stride = k / 16, a.n_blocks = n_blocks;
        for (int i = 0; i < 4; i++)
            sums[i].resize((size_t)(k / 16 >> i) * rows), a.sum[i] = sums[i].data();
    }
};

template <class F> pack_format format_of()
{
    pack_format f = {};
    f.kind = PACK_Q, f.bits = F::BITS, f.group = F::GROUP, f.width = F::WIDTH, f.has_min = F::MIN,
    f.zero = F::ZERO;
    return f;
}
inline int level_of(int group)
{
    return group == 16 ? 0 : group == 32 ? 1 : group == 64 ? 2 : 3;
}

// ref.c on one panel whose packed bytes (pack.h's layout) are on the host. out: (slabs, rows, 16).
template <class F> void ref_panel(const uint8_t *panel, const kcut &cut, const qact &x, int rows, float *out)
{
    pack_format f = format_of<F>();
    std::vector<size_t> offset((size_t)cut.n_blocks + 1);
    packed p;
    packed_init(&p, &f, 16, &cut, offset.data());
    if (p.panel_bytes != (size_t)cut.n_blocks * F::BLOCK)
        printf("ref_panel: layout differs from pack.h\n"), exit(1);
    p.data = const_cast<uint8_t *>(panel);
    for (int s = 0; s < cut.n_slabs; s++)
        kernels_ref.gemm_q(&p, 0, cut.slab_block[s], cut.slab_block[s + 1], &x, 0, rows,
                           out + (size_t)s * rows * 16, 16);
}

// Activations in lane order (lab.cuh).
inline std::vector<uint8_t> lane_order(const HostQact &h, int k, int R, bool ord8)
{
    std::vector<uint8_t> x((size_t)k * R);
    for (int c = 0; c < k / 64; c++)
        for (int r = 0; r < R; r++)
            for (int t = 0; t < 4; t++)
                for (int i = 0; i < 16; i++) {
                    int in = 64 * c + (ord8 ? 32 * (i / 8) + 8 * t + i % 8 : 16 * (i / 4) + 4 * t + i % 4);
                    x[(((size_t)c * R + r) * 4 + t) * 16 + i] = (uint8_t)h.q[(size_t)r * k + in];
                }
    return x;
}
template <class F> std::vector<int> lane_sums(const HostQact &h, int k, int R)
{
    int n = k / F::GROUP, level = level_of(F::GROUP);
    std::vector<int> v((size_t)n * R);
    for (int g = 0; g < n; g++)
        for (int r = 0; r < R; r++)
            v[(size_t)g * R + r] = F::FACTOR * h.sums[level][(size_t)r * (k / 16 >> level) + g];
    return v;
}
inline std::vector<float> lane_scales(const HostQact &h, int k, int R)
{
    std::vector<float> v((size_t)(k / 256) * R);
    for (int b = 0; b < k / 256; b++)
        for (int r = 0; r < R; r++)
            v[(size_t)b * R + r] = h.scale[(size_t)r * (k / 256) + b];
    return v;
}

// Microseconds of one replay of a graph of `body` (median of `reps`, after one warm-up).
inline float graph_us(cudaStream_t stream, int reps, const std::function<void(cudaStream_t)> &body)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    body(stream);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t a, b;
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    CHECK(cudaGraphLaunch(exec, stream));
    std::vector<float> ms((size_t)reps);
    for (float &v : ms) {
        CHECK(cudaEventRecord(a, stream));
        CHECK(cudaGraphLaunch(exec, stream));
        CHECK(cudaEventRecord(b, stream));
        CHECK(cudaEventSynchronize(b));
        CHECK(cudaEventElapsedTime(&v, a, b));
    }
    std::sort(ms.begin(), ms.end());
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    CHECK(cudaEventDestroy(a));
    CHECK(cudaEventDestroy(b));
    return ms[ms.size() / 2] * 1000;
}

// A launch that may overlap its predecessor's end (programmatic dependent launch).
template <class... P, class... A>
void launch(void (*kernel)(P...), int grid, int block, size_t shared, cudaStream_t stream, bool pdl,
            A... args)
{
    cudaLaunchConfig_t c = {};
    cudaLaunchAttribute at;
    at.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    at.val.programmaticStreamSerializationAllowed = 1;
    c.gridDim = dim3((unsigned)grid), c.blockDim = dim3((unsigned)block), c.dynamicSmemBytes = shared,
    c.stream = stream;
    c.attrs = &at, c.numAttrs = pdl ? 1 : 0;
    if (shared > 48 * 1024)
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CHECK(cudaLaunchKernelEx(&c, kernel, static_cast<P>(args)...));
}
