// decode_lab.cu - decode products (1 to 8 rows) on a GPU, bit-equal to ref.c: which kernel and which layout
// reach the device's read bandwidth. README.md says how to run it and what came out.
//
//   decode_lab TSV    measures everything, one line per measurement into TSV, a short table on stdout
#include "decode.cuh"
#include "host.cuh"

#ifndef FORMAT // -DFORMAT=0 .. 3 builds one format alone: compiling is the slow part, and four go side by
               // side
#define FORMAT -1
#endif

struct Shape {
    const char *name;
    int rows, k, n_slabs;
};
static const Shape shapes[] = {
    {"8B qkv", 6144, 4096, 1},       {"8B o", 4096, 4096, 8},      {"8B gate/up", 28672, 4096, 1},
    {"8B down", 4096, 14336, 8},     {"70B qkv", 10240, 8192, 1},  {"70B o", 8192, 8192, 8},
    {"70B gate/up", 57344, 8192, 1}, {"70B down", 8192, 28672, 8}, {"70B head", 128256, 8192, 1},
    {"70B/2 qkv", 5120, 8192, 1},    {"70B/2 o", 8192, 4096, 4},   {"70B/2 gate/up", 28672, 8192, 1},
    {"70B/2 down", 8192, 14336, 4},
};

static int sms;
static size_t shared_limit;
static double ceiling; // GB/s, plain read
static FILE *tsv;
static cudaStream_t stream;
static bool all_equal = true;

static double read_bandwidth()
{
    size_t bytes = (size_t)4 << 30;
    uint4 *p = (uint4 *)device_alloc<uint8_t>(bytes);
    uint32_t *out = device_alloc<uint32_t>(1);
    random_blocks<Q80><<<sms * 8, 512>>>((uint8_t *)p, bytes / Q80::BLOCK, 1);
    double best = 0;
    for (int per_sm = 1; per_sm <= 4; per_sm++) {
        float us = graph_us(
            stream, 5, [&](cudaStream_t s) { read_kernel<<<sms * per_sm, 512, 0, s>>>(p, bytes / 16, out); });
        printf("read: %d x 512 threads per SM %.0f GB/s\n", per_sm, bytes / us / 1e3);
        best = std::max(best, bytes / us / 1e3);
    }
    CHECK(cudaFree(p));
    CHECK(cudaFree(out));
    return best;
}

