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

#include "expansion.cuh"

namespace multilora {
namespace {

constexpr int DECODE_BLOCKS = 4;  // of a multiprocessor
constexpr int DECODE_ROWS = TILE, PREFILL_ROWS = WARPS * TILE;
constexpr int EXCHANGE_PITCH = 8 * BLOCKS + 8;
static_assert(TILE * 2 * BLOCKS == THREADS);  // a thread for each quad of a pass
constexpr int EXCHANGE = WARPS * TILE * EXCHANGE_PITCH;  // floats in which the warps add up

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

// The low tile of a unit, by all warps of a block: keep(row, rank, four sums) gets those of a split.
template <class Keep>
__device__ void shrink_together(const Call& call, const Work& work, const Block* list, int rank,
                                int split, float* exchange, const Keep& keep) {
  const Lane lane;
  const int warp = threadIdx.x / 32;
  const Inputs in(call, work, 0);
  const Range panels = chunk_of(call, split * WARPS + warp);
  for (int first = 0; first < rank / 8; first += BLOCKS) {
    const int blocks = min(BLOCKS, rank / 8 - first);
    float sum[BLOCKS][4] = {};
    shrink_tile(in.x, list + first, blocks, call.inputs, panels, sum);
    if (first) __syncthreads();  // until the last pass was added up
    float* mine = exchange + (warp * TILE + lane.row) * EXCHANGE_PITCH + 2 * lane.pair;
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      if (b >= blocks) break;
      *reinterpret_cast<float2*>(mine + b * 8) = {sum[b][0], sum[b][1]};
      *reinterpret_cast<float2*>(mine + 8 * EXCHANGE_PITCH + b * 8) = {sum[b][2], sum[b][3]};
    }
    __syncthreads();
    const int row = threadIdx.x / 8, at = threadIdx.x % 8 * 4;  // a quad for each thread
    if (row >= work.unit.rows || at >= blocks * 8) continue;
    float4 total{0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < WARPS; ++w)
      total = total + *reinterpret_cast<const float4*>(
                          exchange + (w * TILE + row) * EXCHANGE_PITCH + at);
    keep(row, first * 8 + at, list[first + at / 8].weight * total);
  }
}

// Sixteen rows of a high unit, by one warp: the same sums, and keep(row, rank, two sums).
template <class Keep>
__device__ void shrink_alone(const Call& call, const Work& work, const Block* list, int rank,
                             int split, int first_row, const Keep& keep) {
  const Lane lane;
  const Inputs in(call, work, first_row);
  for (int first = 0; first < rank / 8; first += BLOCKS) {
    const int blocks = min(BLOCKS, rank / 8 - first);
    float total[BLOCKS][4] = {};
    for (int w = 0; w < WARPS; ++w) {
      float sum[BLOCKS][4] = {};
      shrink_tile(in.x, list + first, blocks, call.inputs, chunk_of(call, split * WARPS + w), sum);
#pragma unroll
      for (int b = 0; b < BLOCKS; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[b][i] += sum[b][i];
    }
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      if (b >= blocks) break;
      const float weight = list[first + b].weight;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = first_row + lane.row + 8 * h;
        if (row < work.unit.rows)
          keep(row, (first + b) * 8 + 2 * lane.pair,
               float2{weight * total[b][2 * h], weight * total[b][2 * h + 1]});
      }
    }
  }
}

__host__ __device__ constexpr int tile_bytes(int rows, int rank) {
  return rows * pitch_of(rank) * static_cast<int>(sizeof(float));
}

constexpr int BARRIER_BYTES = 16;
constexpr int RING_BYTES =
    (RING + 2) * Expansion::SLOTS * THREADS * static_cast<int>(sizeof(uint4));
constexpr int EXCHANGE_BYTES = EXCHANGE * static_cast<int>(sizeof(float));

// `rank` bounds that of a composition in a slice.
__host__ __device__ constexpr int fused_bytes(int slices, int width, int rank) {
  return BARRIER_BYTES + Found::aligned((slices + 1) * static_cast<int>(sizeof(int))) +
         Found::bytes(slices, width, slices * rank) + 2 * tile_bytes(TILE, slices * rank) +
         (RING_BYTES > EXCHANGE_BYTES ? RING_BYTES : EXCHANGE_BYTES);
}
__host__ __device__ constexpr int shrink_bytes(int width, int rank) {
  return Found::bytes(1, width, rank) + EXCHANGE_BYTES;
}
__host__ __device__ constexpr int expand_bytes(int rows, int width, int rank) {
  return Found::bytes(1, width, rank) + tile_bytes(rows, rank) + RING_BYTES;
}

