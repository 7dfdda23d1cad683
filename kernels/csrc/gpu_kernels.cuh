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
constexpr int THREADS = 32 * WARPS;
constexpr int DECODE_ROWS = TILE, PREFILL_ROWS = WARPS * TILE;
constexpr int TOGETHER = 8, ALONE = 4;  // blocks of eight ranks in one pass over the inputs
constexpr int EXCHANGE_PITCH = 8 * TOGETHER + 8;
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

__device__ int panels_of(const Call& call, int slice) {
  return (static_cast<int>(call.columns[slice + 1] - call.columns[slice]) + WIDTH - 1) / WIDTH;
}

// One adapter of a composition in one slice.
struct Part {
  const __nv_bfloat16 *a, *b;
  int rank;    // 0 where it has nothing for this slice
  int before;  // ranks of the parts before it, in all slices of the work
  float weight;
};

// What a block has in shared memory besides floats.
struct Found {
  Part* parts;   // of each slice of the work
  Block* blocks;  // of all parts, one after the other
};

__host__ __device__ constexpr int aligned(int bytes) { return (bytes + 15) / 16 * 16; }

__host__ __device__ constexpr int found_bytes(int parts, int rank) {
  return aligned(parts * static_cast<int>(sizeof(Part))) +
         aligned(rank / 8 * static_cast<int>(sizeof(Block)));
}

// Rows of one composition, and the slices that a block or a cluster works on.
struct Work {
  Unit unit;
  int first_slice, last_slice;  // without the last

  __device__ int row(const Call& call, int i) const { return call.plan.order()[unit.first + i]; }
  __device__ bool is_low() const { return unit.rows <= TILE; }
  __device__ const Part* parts(const Call& call, const Found& found, int slice) const {
    return found.parts + (slice - first_slice) * call.width;
  }

  // Lets every thread of the block see the parts; returns the sum of their ranks.
  __device__ int find(const Call& call, const Found& found) const {
    const int count = (last_slice - first_slice) * call.width;
    __syncthreads();
    for (int p = threadIdx.x; p < count; p += blockDim.x) {
      const int at = unit.composition * call.width + p % call.width, slot = call.slots[at];
      Descriptor one{0, 0, 0};
      if (slot >= 0) one = call.table[slot * call.slices + first_slice + p / call.width];
      found.parts[p] = {reinterpret_cast<const __nv_bfloat16*>(one.a),
                        reinterpret_cast<const __nv_bfloat16*>(one.b), static_cast<int>(one.rank),
                        0, call.weights[at]};
    }
    __syncthreads();
    const int64_t size = static_cast<int64_t>((call.inputs + WIDTH - 1) / WIDTH) * 8 * WIDTH;
    int sum = 0;
    for (int p = 0; p < count; ++p) {
      const Part& part = found.parts[p];
      if (p % blockDim.x == threadIdx.x) found.parts[p].before = sum;
      for (int r = threadIdx.x; r < part.rank / 8; r += blockDim.x)
        found.blocks[sum / 8 + r] = {part.a + r * size, part.weight};
      sum += part.rank;
    }
    __syncthreads();
    return sum;
  }
};

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
  for (int first = 0; first < rank / 8; first += TOGETHER) {
    const int blocks = min(TOGETHER, rank / 8 - first);
    float sum[TOGETHER][4] = {};
    shrink_tile(in.x, list + first, blocks, call.inputs, panels, sum);
    if (first) __syncthreads();  // until the last pass was added up
    float* mine = exchange + (warp * TILE + lane.row) * EXCHANGE_PITCH + 2 * lane.pair;
#pragma unroll
    for (int b = 0; b < TOGETHER; ++b) {
      if (b >= blocks) break;
      *reinterpret_cast<float2*>(mine + b * 8) = {sum[b][0], sum[b][1]};
      *reinterpret_cast<float2*>(mine + 8 * EXCHANGE_PITCH + b * 8) = {sum[b][2], sum[b][3]};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < work.unit.rows * 16; i += blockDim.x) {
      const int row = i / 16, at = i % 16 * 4;
      if (at >= blocks * 8) continue;
      float4 total{0, 0, 0, 0};
#pragma unroll
      for (int w = 0; w < WARPS; ++w)
        total = total + *reinterpret_cast<const float4*>(
                            exchange + (w * TILE + row) * EXCHANGE_PITCH + at);
      keep(row, first * 8 + at, list[first + at / 8].weight * total);
    }
  }
}

