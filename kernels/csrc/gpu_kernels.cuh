// y += sum of w B (A x) on a GPU.
//
// sm_90 and later, decode:  one node; a cluster of eight blocks shares the inputs of a unit, adds up
//                           its partial sums over distributed shared memory, and shares its outputs.
// else, and for prefill:    two nodes; the first leaves its partial sums in planes of global memory.
// float32, and odd sizes:   one plain node, a block for each row and slice.
// All sums run in an order that does not depend on the batch; nothing uses atomics.
#pragma once

#include "plan.h"
#include "tiles.cuh"

namespace multilora {
namespace {

constexpr int SPLITS = 8;  // of the inputs: blocks of a cluster, or planes
constexpr int WARPS = 4;
constexpr int EXCHANGE = WARPS * TILE * WIDTH;  // floats in which the warps of a block add up
constexpr int DECODE_ROWS = TILE, PREFILL_ROWS = WARPS * TILE;

struct Call {
  void* y;
  const void* x;
  int64_t y_stride, x_stride;
  const Descriptor* table;
  const int64_t* columns;
  const int32_t* slots;
  const float* weights;
  Plan plan;
  float* planes;  // [SPLITS][sorted rows][slices][stride]
  int slices, width, inputs, stride, rows;
};

// What one block works on: rows of one composition, in one slice.
struct Work {
  Unit unit;
  int slice, offset, columns;
  const int32_t* slots;
  const float* weights;