// Decode in one node: blockIdx.x = cluster * SPLITS + place in it.  Of the sums over the splits each
// block adds up every eighth quad, and sends it to all.
__global__ void __launch_bounds__(THREADS, DECODE_BLOCKS) decode_fused(const Call call) {
#if __CUDA_ARCH__ >= 900
  char* memory = shared_memory();
  const int most_rank = call.stride * call.slices;
  auto* barriers = reinterpret_cast<Barrier*>(memory);
  Barrier *staged = barriers, *summed = barriers + 1;
  int* ends = reinterpret_cast<int*>(memory += BARRIER_BYTES);
  memory += Found::aligned((call.slices + 1) * sizeof(int));
  const Found found(memory, call.slices, call.width, most_rank);
  memory += Found::bytes(call.slices, call.width, most_rank);
  auto* stage = reinterpret_cast<float4*>(memory);  // [SPLITS][quads of this block]
  float* total = reinterpret_cast<float*>(memory += tile_bytes(TILE, most_rank));  // (16, pitch)
  char* shared = memory + tile_bytes(TILE, most_rank);
  float* exchange = reinterpret_cast<float*>(shared);  // until all is shrunk
  uint4* ring = reinterpret_cast<uint4*>(shared);
  const int place = cluster_place(), clusters = gridDim.x / SPLITS, units = call.plan.num_units();
  if (threadIdx.x < 2) barriers[threadIdx.x].init();
  if (threadIdx.x == 32) {
    ends[0] = 0;
    for (int s = 0; s < call.slices; ++s) ends[s + 1] = ends[s] + panels_of(call, s);
  }
  __syncthreads();
  cluster_meet();
  if (!units) return;
  // Whole rounds have a unit for each cluster; what is left is shared by all.
  const int whole = units - units % clusters, left = units - whole;
  const int items = whole + (left ? clusters / left * left : 0);
  int round = 0;
  for (int i = blockIdx.x / SPLITS; i < items; i += clusters) {
    const bool is_whole = i < whole;
    const Item item(call, ends, is_whole ? i : whole + (i - whole) % left,
                    is_whole ? 1 : clusters / left, is_whole ? 0 : (i - whole) / left, place);
    if (item.is_empty()) continue;  // for the whole cluster
    const Work& work = item.work;
    if (round) __syncthreads();
    const int rank = work.find(call, found), pitch = pitch_of(rank);
    if (!rank) continue;  // a round in which nothing is sent would let blocks run ahead of others
    const int quads = work.unit.rows * rank / 4, mine = (quads + SPLITS - 1 - place) / SPLITS;
    if (threadIdx.x == 0) {
      staged->expect(SPLITS * mine * sizeof(float4));
      summed->expect(quads * sizeof(float4));
    }
    shrink_together(call, work, found.blocks, rank, place, exchange,
                    [&](int row, int at, const float4& sum) {
                      const int quad = (row * rank + at) / 4, to = quad % SPLITS;
                      const int of_it = (quads + SPLITS - 1 - to) / SPLITS;
                      send(stage + place * of_it + quad / SPLITS, sum, staged, to);
                    });
    __syncthreads();
    int slice = work.first_slice;
    while (slice + 1 < work.last_slice && ends[slice + 1] <= item.panels.first) ++slice;
    Expansion expansion(call, work, found, slice, 0, item.in(ends, slice), WARPS * ABREAST, ring);
    if (threadIdx.x < mine) staged->wait(round);
    for (int q = threadIdx.x; q < mine; q += blockDim.x) {
      float4 sum{0, 0, 0, 0};
#pragma unroll
      for (int s = 0; s < SPLITS; ++s) sum = sum + stage[s * mine + q];
      const int at = (q * SPLITS + place) * 4;
      auto* to = reinterpret_cast<float4*>(total + at / rank * pitch + at % rank);
#pragma unroll
      for (int p = 0; p < SPLITS; ++p) send(to, sum, summed, p);
    }
    summed->wait(round);  // all have sent all, so nobody still reads what the next round writes
    const bool is_low = work.unit.rows <= 8;
    expansion.run(total, pitch, is_low);
    while (++slice < work.last_slice && ends[slice] < item.panels.last)
      Expansion(call, work, found, slice, 0, item.in(ends, slice), WARPS * ABREAST, ring)
          .run(total, pitch, is_low);
    ++round;
  }
#endif
}

__device__ float* plane_row(const Call& call, const Work& work, int split, int i) {
  const int64_t slice = static_cast<int64_t>(split) * call.slices + work.first_slice;
  return call.planes + (slice * call.rows + work.unit.first + i) * call.stride;
}

