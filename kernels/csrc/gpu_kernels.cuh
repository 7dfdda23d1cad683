// y += sum of w B (A x) on a GPU.
//
// sm_90 and later, decode:  one node; a cluster of eight blocks shares the inputs of a unit, adds up
//                           its partial sums over distributed shared memory, and shares its outputs.
// else, and for prefill:    two nodes; the first leaves its partial sums in planes of global memory.
// float32, and odd sizes:   one plain node, a block for each row and slice.
//
// The inputs are cut into SPLITS * WARPS chunks.  All sums run within a chunk, then over the chunks
// of a split, then over the splits, so a row has the same bits in both ways, wherever it stands in
// whatever batch.  Nothing uses atomics.
#pragma once

#include <type_traits>

#include "plan.h"
#include "tiles.cuh"

namespace multilora {
namespace {

constexpr int SPLITS = 8;  // of the inputs: blocks of a cluster, or planes
constexpr int WARPS = 4;   // chunks of a split
constexpr int DECODE_ROWS = TILE, PREFILL_ROWS = WARPS * TILE;
constexpr int EXCHANGE_PITCH = WIDTH + 8;
constexpr int EXCHANGE = WARPS * TILE * EXCHANGE_PITCH;  // floats in which the warps add up

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

// One adapter of a composition in one slice.
struct Part {
  const __nv_bfloat16 *a, *b;
  int rank;  // 0 where it has nothing for this slice
  float weight;
};

// What one block works on: rows of one composition, in one slice.
struct Work {
  Unit unit;
  int slice, offset, columns;

  __device__ Work(const Call& call, int u, int slice) : unit(call.plan.unit(u)), slice(slice) {
    offset = call.columns[slice];
    columns = call.columns[slice + 1] - offset;
  }
  __device__ int row(const Call& call, int i) const { return call.plan.order()[unit.first + i]; }
  __device__ int panels() const { return (columns + WIDTH - 1) / WIDTH; }
  __device__ bool is_low() const { return unit.rows <= TILE; }

  // Lets every thread of the block see the parts.
  __device__ void find_parts(const Call& call, Part* parts) const {
    __syncthreads();
    for (int p = threadIdx.x; p < call.width; p += blockDim.x) {
      const int at = unit.composition * call.width + p, slot = call.slots[at];
      Descriptor found{0, 0, 0};
      if (slot >= 0) found = call.table[slot * call.slices + slice];
      parts[p] = {reinterpret_cast<const __nv_bfloat16*>(found.a),
                  reinterpret_cast<const __nv_bfloat16*>(found.b), static_cast<int>(found.rank),
                  call.weights[at]};
    }
    __syncthreads();
  }
};

__device__ int total_rank(const Call& call, const Part* parts) {
  int sum = 0;
  for (int p = 0; p < call.width; ++p) sum += parts[p].rank;
  return sum;
}

// Of a row of `rank` floats in shared memory, so that a tile's reads do not meet in one bank.
__host__ __device__ constexpr int pitch_of(int rank) { return rank | 8; }

__device__ Range chunk_of(const Call& call, int chunk) {
  const int panels = (call.inputs + WIDTH - 1) / WIDTH;
  const int size = (panels + SPLITS * WARPS - 1) / (SPLITS * WARPS);
  return {min(panels, chunk * size), min(panels, (chunk + 1) * size)};
}

__device__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ float4 operator*(float a, const float4& b) {
  return {a * b.x, a * b.y, a * b.z, a * b.w};
}

// The lane's two rows of x in the tile that starts at a row of the unit.
struct Inputs {
  const __nv_bfloat16* x[2];
  __device__ Inputs(const Call& call, const Work& work, int first_row) {
    const Lane lane;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int i = first_row + lane.row + 8 * h;
      x[h] = i < work.unit.rows ? static_cast<const __nv_bfloat16*>(call.x) +
                                      work.row(call, i) * call.x_stride
                                : nullptr;
    }
  }
};

// Calls pass(part, its first block of eight ranks, blocks, ranks before) for up to 32 ranks each.
template <class Pass>
__device__ void for_each_pass(const Call& call, const Part* parts, const Pass& pass) {
  int before = 0;
  for (int p = 0; p < call.width; ++p) {
    const Part& part = parts[p];
    for (int r = 0; r < part.rank; r += WIDTH)
      pass(part, r / 8, min(BLOCKS, (part.rank - r) / 8), before + r);
    before += part.rank;
  }
}

__device__ int block_size(const Call& call) {  // elements of eight ranks of A
  return (call.inputs + WIDTH - 1) / WIDTH * 8 * WIDTH;
}

// The low tile of a unit, by all warps of a block: keep(row, rank, four sums) gets those of a split.
template <class Keep>
__device__ void shrink_together(const Call& call, const Work& work, const Part* parts, int split,
                                float* exchange, const Keep& keep) {
  const Lane lane;
  const int warp = threadIdx.x / 32;
  const Inputs in(call, work, 0);
  const Range panels = chunk_of(call, split * WARPS + warp);
  const int block = block_size(call);
  for_each_pass(call, parts, [&](const Part& part, int first, int blocks, int before) {
    float sum[BLOCKS][4] = {};
    shrink_tile(in.x, part.a + static_cast<int64_t>(first) * block, block, blocks, call.inputs, panels, sum);
    if (before) __syncthreads();  // until the last pass was added up
    float* mine = exchange + (warp * TILE + lane.row) * EXCHANGE_PITCH + 2 * lane.pair;
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      if (b >= blocks) break;
      *reinterpret_cast<float2*>(mine + b * 8) = {sum[b][0], sum[b][1]};
      *reinterpret_cast<float2*>(mine + 8 * EXCHANGE_PITCH + b * 8) = {sum[b][2], sum[b][3]};
    }
    __syncthreads();
    const int row = threadIdx.x / 8, rank = threadIdx.x % 8 * 4;
    if (row >= work.unit.rows || rank >= blocks * 8) return;
    float4 total{0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < WARPS; ++w)
      total = total + *reinterpret_cast<const float4*>(
                          exchange + (w * TILE + row) * EXCHANGE_PITCH + rank);
    keep(row, before + rank, part.weight * total);
  });
}