// Everything about one matrix of one format.
template <class F> struct Case {
    const Shape &shape;
    const char *format;
    size_t bytes;
    int copies, panels;
    uint8_t *as_is, *frag;
    HostQact x;
    kcut cut;
    std::vector<float> expected; // (slabs, 8, rows)
    float *out;
    double best[17] = {0};

    struct Acts { // of R rows: order 0 sixteen-order, 1 eight-order, 2 natural
        uint8_t *x[3];
        int *sum;
        float *scale;
    } acts[9] = {};

    Case(const Shape &s, const char *format_)
        : shape(s), format(format_), x(s.k, s.k / 256, PLAIN_ROWS), cut(make_cut(s.k, s.n_slabs))
    {
        panels = shape.rows / 16;
        size_t n_blocks = (size_t)panels * (shape.k / 256);
        bytes = n_blocks * F::BLOCK;
        copies = (int)std::max<size_t>(2, ((size_t)768 << 20) / bytes + 1);
        as_is = device_alloc<uint8_t>(bytes * copies);
        frag = device_alloc<uint8_t>(bytes * copies);
        random_blocks<F><<<sms * 8, 512>>>(as_is, n_blocks * copies, 77);
        to_frag<F><<<sms * 16, 256>>>(as_is, frag, n_blocks * copies);
        CHECK(cudaGetLastError());

        std::vector<float> row((size_t)shape.k);
        for (int r = 0; r < PLAIN_ROWS; r++) {
            for (int i = 0; i < shape.k; i++)
                row[(size_t)i] = random_float((uint64_t)r * 1000003 + (uint64_t)i);
            kernels_ref.quantize(&cut, row.data(), &x.a, r);
        }
        out = device_alloc<float>((size_t)shape.n_slabs * PLAIN_ROWS * shape.rows);
        for (int R = 1; R <= 8; R *= 2) {
            std::vector<uint8_t> natural((const uint8_t *)x.q.data(),
                                         (const uint8_t *)x.q.data() + (size_t)R * shape.k);
            acts[R] = {{device_copy(lane_order(x, shape.k, R, false)),
                        device_copy(lane_order(x, shape.k, R, true)), device_copy(natural)},
                       device_copy(lane_sums<F>(x, shape.k, R)),
                       device_copy(lane_scales(x, shape.k, R))};
        }
        make_expected();
    }
    ~Case()
    {
        for (auto &a : acts)
            for (void *p : {(void *)a.x[0], (void *)a.x[1], (void *)a.x[2], (void *)a.sum, (void *)a.scale})
                cudaFree(p);
        cudaFree(as_is), cudaFree(frag), cudaFree(out);
        kcut_free(&cut);
    }
    Mat mat(const uint8_t *w, int R, int order, int split) const
    {
        Mat m = {};
        m.w = w, m.x = acts[R].x[order], m.sum = acts[R].sum, m.scale = acts[R].scale, m.out = out;
        m.n_panels = panels, m.n_slabs = shape.n_slabs, m.slab_blocks = shape.k / 256 / shape.n_slabs,
        m.split = split;
        m.x_blocks = shape.k / 256;
        return m;
    }
    size_t out_size(int R) const { return (size_t)shape.n_slabs * R * shape.rows; }

    // The plain kernel over everything, and ref.c over a dozen panels of it.
    void make_expected()
    {
        CHECK(cudaMemset(out, 0xff, out_size(8) * 4));
        plain_kernel<F><<<(shape.rows * shape.n_slabs + 127) / 128, 128>>>(
            mat(as_is, 8, 2, 1), (const int8_t *)acts[8].x[2], shape.k);
        CHECK(cudaGetLastError());
        expected = host_copy(out, out_size(8));
        size_t panel_bytes = bytes / panels;
        std::atomic<int> wrong(0);
        parallel(12, [&](int i) {
            int panel = i == 0   ? 0
                        : i == 1 ? panels - 1
                                 : (int)((uint32_t)i * 2654435761u % (uint32_t)panels);
            std::vector<uint8_t> data = host_copy(as_is + panel * panel_bytes, panel_bytes);
            std::vector<float> ref((size_t)shape.n_slabs * 8 * 16);
            ref_panel<F>(data.data(), cut, x.a, 8, ref.data());
            for (int s = 0; s < shape.n_slabs * 8; s++)
                wrong +=
                    memcmp(&ref[(size_t)s * 16], &expected[(size_t)s * shape.rows + panel * 16], 64) != 0;
        });
        if (wrong)
            printf("%s %s: the plain kernel differs from ref.c in %d rows of panels\n", format, shape.name,
                   wrong.load());
        all_equal = all_equal && !wrong;
    }

    // Checks and times run(w, stream): `kind` indexes best[].
    void measure(int kind, const char *name, int R, const char *config, const uint8_t *weights,
                 const std::function<void(const uint8_t *, cudaStream_t)> &run, bool check = true)
    {
        bool equal = true;
        if (check) {
            CHECK(cudaMemset(out, 0xff, out_size(R) * 4));
            run(weights, stream);
            CHECK(cudaGetLastError());
            CHECK(cudaStreamSynchronize(stream));
            std::vector<float> got = host_copy(out, out_size(R));
            for (int s = 0; s < shape.n_slabs && equal; s++)
                for (int r = 0; r < R && equal; r++)
                    equal = !memcmp(&got[((size_t)s * R + r) * shape.rows],
                                    &expected[((size_t)s * 8 + r) * shape.rows], (size_t)shape.rows * 4);
            if (!equal) {
                size_t n = 0, first = 0;
                for (size_t i = got.size(); i-- > 0;) {
                    size_t o = i % shape.rows, r = i / shape.rows % R, s = i / shape.rows / R;
                    if (memcmp(&got[i], &expected[(s * 8 + r) * shape.rows + o], 4))
                        n++, first = i;
                }
                printf("DIFFERENT: %s %s %s rows %d %s: %zu of %zu, first %zu: %g\n", format, shape.name,
                       name, R, config, n, got.size(), first, got[first]);
            }
            all_equal = all_equal && equal;
        }
        int n = std::max(copies,
                         (int)std::min<size_t>(24, ((size_t)2 << 30) / bytes)); // enough work for the clock
        float us = graph_us(stream, 5,
                            [&](cudaStream_t s) {
                                for (int i = 0; i < n; i++)
                                    run(weights + bytes * (i % copies), s);
                            }) /
                   n;
        double share = 100.0 * bytes / us / 1e3 / ceiling;
        fprintf(tsv, "%s\t%s\t%s\t%d\t%s\t%.2f\t%.0f\t%.1f\t%s\n", format, shape.name, name, R, config, us,
                bytes / us / 1e3, share, equal ? "equal" : "DIFFERENT");
        fflush(tsv);
        if (equal)
            best[kind] = std::max(best[kind], share);
    }
    int max_split(int limit) const { return std::min(limit, shape.k / 256 / shape.n_slabs); }

    template <int R> void direct(int kind, bool is_frag)
    {
        for (int split = 1; split <= max_split(8); split *= split == 1 ? 8 : 2) {
            Mat m = mat(nullptr, R, is_frag || F::BITS == 6 ? 0 : 1, split);
            int teams = 8 / split, units = panels * shape.n_slabs;
            size_t shared = split == 1 ? 0 : (size_t)teams * m.slab_blocks * Stage<F, R>::WORDS * 4;
            char config[64];
            snprintf(config, sizeof config, "split %d", split);
            measure(kind, is_frag ? "direct frag" : "direct as-is", R, config, is_frag ? frag : as_is,
                    [&](const uint8_t *w, cudaStream_t s) {
                        m.w = w;
                        if (is_frag)
                            launch(direct_kernel<F, true, R>, (units + teams - 1) / teams, 256, shared, s,
                                   false, m);
                        else
                            launch(direct_kernel<F, false, R>, (units + teams - 1) / teams, 256, shared, s,
                                   false, m);
                    });
        }
    }
    template <int R> void dp4a(int kind)
    {
        for (int split = 1; split <= max_split(8); split *= split == 1 ? 8 : 2) {
            Mat m = mat(nullptr, R, 2, split);
            int teams = 8 / split, units = panels * shape.n_slabs;
            size_t shared = split == 1 ? 0 : (size_t)teams * m.slab_blocks * Stage<F, R>::WORDS * 4;
            char config[64];
            snprintf(config, sizeof config, "split %d", split);
            measure(kind, "dp4a as-is", R, config, as_is, [&](const uint8_t *w, cudaStream_t s) {
                m.w = w;
                launch(dp4a_kernel<F, R>, (units + teams - 1) / teams, 256, shared, s, false, m, shape.k);
            });
        }
    }
    struct RingConfig {
        int warps, ctas, split;
        bool pdl;
    };
    // which: 0 frag, 1 as-is, 2 reading only
    template <int R> void ring(int kind, int which, RingConfig c)
    {
        if (c.split > max_split(8))
            return;
        Mat m = mat(nullptr, R, which == 0 || F::BITS == 6 ? 0 : 1, c.split);
        int staging =
            c.split == 1 || which == 2 ? 0 : 2 * (c.warps / c.split) * m.slab_blocks * Stage<F, R>::WORDS * 4;
        size_t room = shared_limit / ((size_t)c.ctas * (c.pdl ? 2 : 1)) - 1024 - 2048;
        if ((size_t)staging + c.warps * F::BLOCK * 2 > room)
            return;
        int stages = std::min((int)((room - staging) / ((size_t)c.warps * F::BLOCK)), 2048 / 8 / c.warps);
        size_t shared = 2048 + staging + (size_t)stages * c.warps * F::BLOCK;
        char config[96];
        snprintf(config, sizeof config, "%d CTA/SM x %d warps x %d stages, split %d%s", c.ctas, c.warps,
                 stages, c.split, c.pdl ? ", pdl" : "");
        static const char *names[] = {"ring frag", "ring as-is", "ring read"};
        measure(
            kind, names[which], R, config, which == 0 ? frag : as_is,
            [&](const uint8_t *w, cudaStream_t s) {
                m.w = w;
                int grid = sms * c.ctas, block = c.warps * 32;
                if (which == 0)
                    launch(ring_kernel<F, true, R>, grid, block, shared, s, c.pdl, m, stages, staging);
                else if (which == 1)
                    launch(ring_kernel<F, false, R>, grid, block, shared, s, c.pdl, m, stages, staging);
                else
                    launch(ring_read_kernel<F>, grid, block, shared, s, c.pdl, m, stages);
            },
            which != 2);
    }

    struct StreamConfig {
        int threads, consumers, shift;
        bool pdl;
    };
    template <int R, bool FRAG_> void stream_run(int kind, StreamConfig c)
    {
        Mat m = mat(nullptr, R, FRAG_ || F::BITS == 6 ? 0 : 1, 1);
        size_t fixed = 4096 + ((size_t)Stage<F, R>::WORDS * 4 << c.shift);
        size_t room = shared_limit / (c.threads == 384 && c.pdl ? 2 : 1) - 1024;
        if (room < fixed + c.consumers * F::BLOCK * 2)
            return;
        int stages = std::min((int)((room - fixed) / ((size_t)c.consumers * F::BLOCK)),
                              (512 - (1 << c.shift)) / c.consumers);
        size_t shared = fixed + (size_t)stages * c.consumers * F::BLOCK;
        char config[96];
        snprintf(config, sizeof config, "%d+%d warps x %d stages, %d slots%s", c.consumers,
                 c.threads / 32 - c.consumers, stages, 1 << c.shift, c.pdl ? ", pdl" : "");
        auto kernel = c.threads == 384 ? stream_kernel<F, FRAG_, R, 384> : stream_kernel<F, FRAG_, R, 512>;
        measure(kind, FRAG_ ? "stream frag" : "stream as-is", R, config, FRAG_ ? frag : as_is,
                [&](const uint8_t *w, cudaStream_t s) {
                    m.w = w;
                    launch(kernel, sms, c.threads, shared, s, c.pdl, m, stages, c.shift, c.consumers);
                });
    }

    void run()
    {
        dp4a<1>(0);
        direct<1>(1, false);
        direct<1>(2, true);
        static const RingConfig all[] = {
            {8, 1, 1, false}, {8, 1, 1, true},  {8, 1, 2, true}, {8, 1, 4, true},  {8, 1, 8, true},
            {8, 2, 1, false}, {8, 2, 1, true},  {8, 2, 2, true}, {16, 1, 1, true}, {16, 1, 2, true},
            {16, 1, 4, true}, {16, 1, 8, true}, {4, 2, 1, true}, {4, 2, 2, true},  {4, 2, 4, true}};
        for (auto &c : all) {
            ring<1>(3, 1, c);
            ring<1>(4, 0, c);
            ring<1>(5, 2, c);
        }
        static const RingConfig few[] = {
            {8, 1, 1, true}, {8, 1, 2, true}, {8, 2, 1, true}, {16, 1, 1, true}, {16, 1, 2, true}};
        for (auto &c : few) {
            ring<2>(6, 0, c);
            ring<4>(7, 0, c);
            ring<8>(8, 0, c);
        }
        ring<8>(9, 1, few[0]);
        ring<8>(9, 1, few[3]);
        dp4a<8>(10);
        direct<8>(11, true);
        static const StreamConfig streams[] = {{384, 8, 5, true},   {384, 10, 5, true},  {384, 11, 5, true},
                                               {512, 12, 5, false}, {512, 14, 5, false}, {512, 14, 5, true}};
        for (auto &c : streams) {
            stream_run<1, true>(12, c);
            stream_run<1, false>(13, c);
            stream_run<2, true>(14, c);
            stream_run<4, true>(15, c);
            stream_run<8, true>(16, c);
        }
        printf("%-5s %-14s |", format, shape.name);
        for (int i = 0; i < 17; i++)
            printf(i == 6 || i == 12 ? " | %5.1f" : " %5.1f", best[i]);
        printf(" | %.1f MB\n", bytes / 1e6);
        fflush(stdout);
    }
};

