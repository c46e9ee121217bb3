// Greedy answers from an export, without Python.
//
//   generate MODEL.pt [MAX_NEW_TOKENS [THREADS]]
//
// Every line of standard input is a turn of one conversation: token ids with blanks between (see
// text.py for a tokenizer). The ids of its answer are written as they come, one line a turn; times
// and the tokens computed per stage go to standard error.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/runtime/graph_executor.h>
#include <torch/csrc/jit/serialization/import.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using Ids = std::vector<int64_t>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// What was raised, without the traces of LibTorch and TorchScript: behind "SomeError: " at the
// beginning of a line (quoted source is indented), or else the first line.
std::string sentence_of(const std::exception& error) {
  const auto* from_torch = dynamic_cast<const c10::Error*>(&error);
  std::istringstream lines(from_torch ? from_torch->what_without_backtrace() : error.what());
  const std::string kind = "Error: ";
  std::string line, first, raised;
  while (std::getline(lines, line)) {
    if (first.empty()) first = line;
    const size_t blank = line.find(' '), place = line.find(kind);
    if (place != std::string::npos && blank == place + kind.size() - 1) {
      raised = line.substr(place + kind.size());
    }
  }
  return raised.empty() ? first : raised;
}

// The compiled decoding step of an export of format aoti, on the state of the program around it.
class CompiledStep {
 public:
  CompiledStep(torch::jit::Module& program, const std::string& package) : program_(program) {
    std::string folder = (std::filesystem::temp_directory_path() / "lazyllm-XXXXXX").string();
    if (mkdtemp(folder.data()) == nullptr) throw std::runtime_error(folder + ": cannot be made");
    const std::string file = folder + "/decode.pt2";
    std::string fault;
    if (std::ofstream(file, std::ios::binary) << package << std::flush) {
      try {
        loader_ = std::make_unique<torch::inductor::AOTIModelPackageLoader>(file);
      } catch (const std::exception& error) {
        fault = "decode.pt2: does not load: " + sentence_of(error);
      }
    } else {
      fault = file + ": cannot be written";
    }
    std::filesystem::remove_all(folder);
    if (!fault.empty()) throw std::runtime_error(fault);
    std::unordered_map<std::string, at::Tensor> weights;
    for (const auto& named : program.named_parameters()) weights[named.name] = named.value;
    for (const auto& named : program.named_buffers()) weights[named.name] = named.value;
    std::unordered_map<std::string, at::Tensor> used;
    for (const std::string& name : loader_->get_constant_fqns()) used[name] = weights.at(name);
    loader_->load_constants(used, /*use_inactive=*/false, /*check_full_update=*/true,
                            /*user_managed=*/true);
  }

  at::Tensor operator()(const at::Tensor& ids) {
    std::vector<at::Tensor> inputs{ids};
    const c10::IValue groups = program_.get_method("begin_step")({});
    for (const c10::IValue& group : groups.toListRef()) {
      for (const at::Tensor& tensor : group.toTensorVector()) inputs.push_back(tensor);
    }
    return loader_->run(inputs).at(0);
  }

 private:
  torch::jit::Module& program_;
  std::unique_ptr<torch::inductor::AOTIModelPackageLoader> loader_;
};

class Program {
 public:
  explicit Program(const std::string& path) {
    torch::jit::ExtraFilesMap files{{"decode.pt2", ""}};
    try {
      module_ = torch::jit::load(path, std::nullopt, files);
    } catch (const std::exception& error) {
      throw std::runtime_error(path + ": expected an export: " + sentence_of(error));
    }
    if (!module_.find_method("warm_up").has_value()) {
      throw std::runtime_error(path + ": expected an export of lazyllm-ext, got another program");
    }
    module_.get_method("warm_up")({});  // what the first calls prepare
    eos_ = module_.attr("eos_token_ids").toIntVector();
    if (module_.attr("columns").toInt() > 0) {
      const std::string& package = files["decode.pt2"];
      if (package.empty()) throw std::runtime_error(path + ": decode.pt2: missing");
      step_ = std::make_unique<CompiledStep>(module_, package);
    }
  }
  Program(const Program&) = delete;  // the step refers to the module

