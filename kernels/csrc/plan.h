// The plan of one step: its rows sorted by composition, and cut into units of bounded height.
//
// It is one int32 tensor of 2 + 4 * capacity elements, so that a single copy takes it to a device:
//   [units, sorted rows, order[capacity], {composition, first, rows}[capacity]]
// `first` counts in `order`; the rows of a unit are order[first .. first + rows).
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MULTILORA_ANYWHERE __host__ __device__
#else
#define MULTILORA_ANYWHERE
#endif

namespace multilora {

struct Unit {
  int32_t composition, first, rows;
};

struct Plan {
  const int32_t* data;
  int64_t capacity;

  MULTILORA_ANYWHERE int32_t num_units() const { return data[0]; }
  MULTILORA_ANYWHERE int32_t num_rows() const { return data[1]; }
  MULTILORA_ANYWHERE const int32_t* order() const { return data + 2; }
  MULTILORA_ANYWHERE Unit unit(int64_t u) const {
    const int32_t* at = data + 2 + capacity + 3 * u;
    return {at[0], at[1], at[2]};
  }
};

// A descriptor, one per (slot, slice) of a linear: where its packed matrices are, and their rank.
struct Descriptor {
  int64_t a, b, rank;
};

}  // namespace multilora