// First of two nodes: blockIdx.x = unit and slice, blockIdx.y = split of the inputs.
__global__ void __launch_bounds__(THREADS, 3) shrink_planes(const Call call) {
  char* memory = shared_memory();
  const Found found(memory, 1, call.width, call.stride);
  float* exchange = reinterpret_cast<float*>(memory + Found::bytes(1, call.width, call.stride));
  const int split = blockIdx.y, first_row = threadIdx.x / 32 * TILE;
  for (int i = blockIdx.x; i < call.plan.num_units() * call.slices; i += gridDim.x) {
    const int slice = i % call.slices;
    const Work work{call.plan.unit(i / call.slices), slice, slice + 1};
    __syncthreads();
    const int rank = work.find(call, found);
    const auto keep = [&](int row, int at, const auto& sums) {
      *reinterpret_cast<std::decay_t<decltype(sums)>*>(plane_row(call, work, split, row) + at) =
          sums;
    };
    if (work.is_low())
      shrink_together(call, work, found.blocks, rank, split, exchange, keep);
    else if (first_row < work.unit.rows)
      shrink_alone(call, work, found.blocks, rank, split, first_row, keep);
  }
}

// Second of two nodes: blockIdx.x = unit, blockIdx.y = a group of panels of some slice.
__global__ void __launch_bounds__(THREADS, 4) expand_planes(const Call call) {
  char* memory = shared_memory();
  const Found found(memory, 1, call.width, call.stride);
  auto* ring = reinterpret_cast<uint4*>(memory += Found::bytes(1, call.width, call.stride));
  float* s = reinterpret_cast<float*>(memory + RING_BYTES);  // (64, pitch)
  int slice = 0, group = blockIdx.y, panels = 0;
  for (;; ++slice) {
    if (slice == call.slices) return;
    panels = panels_of(call, slice);
    const int groups = (panels + call.group - 1) / call.group;
    if (group < groups) break;
    group -= groups;
  }
  const int warp = threadIdx.x / 32, first = group * call.group;
  const int last = min(panels, first + call.group);
  for (int u = blockIdx.x; u < call.plan.num_units(); u += gridDim.x) {
    const Work work{call.plan.unit(u), slice, slice + 1};
    __syncthreads();
    const int rank = work.find(call, found), pitch = pitch_of(rank), quads = rank / 4;
    const bool together = work.is_low();  // the warps share the panels, else the rows
    const int row = together ? 0 : warp * TILE;
    Expansion expansion(call, work, found, slice, row,
                        {together ? first + warp * ABREAST : first, last},
                        together ? WARPS * ABREAST : ABREAST, ring);
    for (int i = threadIdx.x; i < work.unit.rows * quads; i += blockDim.x) {
      float4 sums[SPLITS], sum{0, 0, 0, 0};
#pragma unroll
      for (int q = 0; q < SPLITS; ++q)
        sums[q] = *reinterpret_cast<const float4*>(plane_row(call, work, q, i / quads) +
                                                   i % quads * 4);
#pragma unroll
      for (int q = 0; q < SPLITS; ++q) sum = sum + sums[q];
      *reinterpret_cast<float4*>(s + i / quads * pitch + i % quads * 4) = sum;
    }
    __syncthreads();
    if (row < work.unit.rows)
      expansion.run(s + row * pitch, pitch, together && work.unit.rows <= 8);
  }
}

// The plain version: blockIdx.x = sorted row, blockIdx.y = slice.
template <class T>
__global__ void __launch_bounds__(256) plain(const Call call) {
  float* s = reinterpret_cast<float*>(shared_memory());  // (stride)
  if (static_cast<int>(blockIdx.x) >= call.plan.num_rows()) return;
  int u = 0;
  while (call.plan.unit(u).first + call.plan.unit(u).rows <= static_cast<int>(blockIdx.x)) ++u;
  const int composition = call.plan.unit(u).composition;
  const int offset = call.columns[blockIdx.y], columns = call.columns[blockIdx.y + 1] - offset;
  const int32_t* slots = call.slots + composition * call.width;
  const float* weights = call.weights + composition * call.width;
  const int64_t row = call.plan.order()[blockIdx.x];
  const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
  T* y = static_cast<T*>(call.y) + row * call.y_stride + offset;
  const int panels = (call.inputs + WIDTH - 1) / WIDTH;
  int before = 0;
  for (int p = 0; p < call.width && slots[p] >= 0; ++p) {
    const Descriptor part = call.table[slots[p] * call.slices + blockIdx.y];
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
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    float sum = 0;
    before = 0;
    for (int p = 0; p < call.width && slots[p] >= 0; ++p) {
      const Descriptor part = call.table[slots[p] * call.slices + blockIdx.y];
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