  // The likeliest token after all that came so far and these. ids: one or more.
  int64_t next(const Ids& ids) {
    const int64_t count = static_cast<int64_t>(ids.size());
    const at::Tensor rows = at::tensor(ids, at::kLong);
    if (step_ && count == 1 && module_.get_method("fits")({}).toBool()) {
      return (*step_)(rows).argmax().item<int64_t>();
    }
    return module_.forward({rows, c10::List<int64_t>({count}), int64_t{1}})
        .toTensor()
        .argmax()
        .item<int64_t>();
  }

  bool ends(int64_t token) const { return std::count(eos_.begin(), eos_.end(), token) > 0; }

  // [S + 1] tokens whose keys and values exist in each stage.
  Ids tokens_per_stage() {
    Ids tokens;
    const c10::IValue stages = module_.get_method("computed_per_stage")({});
    for (const c10::IValue& stage : stages.toListRef()) {
      tokens.push_back(stage.toIntVector().at(0));
    }
    return tokens;
  }

  Ids revived() { return module_.get_method("revived")({}).toIntVector(); }

 private:
  torch::jit::Module module_;
  Ids eos_;
  std::unique_ptr<CompiledStep> step_;  // null without one
};

// The ids of a line. Raises std::runtime_error for anything else.
Ids read_ids(const std::string& line) {
  std::istringstream words(line);
  std::string word;
  Ids ids;
  while (words >> word) {
    size_t end = 0;
    try {
      ids.push_back(std::stoll(word, &end));
    } catch (const std::exception&) {
    }
    if (end != word.size()) {
      throw std::runtime_error("standard input: expected token ids, got '" + word + "'");
    }
  }
  return ids;
}

void print(const char* what, const Ids& counts) {
  std::fprintf(stderr, "%s", what);
  for (const int64_t count : counts) std::fprintf(stderr, " %lld", static_cast<long long>(count));
  std::fprintf(stderr, "\n");
}

// One turn: `unseen` is the last answer's last token, which no step has computed yet.
void answer(Program& program, const Ids& turn, int64_t max_new_tokens, Ids& unseen) {
  const auto start = Clock::now();
  Ids ids = unseen;
  ids.insert(ids.end(), turn.begin(), turn.end());
  const size_t prompt_tokens = ids.size();
  double first = 0.0;
  int64_t made = 0;
  do {
    const int64_t token = program.next(ids);
    if (made == 0) first = seconds_since(start);
    std::cout << (made > 0 ? " " : "") << token << std::flush;
    ids = unseen = {token};
    ++made;
  } while (made < max_new_tokens && !program.ends(unseen[0]));
  std::cout << std::endl;
  std::fprintf(stderr, "%zu tokens read, first token after %.3f s", prompt_tokens, first);
  const double decoding = seconds_since(start) - first;
  if (made > 1) std::fprintf(stderr, ", then %.1f tokens/s", (made - 1) / decoding);
  std::fprintf(stderr, "\n");
  print("tokens per stage:", program.tokens_per_stage());
  print("revived per boundary:", program.revived());
}

int64_t number_at(int argc, char** argv, int place, int64_t otherwise) {
  if (place >= argc) return otherwise;
  char* end = nullptr;
  const int64_t number = std::strtoll(argv[place], &end, 10);
  if (*end != '\0' || number < 1) {
    throw std::runtime_error(std::string("expected a number of at least 1, got '") + argv[place] +
                             "'");
  }
  return number;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 4) {
    std::fprintf(stderr, "usage: generate MODEL.pt [MAX_NEW_TOKENS [THREADS]] < IDS\n");
    return 2;
  }
  try {
    const int64_t max_new_tokens = number_at(argc, argv, 2, 64);
    if (argc > 3) at::set_num_threads(static_cast<int>(number_at(argc, argv, 3, 1)));
    // TorchScript's optimizer would compile for seconds; the operators are no business of it.
    torch::jit::GraphOptimizerEnabledGuard plain(false);
    at::NoGradGuard no_grad;
    Program program(argv[1]);
    Ids unseen;
    std::string line;
    while (std::getline(std::cin, line)) {
      const Ids turn = read_ids(line);
      if (!turn.empty()) answer(program, turn, max_new_tokens, unseen);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "generate: %s\n", sentence_of(error).c_str());
    return 1;
  }
  return 0;
}
