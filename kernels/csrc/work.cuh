// What a block of the GPU works on, and what it finds out about it.
#pragma once

#include "plan.h"
#include "tiles.cuh"

namespace multilora {
namespace {

constexpr int SPLITS = 8;  // of the inputs: blocks of a cluster, or planes
constexpr int WARPS = 4;   // chunks of a split
constexpr int THREADS = 32 * WARPS;

struct Call {
  void* y;
  const void* x;
  int64_t y_stride, x_stride;
  const Descriptor* table;
  const int64_t* columns;
  const int32_t* slots;
  const float* weights;
  Plan plan;
  float* planes;  // [SPLITS][slices][sorted rows][stride]
  int slices, width, inputs, stride, rows, group;
};

__device__ int panels_of(const Call& call, int slice) {
  return (static_cast<int>(call.columns[slice + 1] - call.columns[slice]) + WIDTH - 1) / WIDTH;
}

// One adapter of a composition in one slice.
struct Part {
  const __nv_bfloat16 *a, *b;
  int rank;  // 0 where it has nothing for this slice
  float weight;
};

// What a block finds out about a work, in shared memory.
struct Found {
  Part* parts;    // of each slice
  Block* blocks;  // of all parts, one after the other
  Step* steps;    // likewise
  int* first;     // step of each slice, and behind the last

  __host__ __device__ static constexpr int aligned(int bytes) { return (bytes + 15) / 16 * 16; }
  __host__ __device__ static constexpr int bytes(int slices, int width, int rank) {
    return aligned(slices * width * static_cast<int>(sizeof(Part))) +
           rank / 8 * static_cast<int>(sizeof(Block) + sizeof(Step)) +
           aligned((slices + 1) * static_cast<int>(sizeof(int)));
  }
  __device__ Found(char* memory, int slices, int width, int rank) {
    parts = reinterpret_cast<Part*>(memory);
    blocks = reinterpret_cast<Block*>(
        memory += aligned(slices * width * static_cast<int>(sizeof(Part))));
    steps = reinterpret_cast<Step*>(memory += rank / 8 * sizeof(Block));
    first = reinterpret_cast<int*>(memory + rank / 8 * sizeof(Step));
  }
};

// Rows of one composition, and the slices that a block or a cluster works on.
struct Work {
  Unit unit;
  int first_slice, last_slice;  // without the last

  __device__ int row(const Call& call, int i) const { return call.plan.order()[unit.first + i]; }
  __device__ bool is_low() const { return unit.rows <= TILE; }

  // Lets every thread of the block see the parts; returns the sum of their ranks.
  __device__ int find(const Call& call, const Found& found) const {
    const int count = (last_slice - first_slice) * call.width;
    for (int p = threadIdx.x; p < count; p += blockDim.x) {
      const int at = unit.composition * call.width + p % call.width, slot = call.slots[at];
      Descriptor one{0, 0, 0};
      if (slot >= 0) one = call.table[slot * call.slices + first_slice + p / call.width];
      found.parts[p] = {reinterpret_cast<const __nv_bfloat16*>(one.a),
                        reinterpret_cast<const __nv_bfloat16*>(one.b), static_cast<int>(one.rank),
                        call.weights[at]};
    }
    __syncthreads();
    int ranks = 0, steps = 0;
    for (int p = 0; p < count; ++p) {
      const Part& part = found.parts[p];
      if (p % blockDim.x == threadIdx.x) {
        const int64_t size = static_cast<int64_t>((call.inputs + WIDTH - 1) / WIDTH) * 8 * WIDTH;
        for (int r = 0; r < part.rank / 8; ++r)
          found.blocks[ranks / 8 + r] = {part.a + r * size, part.weight};
        for (int r = 0; r < part.rank; r += 16)
          found.steps[steps + r / 16] = {part.b + r * WIDTH, part.rank,
                                         static_cast<short>(ranks + r), r + 8 >= part.rank};
        if (p % call.width == 0) found.first[p / call.width] = steps;
      }
      ranks += part.rank;
      steps += (part.rank + 15) / 16;
    }
    if (threadIdx.x == 0) found.first[count / call.width] = steps;
    __syncthreads();
    return ranks;
  }
};

// What a cluster works on: a share of the outputs of a unit.  Where there are few units they have
// many shares, each of which shrinks anew.
struct Item {
  Work work;
  Range panels;  // of this block, over all slices

  // `ends` holds the panels of all slices before each, and of all.
  __device__ Item(const Call& call, const int* ends, int unit, int shares, int share, int place)
      : work{call.plan.unit(unit), 0, 0} {
    const int all = ends[call.slices];
    const int size = max(WARPS, (all + shares * SPLITS - 1) / (shares * SPLITS));
    const int first = min(all, share * SPLITS * size);
    const int last = min(all, first + SPLITS * size);
    panels = {min(last, first + place * size), min(last, first + (place + 1) * size)};
    for (; work.last_slice < call.slices && ends[work.last_slice] < last; ++work.last_slice)
      if (ends[work.last_slice + 1] <= first) ++work.first_slice;
    if (first == last) work.last_slice = work.first_slice;
  }
  __device__ bool is_empty() const { return work.first_slice == work.last_slice; }

  // A warp's share of the panels of a slice, counted in it.
  __device__ Range in(const int* ends, int slice) const {
    const int first = max(panels.first, ends[slice]) + threadIdx.x / 32 * ABREAST;
    return {first - ends[slice], min(panels.last, ends[slice + 1]) - ends[slice]};
  }
};

}  // namespace
}  // namespace multilora
