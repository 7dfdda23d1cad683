// What every file that speaks to PyTorch needs of it: its stable ABI and nothing else.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace multilora {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_shapes(const Tensor& y, const Tensor& x, const Tensor& table,
                         const Tensor& columns) {
  STD_TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && y.size(0) == x.size(0), "y and x have T rows");
  STD_TORCH_CHECK(y.stride(1) == 1 && x.stride(1) == 1, "the rows of y and x are contiguous");
  STD_TORCH_CHECK(y.scalar_type() == x.scalar_type(), "y and x have one dtype");
  STD_TORCH_CHECK(table.dim() == 3 && table.is_contiguous() && table.size(2) == 3 &&
                      columns.numel() == table.size(1) + 1,
                  "the table has 3 numbers for each slot and slice");
}

}  // namespace multilora