// Sixteen rows of a high unit, by one warp: the same sums, and keep(row, rank, two sums).
template <class Keep>
__device__ void shrink_alone(const Call& call, const Work& work, const Part* parts, int split,
                             int first_row, const Keep& keep) {
  const Lane lane;
  const Inputs in(call, work, first_row);
  const int block = block_size(call);
  for_each_pass(call, parts, [&](const Part& part, int first, int blocks, int before) {
    float total[BLOCKS][4] = {};
    for (int w = 0; w < WARPS; ++w) {
      float sum[BLOCKS][4] = {};
      shrink_tile(in.x, part.a + static_cast<int64_t>(first) * block, block, blocks, call.inputs,
                  chunk_of(call, split * WARPS + w), sum);
#pragma unroll
      for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[b][i] += sum[b][i];
    }
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      if (b >= blocks) break;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + lane.row + 8 * h;
        if (row < work.unit.rows)
          keep(row, before + b * 8 + 2 * lane.pair,
               float2{part.weight * total[b][2 * h], part.weight * total[b][2 * h + 1]});
      }
    }
  });
}

// Outputs of some panels for sixteen rows of a unit, whose s is (16, pitch); `step` panels apart.
__device__ void expand(const Call& call, const Work& work, const Part* parts, const float* s,
                       int pitch, int first_row, Range panels, int step) {
  const Lane lane;
  __nv_bfloat16* y[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int i = first_row + lane.row + 8 * h;
    y[h] = i < work.unit.rows ? static_cast<__nv_bfloat16*>(call.y) +
                                    work.row(call, i) * call.y_stride + work.offset
                              : nullptr;
  }
  for (int panel = panels.first; panel < panels.last; panel += step) {
    const int abreast = min(ABREAST, panels.last - panel);
    Outputs outputs[ABREAST][2];
#pragma unroll
    for (int n = 0; n < ABREAST; ++n) {
      const int column = (panel + n) * WIDTH + lane.pair * 8;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        if (n < abreast && y[h]) outputs[n][h].find(y[h] + column, work.columns - column);
    }
    float sum[ABREAST][4][4] = {};
    int before = 0;
    for (int p = 0; p < call.width; ++p) {
      expand_tile(s + before, pitch, parts[p].b, parts[p].rank, panel, abreast, sum);
      before += parts[p].rank;
    }
#pragma unroll
    for (int n = 0; n < ABREAST; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) outputs[n][h].add(sum[n], h);
  }
}

// Shared memory of a block: the parts, then an array of floats.
__device__ Part* parts_of(char* memory) { return reinterpret_cast<Part*>(memory); }

__host__ __device__ constexpr int parts_bytes(int width) {
  return (width * static_cast<int>(sizeof(Part)) + 15) / 16 * 16;
}

// What a cluster works on: a share of the outputs of a unit in a slice.  Where there are few units
// they have many shares, each of which shrinks anew.
struct Item {
  Work work;
  Range panels;  // of this block
  bool is_empty;  // for the whole cluster

