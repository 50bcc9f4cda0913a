// Times ggml's mul_mat on the first GPU for weights of N rows and K columns, as `cube-gguf bench --csv` prints it; with EXPERTS
// and SLOTS its mul_mat_id, for so many experts of N rows of which each token has so many.
//
// Weights rotate over copies that together exceed the last-level cache, experts of a token over random choices, and activations
// are f32, whose quantization is part of the product. A figure is the median over graphs of such products, computed one after
// the other.

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml.h"

namespace {

constexpr const char *TOKENS = "1,2,4,8";
constexpr size_t CACHE_BYTES = 256u << 20;
// Products of a figure, a graph of them at least five times.
constexpr int PRODUCTS = 400;
// Rows that are quantized; the others repeat them.
constexpr int64_t ROWS = 4;
// Random choices of experts that products rotate over.
constexpr int CHOICES = 16;

// A stack of experts, of which each token has some; none where there are no slots.
struct Experts {
    int64_t count = 1, slots = 0;
};

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::vector<float> normal(size_t count) {
    std::mt19937 random(42);
    std::normal_distribution<float> distribution;
    std::vector<float> values(count);
    std::generate(values.begin(), values.end(), [&] { return distribution(random); });
    return values;
}

// Rows of weights as the type's bytes, `n` of them.
std::vector<uint8_t> weights(ggml_type type, int64_t n, int64_t k) {
    const auto values = normal(ROWS * k);
    const std::vector<float> importance(k, 1.0f);
    const size_t row = ggml_row_size(type, k);
    std::vector<uint8_t> rows(ROWS * row), all(n * row);
    if (type == GGML_TYPE_F16) {
        ggml_fp32_to_fp16_row(values.data(), reinterpret_cast<ggml_fp16_t *>(rows.data()), values.size());
    } else if (type == GGML_TYPE_BF16) {
        ggml_fp32_to_bf16_row(values.data(), reinterpret_cast<ggml_bf16_t *>(rows.data()), values.size());
    } else {
        ggml_quantize_chunk(type, values.data(), rows.data(), 0, ROWS, k, importance.data());
    }
    for (int64_t i = 0; i < n; i++) {
        std::copy_n(&rows[i % ROWS * row], row, &all[i * row]);
    }
    return all;
}

// Experts of each token, no two of them the same.
std::vector<int32_t> choice(Experts experts, int64_t tokens, std::mt19937 &random) {
    std::vector<int32_t> all(experts.count), ids;
    std::iota(all.begin(), all.end(), 0);
    for (int64_t token = 0; token < tokens; token++) {
        std::shuffle(all.begin(), all.end(), random);
        ids.insert(ids.end(), all.begin(), all.begin() + experts.slots);
    }
    return ids;
}

// The words between commas.
std::vector<std::string> split(const std::string &list) {
    std::vector<std::string> words;
    std::stringstream stream(list);
    for (std::string word; std::getline(stream, word, ',');) {
        words.push_back(word);
    }
    return words;
}

std::string lower(std::string word) {
    std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
    return word;
}

void time_products(ggml_backend_t gpu, ggml_type type, int64_t n, int64_t k, Experts experts,
                   const std::vector<int64_t> &tokens_of_products) {
    const auto bytes = weights(type, n * experts.count, k);
    const int copies = std::max<int>(2, CACHE_BYTES / bytes.size() + 1);
    const int choices = experts.slots > 0 ? CHOICES : 0;
    const int products = std::max(4, choices) * copies;
    const int runs = std::max(5, PRODUCTS / products);
    for (const int64_t tokens : tokens_of_products) {
        const size_t room =
            ggml_tensor_overhead() * (copies + choices + products + 8) + ggml_graph_overhead_custom(2 * products, false);
        ggml_context *context = ggml_init({room, nullptr, true});
        std::vector<ggml_tensor *> matrices;
        for (int i = 0; i < copies; i++) {
            matrices.push_back(ggml_new_tensor_3d(context, type, k, n, experts.count));
        }
        std::vector<ggml_tensor *> ids;
        for (int i = 0; i < choices; i++) {
            ids.push_back(ggml_new_tensor_2d(context, GGML_TYPE_I32, experts.slots, tokens));
        }
        ggml_tensor *x = choices > 0 ? ggml_new_tensor_3d(context, GGML_TYPE_F32, k, 1, tokens)
                                     : ggml_new_tensor_2d(context, GGML_TYPE_F32, k, tokens);
        ggml_cgraph *graph = ggml_new_graph_custom(context, 2 * products, false);
        bool supported = true;
        for (int i = 0; i < products; i++) {
            ggml_tensor *matrix = matrices[i % copies];
            ggml_tensor *product = choices > 0 ? ggml_mul_mat_id(context, matrix, x, ids[i / copies % choices])
                                               : ggml_mul_mat(context, matrix, x);
            supported = supported && ggml_backend_supports_op(gpu, product);
            ggml_build_forward_expand(graph, product);
        }
        if (supported) {
            ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, gpu);
            for (ggml_tensor *matrix : matrices) {
                ggml_backend_tensor_set(matrix, bytes.data(), 0, bytes.size());
            }
            std::mt19937 random(42);
            size_t named = 0;
            for (ggml_tensor *of_choice : ids) {
                const auto chosen = choice(experts, tokens, random);
                named += std::set<int32_t>(chosen.begin(), chosen.end()).size();
                ggml_backend_tensor_set(of_choice, chosen.data(), 0, chosen.size() * sizeof(int32_t));
            }
            // The weights that a product reads, and the rows that it computes.
            const double read = choices > 0 ? double(bytes.size()) * named / choices / experts.count : bytes.size();
            const double rows = double(n) * tokens * std::max<int64_t>(experts.slots, 1);
            const auto values = normal(k * tokens);
            ggml_backend_tensor_set(x, values.data(), 0, values.size() * sizeof(float));
            std::vector<double> times;
            for (int run = -3; run < runs; run++) {
                const double begin = seconds();
                ggml_backend_graph_compute(gpu, graph);
                ggml_backend_synchronize(gpu);
                if (run >= 0) {
                    times.push_back((seconds() - begin) / products);
                }
            }
            std::nth_element(times.begin(), times.begin() + runs / 2, times.end());
            const double time = times[runs / 2];
            std::printf("llama.cpp,%s,%lld,%lld,%lld,%.2f,%.1f,%.2f\n", ggml_type_name(type), (long long)n, (long long)k,
                        (long long)tokens, time * 1e6, read / time / 1e9, 2.0 * rows * k / time / 1e12);
            std::fflush(stdout);
            ggml_backend_buffer_free(buffer);
        }
        ggml_free(context);
    }
}

} // namespace

