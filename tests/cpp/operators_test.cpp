// The operators in a program without Python: loads the library, calls each through the dispatcher.
//
//   operators_test <path of liblazyllm_ops.so>

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <tuple>

namespace {

using at::Tensor;

int failures = 0;

void expect(bool holds, const char* what) {
  std::printf("%s: %s\n", holds ? "ok" : "FAILED", what);
  failures += !holds;
}

void expect_error(const std::function<void()>& call, const std::string& sentence) {
  std::string said = "nothing";
  try {
    call();
  } catch (const std::exception& error) {
    said = error.what();
  }
  expect(said.find(sentence) != std::string::npos, sentence.c_str());
  if (said.find(sentence) == std::string::npos) std::printf("  said: %s\n", said.c_str());
}

template <class Function>
auto op(const char* name) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string("lazyllm::") + name).c_str(), "")
      .typed<Function>();
}

Tensor longs(std::initializer_list<int64_t> values) {
  return at::tensor(at::ArrayRef<int64_t>(values), at::kLong);
}

void test_aux_rows() {
  const auto gather = op<Tensor(const Tensor&, const Tensor&)>("aux_gather");
  const auto scatter = op<void(Tensor&, const Tensor&, const Tensor&)>("aux_scatter_");
  const Tensor source = at::arange(12, at::kFloat).view({4, 3});
  const Tensor rows = gather.call(source, longs({2, -1, 0}));
  const Tensor expected = at::stack({source[2], at::zeros({3}), source[0]});
  expect(rows.equal(expected), "aux_gather takes rows, zeros for -1");

  Tensor destination = at::zeros({4, 3});
  scatter.call(destination, longs({2, -1, 0}), rows);
  expect(destination[2].equal(source[2]) && destination[0].equal(source[0]) &&
             destination[1].sum().item<float>() == 0,
         "aux_scatter_ puts rows, skips -1");
  expect_error([&] { gather.call(source, longs({4})); },
               "lazyllm::aux_gather: index: expected -1 to 3, got 4");
  expect_error([&] { gather.call(source, at::zeros({1}, at::kInt)); },
               "lazyllm::aux_gather: index: expected int64, got int32");
  expect_error([&] { gather.call(at::ones({4, 3}).requires_grad_(), longs({1})); },
               "lazyllm::aux_gather: inference only: source requires grad");
}

void test_select_tokens() {
  const auto select = op<std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
      c10::SymInt, int64_t, int64_t, int64_t, bool)>("select_tokens");
  const Tensor importance = at::tensor({0.1f, 0.5f, NAN, 0.5f, 0.2f, 0.9f}).view({1, 6});
  const auto [indices, selected] =
      select.call(importance, longs({6}), longs({0, 1, 2, 3, 4, 5}), longs({0, 6}), longs({3}),
                  longs({0, 4}), 4, 1, 1, 0, true);
  expect(indices.equal(longs({0, 1, 5, -1})), "select_tokens: protected, best, lower of a tie");
  expect(selected.equal(longs({3})), "select_tokens counts");
}

void test_attention() {
  const Tensor query = at::ones({1, 2, 8}), keys = at::ones({3, 1, 8});
  const Tensor values = at::arange(3, at::kFloat).view({3, 1, 1}).expand({3, 1, 8}).contiguous();
  const Tensor index = longs({0, 1, 2}), offsets = longs({0, 3});
  Tensor key_store = at::zeros({5, 1, 8}), value_store = at::zeros({5, 1, 8});
  const Tensor slots = longs({4, 1, 2});
  op<void(Tensor&, Tensor&, const Tensor&, const Tensor&, const Tensor&)>("kv_append_")
      .call(key_store, value_store, slots, keys, values);
  expect(value_store.select(2, 0).view({5}).equal(at::tensor({0.f, 1.f, 2.f, 0.f, 0.f})),
         "kv_append_ stores by slot");

  const Tensor output =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&, const Tensor&, const Tensor&, double, int64_t, double)>(
          "lazy_attention")
          .call(query, longs({1}), longs({0, 1}), key_store, value_store, slots, index, offsets,
                1.0, 0, 0.0);
  expect(output.allclose(at::full({1, 2, 8}, 0.5)), "lazy_attention: the mean of what is seen");

  const Tensor importance =
      op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                const Tensor&, const Tensor&, double, double)>("token_importance")
          .call(query, longs({1}), longs({0, 1}), key_store, slots, index, offsets, 1.0, 0.0);
  expect(importance.allclose(at::tensor({0.5f, 0.5f, 0.f})), "token_importance: equal shares");
}

void test_gated_activation() {
  const auto gated = op<Tensor(const Tensor&, const Tensor&, c10::string_view)>("gated_activation");
  const Tensor gate = at::tensor({-1.f, 2.f}).view({1, 2}),
               up = at::tensor({3.f, 4.f}).view({1, 2});
  expect(gated.call(gate, up, "silu").allclose(at::silu(gate) * up), "gated_activation: silu");
  expect_error([&] { gated.call(gate, up, "relu"); },
               "lazyllm::gated_activation: activation: expected");
}

void test_rms_norm() {
  const auto rms_norm = op<Tensor(const Tensor&, const Tensor&, double, double)>("rms_norm");
  const Tensor x = at::tensor({3.f, 4.f}).view({1, 2}), weight = at::tensor({1.f, 2.f});
  const Tensor normed = rms_norm.call(x, weight, 0.0, 1.0).view({2}) * std::sqrt(12.5f);
  expect(normed.allclose(at::tensor({6.f, 12.f})), "rms_norm: over the root mean square");
  expect_error([&] { rms_norm.call(x, at::ones({3}), 0.0, 0.0); },
               "lazyllm::rms_norm: weight: expected");
}

void test_rotate() {
  const auto rotate = op<Tensor(const Tensor&, const Tensor&, const Tensor&, bool)>("rotate");
  const Tensor x = at::arange(5, at::kFloat).view({1, 1, 5});  // two pairs, and one to be copied
  const Tensor cos = at::zeros({1, 2}), sin = at::ones({1, 2});
  expect(rotate.call(x, cos, sin, false).view({5}).equal(at::tensor({-2.f, -3.f, 0.f, 1.f, 4.f})),
         "rotate: halves by a right angle");
  expect(rotate.call(x, cos, sin, true).view({5}).equal(at::tensor({-1.f, -3.f, 0.f, 2.f, 4.f})),
         "rotate: neighbours by a right angle");
  expect_error([&] { rotate.call(x, at::zeros({1, 3}), at::zeros({1, 3}), false); },
               "lazyllm::rotate: cos: expected at most 2 in dimension 1, got 3");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) == nullptr) {
    std::fprintf(stderr, "usage: operators_test <library>; %s\n", dlerror());
    return 2;
  }
  test_aux_rows();
  at::NoGradGuard no_grad;
  test_select_tokens();
  test_attention();
  test_gated_activation();
  test_rms_norm();
  test_rotate();
  return failures == 0 ? 0 : 1;
}