  __device__ Item(const Call& call, int index, int count, int shares, int place)
      : work(call, index % count / call.slices, index % call.slices) {
    const int all = work.panels(), first = index / count * SPLITS;
    const int size = max(WARPS, (all + shares * SPLITS - 1) / (shares * SPLITS));
    panels = {min(all, (first + place) * size), min(all, (first + place + 1) * size)};
    is_empty = first * size >= all;
  }

  // Brings what this block needs of a part into the L2 cache.
  __device__ void fetch_b(const __nv_bfloat16* b, int rank) const {
    if (rank && panels.first < panels.last)
      prefetch(b + static_cast<int64_t>(panels.first) * rank * WIDTH,
               (panels.last - panels.first) * rank * WIDTH * sizeof(__nv_bfloat16));
  }
  __device__ void fetch_a(const Call& call, const __nv_bfloat16* a, int rank, int place) const {
    const int first = chunk_of(call, place * WARPS).first;
    const int last = chunk_of(call, place * WARPS + WARPS - 1).last;
    for (int r = 0; r < rank && first < last; r += 8)
      prefetch(a + static_cast<int64_t>(r / 8) * block_size(call) + first * 8 * WIDTH,
               (last - first) * 8 * WIDTH * sizeof(__nv_bfloat16));
  }
};

// Decode in one node: blockIdx.x = cluster * SPLITS + place in it.
__global__ void __launch_bounds__(32 * WARPS, 4) decode_fused(const Call call) {
#if __CUDA_ARCH__ >= 900
  char* memory = shared_memory();
  Part* parts = parts_of(memory);
  float* exchange = reinterpret_cast<float*>(memory + parts_bytes(call.width));
  float* partial = exchange + EXCHANGE;                   // (16, pitch)
  float* total = partial + TILE * pitch_of(call.stride);  // (16, pitch)
  const int place = cluster_place(), clusters = gridDim.x / SPLITS, thread = threadIdx.x;
  const int count = call.plan.num_units() * call.slices;
  if (!count) return;
  const int shares = max(1, clusters / count);
  for (int i = blockIdx.x / SPLITS; i < count * shares; i += clusters) {
    const Item item(call, i, count, shares, place);
    if (item.is_empty) continue;
    const Work& work = item.work;
    work.find_parts(call, parts);
    if (thread < call.width) item.fetch_b(parts[thread].b, parts[thread].rank);
    const int rank = total_rank(call, parts), pitch = pitch_of(rank);
    shrink_together(call, work, parts, place, exchange, [&](int row, int at, const float4& sums) {
      *reinterpret_cast<float4*>(partial + row * pitch + at) = sums;
    });
    cluster_arrive();
#ifdef NEXT
    if (i + clusters < count * shares && thread / 32 == WARPS - 1 && thread % 32 < call.width) {
      const Item next(call, i + clusters, count, shares, place);
      const int slot = call.slots[next.work.unit.composition * call.width + thread % 32];
      if (slot >= 0) {
        const Descriptor found = call.table[slot * call.slices + next.work.slice];
        next.fetch_a(call, reinterpret_cast<const __nv_bfloat16*>(found.a), found.rank, place);
        next.fetch_b(reinterpret_cast<const __nv_bfloat16*>(found.b), found.rank);
      }
    }
#endif
    cluster_wait();
    const int quads = rank / 4;
    for (int q = thread; q < work.unit.rows * quads; q += blockDim.x) {
      const int at = q / quads * pitch + q % quads * 4;
      float4 found[SPLITS], sum{0, 0, 0, 0};
#pragma unroll
      for (int s = 0; s < SPLITS; ++s)
        found[s] = *reinterpret_cast<const float4*>(in_block(partial, s) + at);
#pragma unroll
      for (int s = 0; s < SPLITS; ++s) sum = sum + found[s];
      *reinterpret_cast<float4*>(total + at) = sum;
    }
    cluster_arrive();
    __syncthreads();
#ifndef NO_EXPAND
    expand(call, work, parts, total, pitch, 0,
           {item.panels.first + thread / 32 * ABREAST, item.panels.last}, WARPS * ABREAST);
#endif
    cluster_wait();  // nobody goes on while others read its sums
  }
#endif
}

__device__ float* plane_row(const Call& call, const Work& work, int split, int i) {
  const int64_t slice = static_cast<int64_t>(split) * call.slices + work.slice;
  return call.planes + (slice * call.rows + work.unit.first + i) * call.stride;
}

