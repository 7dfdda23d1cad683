// What every file that speaks to PyTorch needs of it: its stable ABI and nothing else.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace multilora {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

}  // namespace multilora
