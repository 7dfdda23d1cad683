// Tensor-core tiles of sixteen rows: shrink and expand on packed matrices, bfloat16 in, float32 out.
//
// A lies as on a CPU (kernels.h), so a thread's 16 bytes of it are eight inputs of one rank: the
// order of the inputs within a panel is free as long as x is read in the same one.  B lies as
// [outputs / 32][rank / 2][32][2], so 16 bytes are four outputs of two ranks, and with outputs
// 4 g + q as column g of tile q a thread ends up with eight neighbouring outputs of a row.
// All loads of a step are issued before the first is used.
#pragma once

#include <cstdint>

#include "gpu.cuh"

namespace multilora {

using half2 = __nv_bfloat162;

constexpr int TILE = 16;     // rows
constexpr int WIDTH = 32;    // inputs or outputs of a panel
constexpr int BLOCKS = 4;    // of eight ranks, in one pass over the inputs
constexpr int ABREAST = 2;   // panels of outputs in one step
constexpr int RING = 2;      // steps of outputs on their way

struct Lane {
  int row, pair;  // "group" and "thread in group" of the PTX manual
  __device__ Lane() : row(threadIdx.x % 32 / 4), pair(threadIdx.x % 4) {}
};

struct Range {
  int first, last;
};

// Eight ranks of an adapter's A.
struct Block {
  const __nv_bfloat16* a;
  float weight;
};

// Sixteen ranks of an adapter's B, or the last eight.
struct Step {
  const __nv_bfloat16* b;  // in the first panel
  int rank;                // of the adapter: a panel has WIDTH times as many elements
  short at;                // the first of the ranks, among those of all parts
  bool is_half;
};

// Two floats as bfloat16, and what that left out as bfloat16: together nearly float32.
struct Split {
  uint32_t high = 0, low = 0;
  __device__ Split() {}
  __device__ explicit Split(const float* pair) {
    const half2 rounded = __floats2bfloat162_rn(pair[0], pair[1]);
    const float2 back = __bfloat1622float2(rounded);
    const half2 rest = __floats2bfloat162_rn(pair[0] - back.x, pair[1] - back.y);
    high = reinterpret_cast<const uint32_t&>(rounded);
    low = reinterpret_cast<const uint32_t&>(rest);
  }
};

__device__ inline uint4 read(const __nv_bfloat16* at) {
  return __ldg(reinterpret_cast<const uint4*>(at));
}

// sum[b] += x A_b over some panels of inputs, of `blocks` blocks of eight ranks, MOST at most, STEP
// panels at a time.  `x` holds the lane's rows `row` and `row + 8`, null where the tile has fewer;
// inputs % 8 == 0.
template <int MOST, int STEP>
__device__ inline void shrink_steps(const __nv_bfloat16* const (&x)[2], const Block* list,
                                    int blocks, int inputs, Range panels, float (&sum)[BLOCKS][4]) {
  const Lane lane;
  const __nv_bfloat16* a[MOST];
#pragma unroll
  for (int b = 0; b < MOST; ++b)
    a[b] = list[min(b, blocks - 1)].a + lane.row * WIDTH + lane.pair * 8;
  for (int p = panels.first; p < panels.last; p += STEP) {
    uint4 v[STEP][2], w[STEP][MOST];
#pragma unroll
    for (int i = 0; i < STEP; ++i) {
      const int k = (p + i) * WIDTH + lane.pair * 8;
      const bool inside = p + i < panels.last;
#pragma unroll
      for (int b = 0; b < MOST; ++b)
        w[i][b] = inside && b < blocks ? read(a[b] + (p + i) * 8 * WIDTH) : uint4{0, 0, 0, 0};
#pragma unroll
      for (int h = 0; h < 2; ++h)
        v[i][h] = inside && x[h] && k < inputs ? read(x[h] + k) : uint4{0, 0, 0, 0};
    }
#pragma unroll
    for (int i = 0; i < STEP; ++i)
#pragma unroll
      for (int b = 0; b < MOST; ++b) {
        mma16(sum[b], v[i][0].x, v[i][1].x, v[i][0].y, v[i][1].y, w[i][b].x, w[i][b].y);
        mma16(sum[b], v[i][0].z, v[i][1].z, v[i][0].w, v[i][1].w, w[i][b].z, w[i][b].w);
      }
  }
}

// The same with the more panels at a time, the fewer blocks there are.
__device__ inline void shrink_tile(const __nv_bfloat16* const (&x)[2], const Block* list,
                                   int blocks, int inputs, Range panels,
                                   float (&sum)[BLOCKS][4]) {
  if (blocks == 1)
    shrink_steps<1, 4>(x, list, blocks, inputs, panels, sum);
  else if (blocks == 2)
    shrink_steps<2, 4>(x, list, blocks, inputs, panels, sum);
  else
    shrink_steps<BLOCKS, 2>(x, list, blocks, inputs, panels, sum);
}

// sum[n][q] += s B for one step of ABREAST panels of 32 outputs; s is (16, pitch) in shared memory,
// w[n] has the lane's share of B.  A low tile has its rows in the upper half.
__device__ inline void expand_tile(const float* s, int pitch, bool is_half, bool is_low,
                                   const uint4 (&w)[ABREAST][2], float (&sum)[ABREAST][4][4]) {
  const Lane lane;
  const float *top = s + lane.row * pitch + 2 * lane.pair, *bottom = top + 8 * pitch;
  const Split a0(top), a1 = is_low ? Split() : Split(bottom);
  if (is_half) {
#pragma unroll
    for (int n = 0; n < ABREAST; ++n) {
      const uint32_t w0[4] = {w[n][0].x, w[n][0].y, w[n][0].z, w[n][0].w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        mma8(sum[n][q], a0.high, a1.high, w0[q]);
        mma8(sum[n][q], a0.low, a1.low, w0[q]);
      }
    }
    return;
  }
  const Split a2(top + 8), a3 = is_low ? Split() : Split(bottom + 8);
#pragma unroll
  for (int n = 0; n < ABREAST; ++n) {
    const uint32_t w0[4] = {w[n][0].x, w[n][0].y, w[n][0].z, w[n][0].w};
    const uint32_t w1[4] = {w[n][1].x, w[n][1].y, w[n][1].z, w[n][1].w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      mma16(sum[n][q], a0.high, a1.high, a2.high, a3.high, w0[q], w1[q]);
      mma16(sum[n][q], a0.low, a1.low, a2.low, a3.low, w0[q], w1[q]);
    }
  }
}

// y[i] += the lane's eight neighbouring outputs of one row in one panel, for i < count.  `old` has
// what is there, if they are whole: eight, and aligned.
__device__ inline void add_outputs(__nv_bfloat16* y, int count, bool are_whole, uint4 old,
                                   const float (&sum)[4][4], int half) {
  float out[8];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    out[q] = sum[q][2 * half];
    out[q + 4] = sum[q][2 * half + 1];
  }
  if (are_whole) {
    auto* pairs = reinterpret_cast<half2*>(&old);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 was = __bfloat1622float2(pairs[i]);
      pairs[i] = __floats2bfloat162_rn(was.x + out[2 * i], was.y + out[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(y) = old;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) y[i] = __float2bfloat16(__bfloat162float(y[i]) + out[i]);
}

}  // namespace multilora
