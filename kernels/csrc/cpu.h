// The driver of the CPU kernels: what it is given.
#pragma once

#include "kernels.h"
#include "plan.h"

namespace multilora {

// A linear of the model: descriptors [slots][slices]; slice s is columns [offsets[s], offsets[s+1]).
struct Linear {
  const Descriptor* table;
  int64_t num_slots, num_slices;
  const int64_t* offsets;
  int64_t inputs;
};

// Parts [count][width]: the slot of each, -1 behind the last, and its weight.
struct Compositions {
  const int32_t* slots;
  const float* weights;
  int64_t count, width;
};

struct Rows {
  char* y;
  const char* x;
  int64_t y_stride, x_stride, count;  // strides in elements
};

template <class T>
void apply_cpu(const Rows& rows, const Linear& linear, const Compositions& compositions,
               const Plan& plan);

}  // namespace multilora
