// Runs a whole model with llama.cpp: greedy tokens, logits, speeds and token ids, as JSON lines, as a peer of ours.
//
// NGL is how many layers the first GPU gets, negative for all; 0 keeps everything from any GPU. Token ids are taken as they
// are: only `tokenize` adds the beginning of the text. FLASH is 1 for flash attention, 0 otherwise, which is its default.
// `floats` writes a model's weights as f32, as ggml dequantizes them; `exact` is `logits` on the CPU with keys and values as
// f32, too, so that of a model of floats nothing is rounded to less.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <limits>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "llama.h"

#include "ggml-backend.h"
#include "gguf.h"
#include "nlohmann/json.hpp"

namespace {

using json = nlohmann::ordered_json;
using tokens_t = std::vector<llama_token>;
using model_t = std::unique_ptr<llama_model, decltype(&llama_model_free)>;
using context_t = std::unique_ptr<llama_context, decltype(&llama_free)>;
using file_t = std::unique_ptr<gguf_context, decltype(&gguf_free)>;
using tensors_t = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

constexpr const char *USAGE = "usage: text greedy MODEL N THREADS NGL [FLASH] < ids.jsonl"
                              " | text logits MODEL OUT THREADS NGL CONTEXT [FLASH] < ids.jsonl"
                              " | text exact MODEL OUT THREADS CONTEXT < ids.jsonl"
                              " | text floats MODEL OUT"
                              " | text speed MODEL PROMPT_TOKENS NEW_TOKENS THREADS NGL REPEATS [FLASH]"
                              " | text tokenize MODEL < text";
constexpr size_t BATCH = 512;
// llama-bench's, so that its speeds and these are the same.
constexpr size_t SPEED_BATCH = 2048;

// llama.cpp's first error, which says more than those that follow from it.
std::string first_error;

void log(ggml_log_level level, const char *text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && first_error.empty()) {
        first_error = text;
        first_error.erase(first_error.find_last_not_of('\n') + 1);
    }
}

[[noreturn]] void fail(const std::string &what) {
    throw std::runtime_error(what);
}

[[noreturn]] void llama_fails(const std::string &what) {
    fail(first_error.empty() ? what : what + ": " + first_error);
}

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int number(const char *text, int least, int most = std::numeric_limits<int>::max()) {
    char *end;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < least || value > most) {
        fail(std::string("not a number that fits here: ") + text);
    }
    return value;
}

void print(const json &object) {
    std::printf("%s\n", object.dump().c_str());
    std::fflush(stdout);
}

std::vector<tokens_t> read_ids() {
    std::vector<tokens_t> lines;
    for (std::string line; std::getline(std::cin, line);) {
        lines.push_back(json::parse(line).get<tokens_t>());
        if (lines.back().empty()) {
            fail("line " + std::to_string(lines.size()) + " has no tokens");
        }
    }
    return lines;
}

model_t load(const char *path, int gpu_layers, bool only_vocabulary) {
    // Without one, llama.cpp would take the CPU and say nothing.
    if (gpu_layers != 0 && ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_GPU) == nullptr) {
        fail("llama.cpp finds no GPU");
    }
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = gpu_layers;
    // With a GPU in reach, llama.cpp would compute long prompts on it even for no layers.
    params.split_mode = LLAMA_SPLIT_MODE_NONE;
    params.main_gpu = gpu_layers == 0 ? -1 : 0;
    params.vocab_only = only_vocabulary;
    model_t model(llama_model_load_from_file(path, params), llama_model_free);
    if (!model) {
        llama_fails(std::string("cannot load ") + path);
    }
    return model;
}

context_t start(const model_t &model, size_t tokens, size_t batch, int threads, bool flash,
                ggml_type cache = GGML_TYPE_F16) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = tokens;
    params.n_batch = batch;
    params.n_ubatch = BATCH;
    params.n_threads = params.n_threads_batch = threads;
    params.type_k = params.type_v = cache;
    params.flash_attn_type = flash ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
    // As llama-bench does: layers of a sliding window keep that window alone.
    params.swa_full = false;
    context_t context(llama_init_from_model(model.get(), params), llama_free);
    if (!context) {
        llama_fails("cannot start a context");
    }
    return context;
}

void clear(const context_t &context) {
    llama_memory_clear(llama_get_memory(context.get()), false);
}

// Decodes tokens after those before them. All their logits are kept where `outputs` says so, otherwise the last one's.
void decode(const context_t &context, llama_token *tokens, size_t count, int8_t *outputs = nullptr) {
    llama_batch batch = llama_batch_get_one(tokens, count);
    batch.logits = outputs;
    const int status = llama_decode(context.get(), batch);
    if (status != 0) {
        llama_fails("llama_decode answers " + std::to_string(status));
    }
}

void decode_all(const context_t &context, tokens_t &tokens, size_t batch) {
    for (size_t i = 0; i < tokens.size(); i += batch) {
        decode(context, &tokens[i], std::min(batch, tokens.size() - i));
    }
}

