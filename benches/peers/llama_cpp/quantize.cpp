// Times ggml's quantizers on N rows of K values, on all cores, as `cube-gguf bench --op quantize --csv` prints it.

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "ggml.h"

namespace {

constexpr size_t REPEATS = 5;
// Some searches take a minute: these are not repeated.
constexpr double SECONDS = 5;

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

std::string upper(std::string name) {
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
    return name;
}

ggml_type type_of(const std::string &name) {
    for (int type = 0; type < GGML_TYPE_COUNT; ++type) {
        const char *known = ggml_type_name(ggml_type(type));
        if (known && upper(known) == upper(name)) return ggml_type(type);
    }
    std::fprintf(stderr, "no type %s\n", name.c_str());
    std::exit(2);
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        std::fprintf(stderr, "usage: quantize N K TYPES\n");
        return 2;
    }
    const int64_t n = std::atoll(argv[1]), k = std::atoll(argv[2]);
    const int64_t count = std::max(1u, std::thread::hardware_concurrency());
    std::vector<float> values(n * k);
    std::mt19937 random(42);
    std::normal_distribution<float> distribution;
    std::generate(values.begin(), values.end(), [&] { return distribution(random); });
    std::fprintf(stderr, "%lld threads\n", (long long)count);
    std::puts("engine,type,n,k,tokens,us,gbps_weights,tflops");
    std::stringstream names(argv[3]);
    for (std::string name; std::getline(names, name, ',');) {
        const ggml_type type = type_of(name);
        const size_t row = ggml_row_size(type, k);
        std::vector<uint8_t> out(n * row);
        ggml_quantize_init(type);
        // Some types take importances: columns are as important as each other.
        const std::vector<float> importance(ggml_quantize_requires_imatrix(type) ? k : 0, 1.0f);
        const float *columns = importance.empty() ? nullptr : importance.data();
        std::vector<double> times;
        const double begin = seconds();
        while (times.empty() || (times.size() < REPEATS && seconds() - begin < SECONDS)) {
            const double start = seconds();
            std::vector<std::thread> threads;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t first = n * i / count, last = n * (i + 1) / count;
                threads.emplace_back([&, first, last] {
                    ggml_quantize_chunk(type, values.data(), out.data(), first * k, last - first, k, columns);
                });
            }
            for (auto &thread : threads) thread.join();
            times.push_back(seconds() - start);
        }
        std::sort(times.begin(), times.end());
        const double median = times[times.size() / 2];
        const double bytes = double(n) * k * sizeof(float) + double(n) * row;
        std::printf("llama.cpp,%s,%lld,%lld,0,%.2f,%.1f,0.0\n", name.c_str(), (long long)n, (long long)k, median * 1e6,
                    bytes / median / 1e9);
    }
}
