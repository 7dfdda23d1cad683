// From s = A x in shared memory to y += B s, with B and y on their way before they are needed.
#pragma once

#include "work.cuh"

namespace multilora {
namespace {

// The outputs of a warp in one slice, for sixteen rows of a unit.  B and y come RING steps before
// their use; each lane copies what it will need itself, so it has nobody but its copies to wait for.
struct Expansion {
  static constexpr int SLOTS = ABREAST * 2;  // of a step in B, and of a panel in y

  const Step* steps;
  int count;                    // of them for each panel
  Range panels;                 // from the warp's first on
  int stride;                   // to the next of the warp's
  __nv_bfloat16* y[2];          // the lane's two rows of the slice, null where the tile has fewer
  int columns;
  uint4* ring;                  // [RING][SLOTS] of B, then [2][SLOTS] of y, for each thread
  int panel, k = 0, place = 0;  // of the next copy
  int y_place = 0;

  __device__ Expansion(const Call& call, const Work& work, const Found& found, int slice,
                       int first_row, Range panels, int stride, uint4* ring)
      : panels(panels), stride(stride), ring(ring), panel(panels.first) {
    const Lane lane;
    const int first = found.first[slice - work.first_slice];
    steps = found.steps + first;
    count = found.first[slice - work.first_slice + 1] - first;
    const int offset = call.columns[slice];
    columns = call.columns[slice + 1] - offset;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = first_row + lane.row + 8 * h;
      y[h] = i < work.unit.rows ? static_cast<__nv_bfloat16*>(call.y) +
                                      work.row(call, i) * call.y_stride + offset
                                : nullptr;
    }
    if (!count) this->panels.last = panels.first;
    for (int i = 0; i < RING; ++i) copy();
  }
  __device__ uint4* slot(int of) const { return ring + of * THREADS + threadIdx.x; }
  __device__ int column(int panel) const { return panel * WIDTH + Lane().pair * 8; }
  __device__ bool are_whole(int h, int column) const {
    return column + 8 <= columns && reinterpret_cast<uintptr_t>(y[h]) % 16 == 0;
  }
  __device__ bool has(int h, int panel) const { return y[h] && panel < panels.last; }

  __device__ void copy() {
    if (panel < panels.last) {
      const Lane lane;
      const Step step = steps[k];
      const __nv_bfloat16* at = step.b + static_cast<int64_t>(panel) * step.rank * WIDTH +
                                (lane.pair * WIDTH + lane.row * 4) * 2;
#pragma unroll
      for (int n = 0; n < ABREAST; ++n) {
        if (panel + n >= panels.last) break;
        copy_async(slot(place * SLOTS + n * 2), at + n * step.rank * WIDTH);
        if (!step.is_half)
          copy_async(slot(place * SLOTS + n * 2 + 1), at + (n * step.rank + 8) * WIDTH);
      }
      if (k == 0) {
#pragma unroll
        for (int n = 0; n < ABREAST; ++n)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            if (has(h, panel + n) && are_whole(h, column(panel + n)))
              copy_async(slot((RING + y_place) * SLOTS + n * 2 + h), y[h] + column(panel + n));
        y_place ^= 1;
      }
      if (++k == count) {
        k = 0;
        panel += stride;
      }
    }
    commit_copies();
    place = (place + 1) % RING;
  }

  // y += s B, where s is (16, pitch).
  __device__ void run(const float* s, int pitch, bool is_low) {
    for (int now = panels.first, parity = 0; now < panels.last; now += stride, parity ^= 1) {
      float sum[ABREAST][4][4] = {};
      for (int i = 0; i < count; ++i) {
        const Step step = steps[i];
        wait_copies<RING - 1>();
        uint4 w[ABREAST][2];
#pragma unroll
        for (int n = 0; n < ABREAST; ++n)
#pragma unroll
          for (int half = 0; half < 2; ++half) w[n][half] = *slot(place * SLOTS + n * 2 + half);
        expand_tile(s + step.at, pitch, step.is_half, is_low, w, sum);
        if (i + 1 == count) add(now, parity, sum);
        copy();
      }
    }
  }
  __device__ void add(int panel, int parity, const float (&sum)[ABREAST][4][4]) const {
#pragma unroll
    for (int n = 0; n < ABREAST; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = column(panel + n);
        if (has(h, panel + n))
          add_outputs(y[h] + at, columns - at, are_whole(h, at),
                      *slot((RING + parity) * SLOTS + n * 2 + h), sum[n], h);
      }
  }
};

}  // namespace
}  // namespace multilora