const float *last_logits(const context_t &context) {
    const float *logits = llama_get_logits_ith(context.get(), -1);
    if (logits == nullptr) {
        llama_fails("llama.cpp has no logits");
    }
    return logits;
}

// The token of the highest logit, the lowest such token of equals. Most blocks only take a comparison that the compiler
// vectorizes, as the scan would otherwise take much of a small model's time on a GPU.
llama_token choose(const float *logits, int vocabulary) {
    constexpr int BLOCK = 1024;
    int top = 0;
    for (int begin = 0; begin < vocabulary; begin += BLOCK) {
        const int end = std::min(begin + BLOCK, vocabulary);
        const float bound = logits[top];
        int higher = 0;
        for (int i = begin; i < end; i++) {
            higher |= logits[i] > bound;
        }
        if (higher) {
            top = std::max_element(logits + begin, logits + end) - logits;
        }
    }
    if (!std::isfinite(logits[top])) {
        fail("the logits are not finite");
    }
    return top;
}

// By how much a token's logit exceeds the highest of the others.
float margin(const float *logits, int vocabulary, llama_token token) {
    float second = -std::numeric_limits<float>::infinity();
    for (int i = 0; i < vocabulary; i++) {
        if (i != token) {
            second = std::max(second, logits[i]);
        }
    }
    return logits[token] - second;
}

void greedy(const char *path, int count, int threads, int gpu_layers, bool flash) {
    auto prompts = read_ids();
    const model_t model = load(path, gpu_layers, false);
    const llama_vocab *vocab = llama_model_get_vocab(model.get());
    const int vocabulary = llama_vocab_n_tokens(vocab);
    size_t longest = 0;
    for (const auto &prompt : prompts) {
        longest = std::max(longest, prompt.size());
    }
    const context_t context = start(model, longest + count, BATCH, threads, flash);
    for (auto &prompt : prompts) {
        clear(context);
        decode_all(context, prompt, BATCH);
        tokens_t tokens;
        std::vector<float> margins;
        while (true) {
            const float *logits = last_logits(context);
            llama_token token = choose(logits, vocabulary);
            if (llama_vocab_is_eog(vocab, token)) {
                break;
            }
            tokens.push_back(token);
            margins.push_back(margin(logits, vocabulary, token));
            if (tokens.size() == size_t(count)) {
                break;
            }
            decode(context, &token, 1);
        }
        print({{"prompt", prompt}, {"tokens", tokens}, {"margins", margins}});
    }
}

void write_logits(const char *path, const char *out, int threads, int gpu_layers, int context_tokens, bool flash,
                  ggml_type cache = GGML_TYPE_F16) {
    auto lines = read_ids();
    for (const auto &line : lines) {
        if (line.size() > size_t(context_tokens)) {
            fail("a line has more tokens than the context");
        }
    }
    const model_t model = load(path, gpu_layers, false);
    const size_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model.get()));
    const context_t context = start(model, context_tokens, BATCH, threads, flash, cache);
    std::vector<int8_t> outputs(BATCH, 1);
    std::ofstream file(out, std::ios::binary);
    for (auto &line : lines) {
        clear(context);
        for (size_t i = 0; i < line.size(); i += BATCH) {
            const size_t count = std::min(BATCH, line.size() - i);
            decode(context, &line[i], count, outputs.data());
            const auto *logits = reinterpret_cast<const char *>(llama_get_logits(context.get()));
            if (logits == nullptr || !file.write(logits, count * vocabulary * sizeof(float)).flush()) {
                fail(std::string("cannot write ") + out);
            }
        }
        print({{"tokens", line.size()}, {"vocabulary", vocabulary}});
    }
}

void write_floats(const char *path, const char *out) {
    ggml_context *read = nullptr;
    const file_t file(gguf_init_from_file(path, {false, &read}), gguf_free);
    const tensors_t tensors(read, ggml_free);
    if (!file) {
        llama_fails(std::string("cannot read ") + path);
    }
    const file_t floats(gguf_init_empty(), gguf_free);
    gguf_set_kv(floats.get(), file.get());
    std::vector<std::vector<float>> values;
    for (ggml_tensor *tensor = ggml_get_first_tensor(read); tensor != nullptr; tensor = ggml_get_next_tensor(read, tensor)) {
        // With the data themselves there is one tensor more, of bytes, which the file does not name.
        if (gguf_find_tensor(file.get(), tensor->name) < 0) {
            continue;
        }
        gguf_add_tensor(floats.get(), tensor);
        const auto to_float = ggml_get_type_traits(tensor->type)->to_float;
        if (tensor->type == GGML_TYPE_F32 || to_float == nullptr) {
            continue;
        }
        values.emplace_back(ggml_nelements(tensor));
        to_float(tensor->data, values.back().data(), values.back().size());
        gguf_set_tensor_type(floats.get(), tensor->name, GGML_TYPE_F32);
        gguf_set_tensor_data(floats.get(), tensor->name, values.back().data());
    }
    if (!gguf_write_to_file(floats.get(), out, false)) {
        fail(std::string("cannot write ") + out);
    }
}

