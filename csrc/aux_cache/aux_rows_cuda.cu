// aux_gather and aux_scatter_ on CUDA: whole rows are copied, 16 bytes a load where aligned.

#include "../cuda/launch.cuh"
#include "../cuda/sequences.cuh"
#include "../cuda/words.cuh"
#include "aux_rows.h"

namespace lazyllm {
namespace cuda {
namespace {

/// \brief result[r] = source[index[r]], zeros where the index is unused or out of range.
///
/// Grid (blocks of rows); block (threads of a row, rows).
/// op.from [num_stored, words] with from_stride, op.to [count, words] with to_stride
/// \tparam Word what one load moves
template <typename Word>
__global__ void __launch_bounds__(kCopyThreads)
    aux_gather_kernel(const AuxRowsParams op, int64_t words) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= op.count) return;
  const int64_t stored = op.index[row];
  Word* to = reinterpret_cast<Word*>(op.to + row * op.to_stride);
  if (is_used(stored, op.num_stored)) {
    const Word* from = reinterpret_cast<const Word*>(op.from + stored * op.from_stride);
    copy_row<Word>(words, [&](int64_t i) { return from + i; }, [&](int64_t i) { return to + i; });
  } else {
    for (int64_t i = threadIdx.x; i < words; i += blockDim.x) to[i] = Word{};
  }
}

/// \brief destination[index[r]] = rows[r], but for indices that are unused or out of range.
///
/// Grid (blocks of rows); block (threads of a row, rows).
/// op.from [count, words] with from_stride, op.to [num_stored, words] with to_stride
/// \tparam Word what one load moves
template <typename Word>
__global__ void __launch_bounds__(kCopyThreads)
    aux_scatter_kernel(const AuxRowsParams op, int64_t words) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= op.count) return;
  const int64_t stored = op.index[row];
  if (!is_used(stored, op.num_stored)) return;
  const Word* from = reinterpret_cast<const Word*>(op.from + row * op.from_stride);
  Word* to = reinterpret_cast<Word*>(op.to + stored * op.to_stride);
  copy_row<Word>(words, [&](int64_t i) { return from + i; }, [&](int64_t i) { return to + i; });
}

/// Calls visitor(word, words of a row, grid, block) if there is anything to copy.
template <typename Visitor>
void visit_rows(const AuxRowsParams& op, Visitor visitor) {
  if (op.count == 0 || op.row_bytes == 0) return;
  visit_word({op.from, op.to}, {op.row_bytes, op.from_stride, op.to_stride}, [&](auto word) {
    const int64_t words = op.row_bytes / static_cast<int64_t>(sizeof(word));
    const dim3 block = copy_block(words);
    visitor(word, words, dim3(num_blocks(op.count, block.y)), block);
  });
}

}  // namespace
}  // namespace cuda

void aux_gather_cuda(const AuxRowsParams& op) {
  const cuda::Launcher launcher("aux_gather", op.device);
  cuda::visit_rows(op, [&](auto word, int64_t words, dim3 grid, dim3 block) {
    launcher.launch(cuda::aux_gather_kernel<decltype(word)>, grid, block, 0, op, words);
  });
}

void aux_scatter_cuda(const AuxRowsParams& op) {
  const cuda::Launcher launcher("aux_scatter_", op.device);
  cuda::visit_rows(op, [&](auto word, int64_t words, dim3 grid, dim3 block) {
    launcher.launch(cuda::aux_scatter_kernel<decltype(word)>, grid, block, 0, op, words);
  });
}

}  // namespace lazyllm