  __device__ Work(const Call& call, int index)
      : unit(call.plan.unit(index / call.slices)), slice(index % call.slices) {
    offset = call.columns[slice];
    columns = call.columns[slice + 1] - offset;
    slots = call.slots + unit.composition * call.width;
    weights = call.weights + unit.composition * call.width;
  }
  __device__ const Descriptor& part(const Call& call, int p) const {
    return call.table[slots[p] * call.slices + slice];
  }
  __device__ int row(const Call& call, int i) const { return call.plan.order()[unit.first + i]; }
};

__device__ bool is_done(const Call& call, int index) {
  return index >= call.plan.num_units() * call.slices;
}

// Calls use(rank so far, first rank of the pass, ranks of the part, weight, sums) for each pass.
template <class Use>
__device__ void shrink(const Call& call, const Work& work, int first_row, int first, int step,
                       const Use& use) {
  const Lane lane;
  const __nv_bfloat16* x[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int i = first_row + lane.row + 8 * h;
    x[h] = i < work.unit.rows ? static_cast<const __nv_bfloat16*>(call.x) +
                                    work.row(call, i) * call.x_stride
                              : nullptr;
  }
  const int64_t block = static_cast<int64_t>((call.inputs + WIDTH - 1) / WIDTH) * 8 * WIDTH;
  int before = 0;
  for (int p = 0; p < call.width && work.slots[p] >= 0; ++p) {
    const Descriptor part = work.part(call, p);
    const auto* a = reinterpret_cast<const __nv_bfloat16*>(part.a);
    for (int r = 0; r < part.rank; r += WIDTH) {
      float sum[BLOCKS][4] = {};
      const int blocks = min(BLOCKS, static_cast<int>(part.rank - r) / 8);
      shrink_tile(x, a + r / 8 * block, blocks, call.inputs, first, step, sum);
      use(before + r, blocks * 8, work.weights[p], sum);
    }
    before += part.rank;
  }
}

// Where a lane's sums of a pass belong in a (16, stride) array that starts at the pass's rank.
__device__ void put(float* s, int stride, int ranks, float weight, const float (&sum)[BLOCKS][4]) {
  const Lane lane;
#pragma unroll
  for (int b = 0; b < BLOCKS; ++b) {
    if (b * 8 >= ranks) break;
    float* at = s + lane.row * stride + b * 8 + 2 * lane.pair;
    at[0] = weight * sum[b][0];
    at[1] = weight * sum[b][1];
    at[8 * stride] = weight * sum[b][2];
    at[8 * stride + 1] = weight * sum[b][3];
  }
}

// The warps of a block share the inputs of one tile: `s` (16, stride) gets their sum.
__device__ void shrink_together(const Call& call, const Work& work, int split, float* s,
                                float* exchange) {
  const int warp = threadIdx.x / 32;
  shrink(call, work, 0, split * WARPS + warp, SPLITS * WARPS,
         [&](int at, int ranks, float weight, const float(&sum)[BLOCKS][4]) {
           __syncthreads();
           put(exchange + warp * TILE * WIDTH, WIDTH, ranks, weight, sum);
           __syncthreads();
           const int rank = threadIdx.x % WIDTH;
           for (int row = warp; row < TILE && rank < ranks; row += WARPS) {
             float total = 0;
             for (int w = 0; w < WARPS; ++w) total += exchange[(w * TILE + row) * WIDTH + rank];
             s[row * call.stride + at + rank] = total;
           }
         });
  __syncthreads();
}

// Panels worker, worker + workers, ... of the rows first_row .. first_row + 16 of a unit.
__device__ void expand(const Call& call, const Work& work, const float* s, int first_row,
                       int worker, int workers) {
  const Lane lane;
  for (int panel = worker; panel * WIDTH < work.columns; panel += workers) {
    float sum[4][4] = {};
    int before = 0;
    for (int p = 0; p < call.width && work.slots[p] >= 0; ++p) {
      const Descriptor part = work.part(call, p);
      expand_tile(s + before, call.stride, reinterpret_cast<const __nv_bfloat16*>(part.b),
                  part.rank, panel, sum);
      before += part.rank;
    }
    const int column = panel * WIDTH + lane.pair * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = first_row + lane.row + 8 * half;
      if (i >= work.unit.rows) continue;
      auto* y = static_cast<__nv_bfloat16*>(call.y) + work.row(call, i) * call.y_stride;
      add_outputs(y + work.offset + column, column, work.columns, sum, half);
    }
  }
}

// Decode in one node: blockIdx.x = (unit, slice) * SPLITS + place in the cluster.
__global__ void __launch_bounds__(32 * WARPS, 4) decode_fused(const Call call) {
#if __CUDA_ARCH__ >= 900
  float* exchange = shared_memory();
  float* partial = exchange + EXCHANGE;             // (16, stride)
  float* total = partial + TILE * call.stride;      // (16, stride)
  const int index = blockIdx.x / SPLITS;
  if (is_done(call, index)) return;  // of the whole cluster
  const Work work(call, index);
  const int place = cluster_place();
  for (int i = threadIdx.x; i < TILE * call.stride; i += blockDim.x) partial[i] = 0;
  __syncthreads();
  shrink_together(call, work, place, partial, exchange);
  cluster_sync();
  for (int i = threadIdx.x; i < TILE * call.stride; i += blockDim.x) {
    float sum = 0;
    for (int q = 0; q < SPLITS; ++q) sum += in_block(partial, q)[i];
    total[i] = sum;
  }
  cluster_sync();  // nobody leaves while others read its sums
  expand(call, work, total, 0, place * WARPS + threadIdx.x / 32, SPLITS * WARPS);
#endif
}

__device__ float* plane_row(const Call& call, const Work& work, int split, int i) {
  const int64_t row = static_cast<int64_t>(split) * call.rows + work.unit.first + i;
  return call.planes + (row * call.slices + work.slice) * call.stride;
}

// First of two nodes: blockIdx.y = which share of the inputs.
__global__ void __launch_bounds__(32 * WARPS, 4) decode_shrink(const Call call) {
  float* exchange = shared_memory();
  float* s = exchange + EXCHANGE;  // (16, stride)
  if (is_done(call, blockIdx.x)) return;
  const Work work(call, blockIdx.x);
  for (int i = threadIdx.x; i < TILE * call.stride; i += blockDim.x) s[i] = 0;
  __syncthreads();
  shrink_together(call, work, blockIdx.y, s, exchange);
  for (int i = threadIdx.x; i < work.unit.rows * call.stride; i += blockDim.x)
    plane_row(call, work, blockIdx.y, i / call.stride)[i % call.stride] = s[i];
}

// The same for 64 rows: each warp has sixteen of them.
__global__ void __launch_bounds__(32 * WARPS, 4) prefill_shrink(const Call call) {
  float* s = shared_memory();  // (64, stride)
  const int first_row = threadIdx.x / 32 * TILE;
  for (int index = blockIdx.x; !is_done(call, index); index += gridDim.x) {
    const Work work(call, index);
    for (int i = threadIdx.x; i < PREFILL_ROWS * call.stride; i += blockDim.x) s[i] = 0;
    __syncthreads();
    shrink(call, work, first_row, blockIdx.y, SPLITS,
           [&](int at, int ranks, float weight, const float(&sum)[BLOCKS][4]) {
             put(s + first_row * call.stride + at, call.stride, ranks, weight, sum);
           });
    __syncthreads();
    for (int i = threadIdx.x; i < work.unit.rows * call.stride; i += blockDim.x)
      plane_row(call, work, blockIdx.y, i / call.stride)[i % call.stride] = s[i];
    __syncthreads();
  }
}

// Second of two nodes: blockIdx.y = which panels; for 64 rows each warp has sixteen of them.
template <int ROWS>
__global__ void __launch_bounds__(32 * WARPS, 4) expand_planes(const Call call) {
  float* s = shared_memory();  // (ROWS, stride)
  const int warp = threadIdx.x / 32;
  for (int index = blockIdx.x; !is_done(call, index); index += gridDim.x) {
    const Work work(call, index);
    for (int i = threadIdx.x; i < ROWS * call.stride; i += blockDim.x) {
      float sum = 0;
      for (int q = 0; q < SPLITS && i / call.stride < work.unit.rows; ++q)
        sum += plane_row(call, work, q, i / call.stride)[i % call.stride];
      s[i] = sum;
    }
    __syncthreads();
    if (ROWS == TILE)
      expand(call, work, s, 0, blockIdx.y * WARPS + warp, gridDim.y * WARPS);
    else if (warp * TILE < work.unit.rows)
      expand(call, work, s + warp * TILE * call.stride, warp * TILE, blockIdx.y, gridDim.y);
    __syncthreads();
  }
}

// The plain version: blockIdx.x = sorted row, blockIdx.y = slice.
template <class T>
__global__ void __launch_bounds__(256) plain(const Call call) {
  float* s = shared_memory();  // (stride)
  if (static_cast<int>(blockIdx.x) >= call.plan.num_rows()) return;
  int u = 0;
  while (call.plan.unit(u).first + call.plan.unit(u).rows <= static_cast<int>(blockIdx.x)) ++u;
  const Work work(call, u * call.slices + blockIdx.y);
  const int64_t row = call.plan.order()[blockIdx.x];
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  T* y = static_cast<T*>(call.y) + row * call.y_stride + work.offset;
  const int panels = (call.inputs + WIDTH - 1) / WIDTH;
  int before = 0;
  for (int p = 0; p < call.width && work.slots[p] >= 0; ++p) {
    const Descriptor part = work.part(call, p);
    const T* a = reinterpret_cast<const T*>(part.a);
    for (int r = threadIdx.x / 32; r < part.rank; r += blockDim.x / 32) {
      float sum = 0;
      for (int k = threadIdx.x % 32; k < call.inputs; k += 32) {
        const int64_t at = ((r / 8 * panels + k / WIDTH) * 8 + r % 8) * WIDTH + k % WIDTH;
        sum += static_cast<float>(x[k]) * static_cast<float>(a[at]);
      }
      for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
      if (threadIdx.x % 32 == 0) s[before + r] = work.weights[p] * sum;
    }
    before += part.rank;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < work.columns; c += blockDim.x) {
    float sum = 0;
    before = 0;
    for (int p = 0; p < call.width && work.slots[p] >= 0; ++p) {
      const Descriptor part = work.part(call, p);
      const T* b = reinterpret_cast<const T*>(part.b) + c / WIDTH * part.rank * WIDTH;
      for (int r = 0; r < part.rank; ++r)
        sum += s[before + r] * static_cast<float>(b[(r / 2 * WIDTH + c % WIDTH) * 2 + r % 2]);
      before += part.rank;
    }
    y[c] = static_cast<T>(static_cast<float>(y[c]) + sum);
  }
}

}  // namespace
}  // namespace multilora