int main(int argc, char **argv) {
    const int64_t n = argc > 2 ? std::atoll(argv[1]) : 0, k = argc > 2 ? std::atoll(argv[2]) : 0;
    Experts experts;
    if (argc > 6) {
        experts = {std::atoll(argv[5]), std::atoll(argv[6])};
    }
    if (n < 1 || k < 256 || k % 256 != 0 || experts.count < std::max<int64_t>(experts.slots, 1)) {
        std::fprintf(stderr, "usage: llama_cpp N K [TOKENS [TYPES [EXPERTS SLOTS]]], for N x K weights; K is a multiple of 256\n");
        return 2;
    }
    ggml_backend_load_all();
    ggml_backend_t gpu = ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_GPU, nullptr);
    if (gpu == nullptr) {
        std::fprintf(stderr, "llama.cpp finds no GPU\n");
        return 1;
    }
    std::vector<int64_t> tokens;
    for (const std::string &count : split(argc > 3 ? argv[3] : TOKENS)) {
        tokens.push_back(std::max(1ll, std::atoll(count.c_str())));
    }
    const auto types = split(argc > 4 ? argv[4] : "");
    std::printf("engine,type,n,k,tokens,us,gbps_weights,tflops\n");
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const auto type = static_cast<ggml_type>(i);
        const bool is_float = type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
        // Activations are stored as Q8_1 and Q8_K, weights are not.
        const bool is_for_activations = type == GGML_TYPE_Q8_1 || type == GGML_TYPE_Q8_K;
        const bool is_wanted = types.empty() || std::count(types.begin(), types.end(), lower(ggml_type_name(type))) > 0;
        if (is_wanted && (is_float || (ggml_is_quantized(type) && !is_for_activations))) {
            time_products(gpu, type, n, k, experts, tokens);
        }
    }
    ggml_backend_free(gpu);
}
