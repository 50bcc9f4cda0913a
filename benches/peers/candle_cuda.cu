// Times Candle's CUDA products of quantized weights, as a peer of `cargo xtask bench`: what QMatMul::forward of
// candle-core 0.11 launches for 1 to 8 rows of f32 activations (src/quantized/fast_mmvq.rs there). The kernels are
// candle-kernels' own, in its src/mmvq_gguf.cu, compiled with the flags of its build.rs:
//
//   K=target/peers/candle-kernels/src/mmvq_gguf.cu  (BENCHMARKS.md says how it gets there)
//   nvcc -O3 -std=c++17 --expt-relaxed-constexpr -arch=native -o candle_cuda benches/peers/candle_cuda.cu $K
//   ./candle_cuda N K
//
// Weights rotate over copies of more than 256 MB. A queue of products is a CUDA graph, as in ggml's backend, so that no
// launch of the host counts; the time is the median of its replays. First every format's outputs must be finite, and
// those of q8_0 what the host computes.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        cudaError_t error = (call);                                                                                    \
        if (error != cudaSuccess) {                                                                                    \
            fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error));                                             \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

// (weights, int8 activations, results, k, n, blocks of a row of activations, n, tokens, stream)
using Launch = void(const void *, const void *, void *, int, int, int, int, int, void *);

extern "C" {
void launch_mmvq_gguf_quantize_q8_1_f32(const void *x, void *q8_1, int k, int k_padded, int rows, void *stream);
Launch launch_mmvq_gguf_q4_0_f32_plain, launch_mmvq_gguf_q4_1_f32_plain, launch_mmvq_gguf_q5_0_f32_plain,
    launch_mmvq_gguf_q5_1_f32_plain, launch_mmvq_gguf_q8_0_f32_plain, launch_mmvq_gguf_q2_k_f32_plain,
    launch_mmvq_gguf_q3_k_f32_plain, launch_mmvq_gguf_q4_k_f32_plain, launch_mmvq_gguf_q5_k_f32_plain,
    launch_mmvq_gguf_q6_k_f32_plain;
}

struct Format {
    const char *name;
    // Of a block: weights, bytes, where its f16 scales are, and how many.
    size_t weights, bytes, scales_at, scales;
    Launch *launch;
};

const Format FORMATS[] = {
    {"q4_0", 32, 18, 0, 1, launch_mmvq_gguf_q4_0_f32_plain},
    {"q4_1", 32, 20, 0, 2, launch_mmvq_gguf_q4_1_f32_plain},
    {"q5_0", 32, 22, 0, 1, launch_mmvq_gguf_q5_0_f32_plain},
    {"q5_1", 32, 24, 0, 2, launch_mmvq_gguf_q5_1_f32_plain},
    {"q8_0", 32, 34, 0, 1, launch_mmvq_gguf_q8_0_f32_plain},
    {"q2_k", 256, 84, 80, 2, launch_mmvq_gguf_q2_k_f32_plain},
    {"q3_k", 256, 110, 108, 1, launch_mmvq_gguf_q3_k_f32_plain},
    {"q4_k", 256, 144, 0, 2, launch_mmvq_gguf_q4_k_f32_plain},
    {"q5_k", 256, 176, 0, 2, launch_mmvq_gguf_q5_k_f32_plain},
    {"q6_k", 256, 210, 208, 1, launch_mmvq_gguf_q6_k_f32_plain},
};

const int MAX_TOKENS = 8;
// Candle pads rows of activations, and the ends of weights, to so many values.
const size_t PADDING = 512;
const size_t POOL_ROWS = 64;

static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Rows of blocks of random codes, whose scales make values of ordinary size.
static std::vector<uint8_t> random_weights(const Format &format, size_t n, size_t k, std::mt19937_64 &random) {
    const size_t row = k / format.weights * format.bytes;
    std::vector<uint8_t> pool(POOL_ROWS * row), data(n * row);
    for (auto &byte : pool) byte = (uint8_t)random();
    std::uniform_real_distribution<float> ordinary(0.005f, 0.02f);
    for (size_t block = 0; block < pool.size(); block += format.bytes)
        for (size_t i = 0; i < format.scales; i++) {
            const __half scale = __float2half(ordinary(random));
            memcpy(&pool[block + format.scales_at + 2 * i], &scale, 2);
        }
    for (size_t r = 0; r < n; r++) memcpy(&data[r * row], &pool[r * 7 % POOL_ROWS * row], row);
    return data;
}

