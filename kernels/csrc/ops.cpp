// The operators of the library, over PyTorch's stable ABI: checks, and what they run on a CPU.
#include "ops.h"

#include <algorithm>
#include <vector>

#include "cpu.h"
#include "plan.h"

namespace multilora {

namespace {

// Counting sort of the rows by composition, in one pass over each; rows of -1 are left out.
void plan(const Tensor& rows, int64_t compositions, int64_t height, Tensor plan) {
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Long && rows.dim() == 1 &&
                      rows.is_contiguous() && rows.is_cpu(),
                  "rows is a contiguous int64 vector on the CPU");
  STD_TORCH_CHECK(plan.scalar_type() == ScalarType::Int && plan.is_contiguous() && plan.is_cpu(),
                  "plan is a contiguous int32 vector on the CPU");
  const int64_t capacity = (plan.numel() - 2) / 4, count = rows.numel();
  STD_TORCH_CHECK(count <= capacity, "the plan holds ", capacity, " rows, not ", count);
  STD_TORCH_CHECK(height > 0, "a unit has at least one row");
  const auto* of = static_cast<const int64_t*>(rows.data_ptr());
  auto* data = static_cast<int32_t*>(plan.data_ptr());
  int32_t *order = data + 2, *unit = order + capacity;

  std::vector<int32_t> next(compositions + 1, 0);
  for (int64_t t = 0; t < count; ++t) {
    STD_TORCH_CHECK(of[t] >= -1 && of[t] < compositions, "row ", t, " names composition ", of[t]);
    if (of[t] >= 0) ++next[of[t] + 1];
  }
  data[0] = 0;
  for (int64_t c = 0; c < compositions; ++c) {
    const int32_t first = next[c], rows_of_c = next[c + 1];
    for (int32_t done = 0; done < rows_of_c; done += height, unit += 3, ++data[0]) {
      unit[0] = c;
      unit[1] = first + done;
      unit[2] = std::min<int32_t>(height, rows_of_c - done);
    }
    next[c + 1] = first + rows_of_c;
  }
  data[1] = next[compositions];
  for (int64_t t = 0; t < count; ++t)
    if (of[t] >= 0) order[next[of[t]]++] = t;
}

void apply(Tensor y, const Tensor& x, const Tensor& table, const Tensor& columns,
           const Tensor& slots, const Tensor& weights, const Tensor& plan, int64_t) {
  check_shapes(y, x, table, columns);
  const auto* offsets = static_cast<const int64_t*>(columns.data_ptr());
  STD_TORCH_CHECK(offsets[table.size(1)] == y.size(1), "the slices fill y");
  const Linear linear{static_cast<const Descriptor*>(table.data_ptr()), table.size(0),
                      table.size(1), offsets, x.size(1)};
  const Compositions compositions{static_cast<const int32_t*>(slots.data_ptr()),
                                  static_cast<const float*>(weights.data_ptr()), slots.size(0),
                                  slots.size(1)};
  const Plan steps{static_cast<const int32_t*>(plan.data_ptr()), (plan.numel() - 2) / 4};
  const Rows rows{static_cast<char*>(y.data_ptr()), static_cast<const char*>(x.data_ptr()),
                  y.stride(0), x.stride(0), y.size(0)};
  if (y.scalar_type() == ScalarType::Float)
    apply_cpu<float>(rows, linear, compositions, steps);
  else if (y.scalar_type() == ScalarType::BFloat16)
    apply_cpu<bf16>(rows, linear, compositions, steps);
  else
    STD_TORCH_CHECK(false, "y and x are float32 or bfloat16");
}

}  // namespace

STABLE_TORCH_LIBRARY(multilora, m) {
  m.def("plan(Tensor rows, int compositions, int height, Tensor(a!) plan) -> ()");
  m.def(
      "apply_(Tensor(a!) y, Tensor x, Tensor table, Tensor columns, Tensor slots, Tensor weights, "
      "Tensor plan, int max_rank) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(multilora, CPU, m) {
  m.impl("plan", TORCH_BOX(&plan));
  m.impl("apply_", TORCH_BOX(&apply));
}

}  // namespace multilora