// Sixteen rows of a high unit, by one warp: the same sums, and keep(row, rank, two sums).
template <class Keep>
__device__ void shrink_alone(const Call& call, const Work& work, const Block* list, int rank,
                             int split, int first_row, const Keep& keep) {
  const Lane lane;
  const Inputs in(call, work, first_row);
  for (int first = 0; first < rank / 8; first += ALONE) {
    const int blocks = min(ALONE, rank / 8 - first);
    float total[ALONE][4] = {};
    for (int w = 0; w < WARPS; ++w) {
      float sum[ALONE][4] = {};
      shrink_tile(in.x, list + first, blocks, call.inputs, chunk_of(call, split * WARPS + w), sum);
#pragma unroll
      for (int b = 0; b < ALONE; ++b)
#pragma unroll
        for (int i = 0; i < 4; ++i) total[b][i] += sum[b][i];
    }
#pragma unroll
    for (int b = 0; b < ALONE; ++b) {
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

// The outputs of a warp.
struct Panels {
  Range all;         // counted over all slices of the call
  int before;        // those of the slices before the first of the work
  int offset, step;  // which of them are the warp's, in each slice
};

// Where a warp stands in its outputs: sixteen ranks of ABREAST panels in each step.
struct Cursor {
  int slice, before, panel, last, part = 0, rank = 0;

  __device__ Cursor(const Call& call, const Work& work, const Found& found, const Panels& mine)
      : slice(work.first_slice), before(mine.before) {
    find_panel(call, work, found, mine);
  }
  __device__ bool is_done(const Work& work) const { return slice >= work.last_slice; }

  // A part from the current one on, that has ranks.
  __device__ bool find_part(const Call& call, const Part* parts) {
    while (part < call.width && !parts[part].rank) ++part;
    return part < call.width;
  }
  __device__ void find_panel(const Call& call, const Work& work, const Found& found,
                             const Panels& mine) {
    for (; !is_done(work); ++slice) {
      const int panels = panels_of(call, slice);
      panel = max(mine.all.first - before, 0) + mine.offset;
      last = min(mine.all.last - before, panels);
      before += panels;
      part = 0;
        if (panel < last && find_part(call, work.parts(call, found, slice))) return;
    }
  }
  // Returns whether the panels are done.
  __device__ bool next(const Call& call, const Work& work, const Found& found,
                       const Panels& mine) {
    const Part* parts = work.parts(call, found, slice);
    rank += 16;
    if (rank < parts[part].rank) return false;
    rank = 0;
    ++part;
    if (find_part(call, parts)) return false;
    part = 0;
    panel += mine.step;
    if (panel < last) {
      find_part(call, parts);
    } else {
      ++slice;
      find_panel(call, work, found, mine);
    }
    return true;
  }
};

// Brings the steps of a warp's outputs from memory, RING steps before their use.  Each lane copies
// what it will need itself, so there is nobody to wait for but the copies.
struct Ahead {
  Cursor cursor;
  uint4* slots;  // [RING][ABREAST][2][THREADS]
  int place = 0;

  __device__ void copy(const Call& call, const Work& work, const Found& found,
                       const Panels& mine) {
    if (!cursor.is_done(work)) {
      const Lane lane;
      const Part& part = work.parts(call, found, cursor.slice)[cursor.part];
      const __nv_bfloat16* at =
          part.b + (static_cast<int64_t>(cursor.panel) * part.rank + cursor.rank) * WIDTH +
          (lane.pair * WIDTH + lane.row * 4) * 2;
#pragma unroll
      for (int n = 0; n < ABREAST; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (cursor.panel + n < cursor.last && cursor.rank + half * 8 < part.rank)
            copy_async(slot(place, n, half), at + (n * part.rank + half * 8) * WIDTH);
      cursor.next(call, work, found, mine);
    }
    commit_copies();
    place = (place + 1) % RING;
  }
  __device__ void start(const Call& call, const Work& work, const Found& found,
                        const Panels& mine) {
    for (int i = 0; i < RING; ++i) copy(call, work, found, mine);
  }
  __device__ uint4* slot(int step, int n, int half) const {
    return slots + ((step * ABREAST + n) * 2 + half) * THREADS + threadIdx.x;
  }
};

// Outputs of some panels for sixteen rows of a unit, whose s is (16, pitch).
__device__ void expand(const Call& call, const Work& work, const Found& found, const float* s,
                       int pitch, int first_row, const Panels& mine, Ahead& ahead) {
  const Lane lane;
  Cursor now(call, work, found, mine);
  __nv_bfloat16* y[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int i = first_row + lane.row + 8 * h;
    y[h] = i < work.unit.rows
               ? static_cast<__nv_bfloat16*>(call.y) + work.row(call, i) * call.y_stride
               : nullptr;
  }
  while (!now.is_done(work)) {
    const int slice = now.slice, panel = now.panel, last = now.last;
    const auto outputs = [&](int n, int h) -> Outputs {
      const int offset = call.columns[slice], columns = call.columns[slice + 1] - offset;
      const int column = (panel + n) * WIDTH + lane.pair * 8;
      if (!y[h] || panel + n >= last) return {nullptr, 0};
      return {y[h] + offset + column, columns - column};
    };
    uint4 old[ABREAST][2];
#pragma unroll
    for (int n = 0; n < ABREAST; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) old[n][h] = outputs(n, h).load();
    float sum[ABREAST][4][4] = {};
    for (bool is_done = false; !is_done;) {
      const Part& part = work.parts(call, found, now.slice)[now.part];
      const float* at = s + part.before + now.rank;
      const bool is_half = now.rank + 8 >= part.rank;
      is_done = now.next(call, work, found, mine);
      wait_copies<RING - 1>();
      uint4 w[ABREAST][2];
#pragma unroll
      for (int n = 0; n < ABREAST; ++n)
#pragma unroll
        for (int half = 0; half < 2; ++half) w[n][half] = *ahead.slot(ahead.place, n, half);
      ahead.copy(call, work, found, mine);
      expand_tile(at, pitch, is_half, w, sum);
    }
#pragma unroll
    for (int n = 0; n < ABREAST; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h) outputs(n, h).add(old[n][h], sum[n], h);
  }
}

__host__ __device__ constexpr int tile_bytes(int rows, int rank) {
  return rows * pitch_of(rank) * static_cast<int>(sizeof(float));
}

constexpr int BARRIER_BYTES = 16;
constexpr int RING_BYTES = RING * ABREAST * 2 * THREADS * static_cast<int>(sizeof(uint4));
constexpr int EXCHANGE_BYTES = EXCHANGE * static_cast<int>(sizeof(float));

// `parts` and `rank` bound those of a work.
__host__ __device__ constexpr int fused_bytes(int parts, int rank) {
  return BARRIER_BYTES + found_bytes(parts, rank) + 2 * tile_bytes(TILE, rank) + EXCHANGE_BYTES +
         RING_BYTES;
}
__host__ __device__ constexpr int shrink_bytes(int parts, int rank) {
  return found_bytes(parts, rank) + EXCHANGE_BYTES;
}
__host__ __device__ constexpr int expand_bytes(int rows, int parts, int rank) {
  return found_bytes(parts, rank) + tile_bytes(rows, rank) + RING_BYTES;
}

__device__ Found found_in(char* memory, int parts) {
  return {reinterpret_cast<Part*>(memory),
          reinterpret_cast<Block*>(memory + aligned(parts * static_cast<int>(sizeof(Part))))};
}

// What a cluster works on: a share of the outputs of a unit.  Where there are few units they have
// many shares, each of which shrinks anew.
struct Item {
  Work work;
  Range panels;  // of this block, over all slices
  int before = 0;  // panels of the slices before the first

  __device__ Item(const Call& call, int index, int units, int shares, int place)
      : work{call.plan.unit(index % units), 0, 0} {
    int all = 0;
    for (int s = 0; s < call.slices; ++s) all += panels_of(call, s);
    const int size = max(WARPS, (all + shares * SPLITS - 1) / (shares * SPLITS));
    const int first = min(all, index / units * SPLITS * size);
    const int last = min(all, first + SPLITS * size);
    panels = {min(last, first + place * size), min(last, first + (place + 1) * size)};
    for (int end = 0; work.last_slice < call.slices && end < last; ++work.last_slice) {
      end += panels_of(call, work.last_slice);
      if (end > first) continue;
      work.first_slice = work.last_slice + 1;
      before = end;
    }
    if (first == last) work.first_slice = work.last_slice;
  }
  __device__ bool is_empty() const { return work.first_slice >= work.last_slice; }
};

// Decode in one node: blockIdx.x = cluster * SPLITS + place in it.  Of the sums over the splits each
// block adds up every eighth quad, and sends it to all.
__global__ void __launch_bounds__(THREADS, 4) decode_fused(const Call call) {
#if __CUDA_ARCH__ >= 900
  char* memory = shared_memory();
  const int parts = call.width * call.slices, most_rank = call.stride * call.slices;
  auto* barriers = reinterpret_cast<Barrier*>(memory);
  Barrier *staged = barriers, *summed = barriers + 1;
  const Found found = found_in(memory += BARRIER_BYTES, parts);
  memory += found_bytes(parts, most_rank);
  auto* stage = reinterpret_cast<float4*>(memory);  // [SPLITS][quads of this block]
  float* total = reinterpret_cast<float*>(memory += tile_bytes(TILE, most_rank));  // (16, pitch)
  float* exchange = reinterpret_cast<float*>(memory += tile_bytes(TILE, most_rank));
  uint4* ring = reinterpret_cast<uint4*>(memory + EXCHANGE_BYTES);
  const int place = cluster_place(), clusters = gridDim.x / SPLITS, units = call.plan.num_units();
  if (threadIdx.x < 2) barriers[threadIdx.x].init();
  cluster_meet();
  if (!units) return;
  const int shares = max(1, clusters / units), warp = threadIdx.x / 32;
  int round = 0;
  for (int i = blockIdx.x / SPLITS; i < units * shares; i += clusters) {
    const Item item(call, i, units, shares, place);
    if (item.is_empty()) continue;  // for the whole cluster
    const Work& work = item.work;
    const int rank = work.find(call, found), pitch = pitch_of(rank);
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
    const Panels panels{item.panels, item.before, warp * ABREAST, WARPS * ABREAST};
    Ahead ahead{{call, work, found, panels}, ring};
    ahead.start(call, work, found, panels);
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
    summed->wait(round);
#ifndef NO_EXPAND
    expand(call, work, found, total, pitch, 0, panels, ahead);
#endif
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
  const Found found = found_in(memory, call.width);
  float* exchange = reinterpret_cast<float*>(memory + found_bytes(call.width, call.stride));
  const int split = blockIdx.y, first_row = threadIdx.x / 32 * TILE;
  for (int i = blockIdx.x; i < call.plan.num_units() * call.slices; i += gridDim.x) {
    const int slice = i % call.slices;
    const Work work{call.plan.unit(i / call.slices), slice, slice + 1};
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
  const Found found = found_in(memory, call.width);
  char* ring = memory + found_bytes(call.width, call.stride);
  float* s = reinterpret_cast<float*>(ring + RING_BYTES);  // (64, pitch)
  int slice = 0, group = blockIdx.y, base = 0;
  for (;; ++slice) {
    if (slice == call.slices) return;
    const int panels = panels_of(call, slice), groups = (panels + call.group - 1) / call.group;
    if (group < groups) break;
    group -= groups;
    base += panels;
  }
  const int warp = threadIdx.x / 32, first = base + group * call.group;
  for (int u = blockIdx.x; u < call.plan.num_units(); u += gridDim.x) {
    const Work work{call.plan.unit(u), slice, slice + 1};
    const int rank = work.find(call, found), pitch = pitch_of(rank), quads = rank / 4;
    const bool is_low = work.is_low();
    const Panels mine{{first, first + call.group}, base, is_low ? warp * ABREAST : 0,
                      is_low ? WARPS * ABREAST : ABREAST};
    Ahead ahead{{call, work, found, mine}, reinterpret_cast<uint4*>(ring)};
    ahead.start(call, work, found, mine);
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
    const int row = is_low ? 0 : warp * TILE;
    if (row < work.unit.rows) expand(call, work, found, s + row * pitch, pitch, row, mine, ahead);
  }
}

// The plain version: blockIdx.x = sorted row, blockIdx.y = slice.
template <class T>
__global__ void __launch_bounds__(256) plain(const Call call) {
  float* s = reinterpret_cast<float*>(shared_memory());  // (stride)
  if (static_cast<int>(blockIdx.x) >= call.plan.num_rows()) return;
  int u = 0;
  while (call.plan.unit(u).first + call.plan.unit(u).rows <= static_cast<int>(blockIdx.x)) ++u;
  const Work work{call.plan.unit(u), static_cast<int>(blockIdx.y), 0};
  const int offset = call.columns[blockIdx.y], columns = call.columns[blockIdx.y + 1] - offset;
  const int32_t* slots = call.slots + work.unit.composition * call.width;
  const float* weights = call.weights + work.unit.composition * call.width;
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