// Whether `y` is the product of q8_0 weights and `x`, but for the rounding of `x` to int8 times an f16 scale.
static bool is_product(const std::vector<uint8_t> &weights, const float *x, const float *y, size_t n, size_t k) {
    const size_t blocks = k / 32;
    std::vector<double> largest(blocks, 0);
    for (size_t i = 0; i < k; i++) largest[i / 32] = std::max(largest[i / 32], (double)std::fabs(x[i]));
    for (size_t r = 0; r < n; r++) {
        double exact = 0, size = 0, bound = 0;
        for (size_t b = 0; b < blocks; b++) {
            const uint8_t *block = &weights[(r * blocks + b) * 34];
            __half scale;
            memcpy(&scale, block, 2);
            for (size_t i = 0; i < 32; i++) {
                const double weight = (double)__half2float(scale) * (int8_t)block[2 + i];
                exact += weight * x[32 * b + i];
                size += std::fabs(weight * x[32 * b + i]);
                bound += std::fabs(weight) * largest[b] * (1.0 / 254 + 1.0 / 2048);
            }
        }
        if (!(std::fabs(y[r] - exact) <= bound + 1e-5 * size)) {
            fprintf(stderr, "row %zu is %g, and %g on the host, which may differ by %g\n", r, y[r], exact, bound);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv) {
    // The tokens that may follow are always those of `MAX_TOKENS`.
    const long n = argc >= 3 ? atol(argv[1]) : 0, k = argc >= 3 ? atol(argv[2]) : 0;
    // For an odd row the kernels read past the end of the weights.
    if (n <= 0 || k <= 0 || n % 2 != 0 || k % 256 != 0 || n > INT32_MAX / 2 || k > INT32_MAX / 2) {
        fprintf(stderr, "usage: candle_cuda N K, N even and K a multiple of 256\n");
        return 2;
    }
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream));
    std::mt19937_64 random(42);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> x(MAX_TOKENS * k), y(MAX_TOKENS * n);
    for (auto &value : x) value = normal(random);
    const size_t k_padded = (k + PADDING - 1) / PADDING * PADDING;
    const size_t x_bytes = x.size() * sizeof(float), y_bytes = y.size() * sizeof(float);
    void *device_x, *device_q8_1, *device_y;
    CHECK(cudaMalloc(&device_x, x_bytes));
    CHECK(cudaMalloc(&device_q8_1, MAX_TOKENS * k_padded / 32 * 36));
    CHECK(cudaMalloc(&device_y, y_bytes));
    CHECK(cudaMemcpy(device_x, x.data(), x_bytes, cudaMemcpyHostToDevice));

    printf("engine,type,n,k,tokens,us,gbps_weights,tflops\n");
    for (const Format &format : FORMATS) {
        const std::vector<uint8_t> weights = random_weights(format, n, k, random);
        const size_t padding = PADDING / format.weights * format.bytes;
        std::vector<void *> copies(std::max<size_t>(2, 256'000'000 / weights.size() + 1));
        for (void *&copy : copies) {
            CHECK(cudaMalloc(&copy, weights.size() + padding));
            CHECK(cudaMemcpy(copy, weights.data(), weights.size(), cudaMemcpyHostToDevice));
            CHECK(cudaMemset((uint8_t *)copy + weights.size(), 0, padding));
        }
        for (int tokens = 1; tokens <= MAX_TOKENS; tokens++) {
            auto product = [&](size_t i) {
                launch_mmvq_gguf_quantize_q8_1_f32(device_x, device_q8_1, k, k_padded, tokens, stream);
                format.launch(copies[i % copies.size()], device_q8_1, device_y, k, n, k_padded / 32, n, tokens, stream);
            };
            // All ones are NaNs: what a kernel does not write is known.
            CHECK(cudaMemset(device_y, 0xff, y_bytes));
            CHECK(cudaDeviceSynchronize());
            product(0);
            CHECK(cudaGetLastError());
            CHECK(cudaStreamSynchronize(stream));
            CHECK(cudaMemcpy(y.data(), device_y, y_bytes, cudaMemcpyDeviceToHost));
            bool right = std::all_of(y.begin(), y.begin() + tokens * n, [](float v) { return std::isfinite(v); });
            for (int t = 0; right && t < tokens && !strcmp(format.name, "q8_0"); t++)
                right = is_product(weights, &x[t * k], &y[t * n], n, k);
            if (!right) {
                fprintf(stderr, "the product of %s weights and %d tokens is wrong\n", format.name, tokens);
                return 1;
            }

            const size_t queue = std::max<size_t>(20, 4 * copies.size());
            cudaGraph_t graph;
            cudaGraphExec_t replay;
            CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
            for (size_t i = 0; i < queue; i++) product(i);
            CHECK(cudaStreamEndCapture(stream, &graph));
            CHECK(cudaGraphInstantiate(&replay, graph, 0));
            auto seconds = [&] {
                const double start = now();
                CHECK(cudaGraphLaunch(replay, stream));
                CHECK(cudaStreamSynchronize(stream));
                return (now() - start) / queue;
            };
            for (int i = 0; i < 3; i++) seconds();
            std::vector<double> times;
            for (const double end = now() + 0.25; times.size() < 5 || (now() < end && times.size() < 50);)
                times.push_back(seconds());
            std::sort(times.begin(), times.end());
            const double time = times[times.size() / 2];
            printf("candle,%s,%ld,%ld,%d,%.2f,%.1f,%.3f\n", format.name, n, k, tokens, time * 1e6,
                   weights.size() / time / 1e9, 2.0 * n * k * tokens / time / 1e12);
            fflush(stdout);
            CHECK(cudaGraphExecDestroy(replay));
            CHECK(cudaGraphDestroy(graph));
        }
        for (void *copy : copies) CHECK(cudaFree(copy));
    }
    return 0;
}