// First of two nodes: blockIdx.x = unit and slice, blockIdx.y = split of the inputs.
__global__ void __launch_bounds__(32 * WARPS, 4) shrink_planes(const Call call) {
  char* memory = shared_memory();
  Part* parts = parts_of(memory);
  float* exchange = reinterpret_cast<float*>(memory + parts_bytes(call.width));
  const int split = blockIdx.y, first_row = threadIdx.x / 32 * TILE;
  for (int i = blockIdx.x; i < call.plan.num_units() * call.slices; i += gridDim.x) {
    const Work work(call, i / call.slices, i % call.slices);
    work.find_parts(call, parts);
    const auto keep = [&](int row, int rank, const auto& sums) {
      *reinterpret_cast<std::decay_t<decltype(sums)>*>(plane_row(call, work, split, row) + rank) =
          sums;
    };
    if (work.is_low())
      shrink_together(call, work, parts, split, exchange, keep);
    else if (first_row < work.unit.rows)
      shrink_alone(call, work, parts, split, first_row, keep);
  }
}

// Second of two nodes: blockIdx.x = unit, blockIdx.y = a group of panels of some slice.
__global__ void __launch_bounds__(32 * WARPS, 4) expand_planes(const Call call) {
  char* memory = shared_memory();
  Part* parts = parts_of(memory);
  float* s = reinterpret_cast<float*>(memory + parts_bytes(call.width));  // (64, pitch)
  int slice = 0, group = blockIdx.y;
  for (;; ++slice) {
    if (slice == call.slices) return;
    const int columns = call.columns[slice + 1] - call.columns[slice];
    const int groups = (columns + call.group * WIDTH - 1) / (call.group * WIDTH);
    if (group < groups) break;
    group -= groups;
  }
  const int warp = threadIdx.x / 32;
  for (int u = blockIdx.x; u < call.plan.num_units(); u += gridDim.x) {
    const Work work(call, u, slice);
    work.find_parts(call, parts);
    const int rank = total_rank(call, parts), pitch = pitch_of(rank), quads = rank / 4;
    for (int i = threadIdx.x; i < work.unit.rows * quads; i += blockDim.x) {
      float4 found[SPLITS], sum{0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < SPLITS; ++q)
        found[q] = *reinterpret_cast<const float4*>(plane_row(call, work, q, i / quads) +
                                                    i % quads * 4);
#pragma unroll
      for (int q = 0; q < SPLITS; ++q) sum = sum + found[q];
      *reinterpret_cast<float4*>(s + i / quads * pitch + i % quads * 4) = sum;
    }
    __syncthreads();
    const int first = group * call.group;
    const Range panels{first, min(work.panels(), first + call.group)};
    if (work.is_low())
      expand(call, work, parts, s, pitch, 0, {panels.first + warp * ABREAST, panels.last},
             WARPS * ABREAST);
    else if (warp * TILE < work.unit.rows)
      expand(call, work, parts, s + warp * TILE * pitch, pitch, warp * TILE, panels, ABREAST);
  }
}

// The plain version: blockIdx.x = sorted row, blockIdx.y = slice.
template <class T>
__global__ void __launch_bounds__(256) plain(const Call call) {
  float* s = reinterpret_cast<float*>(shared_memory());  // (stride)
  if (static_cast<int>(blockIdx.x) >= call.plan.num_rows()) return;
  int u = 0;
  while (call.plan.unit(u).first + call.plan.unit(u).rows <= static_cast<int>(blockIdx.x)) ++u;
  const Work work(call, u, blockIdx.y);
  const int32_t* slots = call.slots + work.unit.composition * call.width;
  const float* weights = call.weights + work.unit.composition * call.width;
  const int64_t row = call.plan.order()[blockIdx.x];
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  T* y = static_cast<T*>(call.y) + row * call.y_stride + work.offset;
  const int panels = (call.inputs + WIDTH - 1) / WIDTH;
  int before = 0;
  for (int p = 0; p < call.width && slots[p] >= 0; ++p) {
    const Descriptor part = call.table[slots[p] * call.slices + work.slice];
    const T* a = reinterpret_cast<const T*>(part.a);
    for (int r = threadIdx.x / 32; r < part.rank; r += blockDim.x / 32) {
      float sum = 0;
      for (int k = threadIdx.x % 32; k < call.inputs; k += 32) {
        const int64_t at = ((r / 8 * panels + k / WIDTH) * 8 + r % 8) * WIDTH + k % WIDTH;
        sum += static_cast<float>(x[k]) * static_cast<float>(a[at]);
      }
      for (int lane = 16; lane; lane /= 2) sum += __shfl_xor_sync(~0u, sum, lane);
      if (threadIdx.x % 32 == 0) s[before + r] = weights[p] * sum;
    }
    before += part.rank;
  }
  __syncthreads();
  for (int c = threadIdx.x; c < work.columns; c += blockDim.x) {
    float sum = 0;
    before = 0;
    for (int p = 0; p < call.width && slots[p] >= 0; ++p) {
      const Descriptor part = call.table[slots[p] * call.slices + work.slice];
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