template <class F> static void run_format(const char *name)
{
    for (const Shape &s : shapes) {
        Case<F> c(s, name);
        c.run();
    }
}

int main(int argc, char **argv)
{
    tsv = fopen(argc > 1 ? argv[1] : "/dev/null", "w");
    setvbuf(stdout, NULL, _IOLBF, 0); // a run that is stopped keeps what it found
    cudaDeviceProp p;
    int driver;
    CHECK(cudaGetDeviceProperties(&p, 0));
    CHECK(cudaDriverGetVersion(&driver));
    CHECK(cudaStreamCreate(&stream));
    sms = p.multiProcessorCount, shared_limit = p.sharedMemPerMultiprocessor;
    printf("%s, %d SMs, L2 %.0f MB, %zu KB shared per SM, driver API %d\n", p.name, sms,
           p.l2CacheSize / 1048576.0, shared_limit >> 10, driver);
    ceiling = read_bandwidth();
    printf("percent of %.0f GB/s; best configuration of each; launch gaps included\n", ceiling);
    printf("                     |       1 row: pack.h layout   frag               | frag ring, rows       8 "
           "rows          "
           "        | stream, rows 1          2     4     8\n");
    printf("                     |  dp4a  mma  |frag | ring:as-is frag read |    2     4     8 | as-is dp4a "
           "direct frag "
           "|  frag as-is  frag\n");
#if FORMAT == 0 || FORMAT < 0
    run_format<Mlx4>("mlx4");
#endif
#if FORMAT == 1 || FORMAT < 0
    run_format<Q4K>("q4_k");
#endif
#if FORMAT == 2 || FORMAT < 0
    run_format<Q6K>("q6_k");
#endif
#if FORMAT == 3 || FORMAT < 0
    run_format<Q80>("q8_0");
#endif
    printf("%s\n", all_equal ? "every result equal to ref.c's" : "SOME RESULTS DIFFER");
    return all_equal ? 0 : 1;
}