// The least and the median of times, in this order.
std::pair<double, double> summary(std::vector<double> times) {
    std::sort(times.begin(), times.end());
    const size_t half = times.size() / 2;
    return {times[0], times.size() % 2 == 1 ? times[half] : (times[half - 1] + times[half]) / 2};
}

void speed(const char *path, int prompt_tokens, int new_tokens, int threads, int gpu_layers, int runs, bool flash) {
    const model_t model = load(path, gpu_layers, false);
    const llama_vocab *vocab = llama_model_get_vocab(model.get());
    const int vocabulary = llama_vocab_n_tokens(vocab);
    const context_t context = start(model, std::max(prompt_tokens, new_tokens), SPEED_BATCH, threads, flash);
    // Not std::uniform_int_distribution, whose values differ among standard libraries.
    std::mt19937 random(42);
    tokens_t prompt(prompt_tokens);
    std::generate(prompt.begin(), prompt.end(), [&] { return llama_token(random() % vocabulary); });
    if (llama_vocab_get_add_bos(vocab)) {
        prompt[0] = llama_vocab_bos(vocab);
    }
    std::vector<double> prompts, firsts, generations;
    for (int run = -1; run < runs; run++) {
        clear(context);
        const double begin = seconds();
        decode_all(context, prompt, SPEED_BATCH);
        llama_synchronize(context.get());
        const double prompt_end = seconds();
        choose(last_logits(context), vocabulary);
        const double first = seconds();

        clear(context);
        llama_token token = prompt[0];
        const double generation = seconds();
        for (int i = 0; i < new_tokens; i++) {
            decode(context, &token, 1);
            token = choose(last_logits(context), vocabulary);
        }
        if (run >= 0) {
            prompts.push_back(prompt_end - begin);
            firsts.push_back(first - begin);
            generations.push_back(seconds() - generation);
        }
    }
    const auto [prompt_best, prompt_median] = summary(prompts);
    const auto [first_best, first_median] = summary(firsts);
    const auto [generation_best, generation_median] = summary(generations);
    const auto kind = gpu_layers == 0 ? GGML_BACKEND_DEVICE_TYPE_CPU : GGML_BACKEND_DEVICE_TYPE_GPU;
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(kind);
    print({{"prompt_tokens_per_second", prompt_tokens / prompt_median},
           {"tokens_per_second", new_tokens / generation_median},
           {"first_token_seconds", first_median},
           {"prompt", {{"best", prompt_tokens / prompt_best}, {"median", prompt_tokens / prompt_median}}},
           {"generation", {{"best", new_tokens / generation_best}, {"median", new_tokens / generation_median}}},
           {"first", {{"best", first_best}, {"median", first_median}}},
           {"runs", runs},
           {"device", device == nullptr ? "unknown" : ggml_backend_dev_description(device)}});
}

void tokenize(const char *path) {
    const std::string text{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
    const model_t model = load(path, 0, true);
    const llama_vocab *vocab = llama_model_get_vocab(model.get());
    // Without room, the answer is the count negated.
    tokens_t tokens(-llama_tokenize(vocab, text.data(), text.size(), nullptr, 0, true, true));
    llama_tokenize(vocab, text.data(), text.size(), tokens.data(), tokens.size(), true, true);
    print(tokens);
}

void run(int argc, char **argv) {
    const std::string command = argc > 2 ? argv[1] : "";
    // The last argument may be left out.
    const auto flash = [&](int index) { return argc == index + 1 && number(argv[index], 0, 1) == 1; };
    const auto has = [&](const char *name, int arguments) {
        return command == name && (argc == arguments || argc == arguments + 1);
    };
    constexpr int ANY = std::numeric_limits<int>::min();
    if (has("greedy", 6)) {
        greedy(argv[2], number(argv[3], 1), number(argv[4], 1), number(argv[5], ANY), flash(6));
    } else if (has("logits", 7)) {
        write_logits(argv[2], argv[3], number(argv[4], 1), number(argv[5], ANY), number(argv[6], 1), flash(7));
    } else if (command == "exact" && argc == 6) {
        write_logits(argv[2], argv[3], number(argv[4], 1), 0, number(argv[5], 1), false, GGML_TYPE_F32);
    } else if (command == "floats" && argc == 4) {
        write_floats(argv[2], argv[3]);
    } else if (has("speed", 8)) {
        speed(argv[2], number(argv[3], 1), number(argv[4], 1), number(argv[5], 1), number(argv[6], ANY), number(argv[7], 1),
              flash(8));
    } else if (command == "tokenize" && argc == 3) {
        tokenize(argv[2]);
    } else {
        fail(USAGE);
    }
}

} // namespace

int main(int argc, char **argv) {
    llama_log_set(log, nullptr);
    llama_backend_init();
    try {
        run(argc, argv);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 2;
    }
}
