// Tensor-core tiles of sixteen rows: shrink and expand on packed matrices, bfloat16 in, float32 out.
//
// A lies as on a CPU (kernels.h), so a thread's 16 bytes of it are eight inputs of one rank: the
// order of the inputs within a panel is free as long as x is read in the same one.  B lies as
// [outputs / 32][rank / 2][32][2], so 16 bytes are four outputs of two ranks, and with outputs
// 4 g + q as column g of tile q a thread ends up with eight neighbouring outputs of a row.
#pragma once

#include <cstdint>

#include "gpu.cuh"

namespace multilora {

using half2 = __nv_bfloat162;

constexpr int TILE = 16;    // rows
constexpr int BLOCKS = 4;   // of eight ranks, in one pass over the inputs
constexpr int WIDTH = 32;   // inputs or outputs of a panel, and ranks of a pass

struct Lane {
  int row, pair;  // "group" and "thread in group" of the PTX manual
  __device__ Lane() : row(threadIdx.x % 32 / 4), pair(threadIdx.x % 4) {}
};

// Two floats as bfloat16, and what that left out as bfloat16: together nearly float32.
struct Split {
  uint32_t high, low;
  __device__ explicit Split(const float* pair) {
    const half2 rounded = __floats2bfloat162_rn(pair[0], pair[1]);
    const float2 back = __bfloat1622float2(rounded);
    const half2 rest = __floats2bfloat162_rn(pair[0] - back.x, pair[1] - back.y);
    high = reinterpret_cast<const uint32_t&>(rounded);
    low = reinterpret_cast<const uint32_t&>(rest);
  }
};

// sum[b] += x A_b over the panels first, first + step, ... of `blocks` blocks of eight ranks.
// `x` holds the lane's rows `row` and `row + 8`, null where the tile has fewer; inputs % 8 == 0.
__device__ inline void shrink_tile(const __nv_bfloat16* const (&x)[2], const __nv_bfloat16* a,
                                   int blocks, int inputs, int first, int step,
                                   float (&sum)[BLOCKS][4]) {
  const Lane lane;
  const int panels = (inputs + WIDTH - 1) / WIDTH;
  const int64_t block = static_cast<int64_t>(panels) * 8 * WIDTH;
  for (int p = first; p < panels; p += step) {
    const int k = p * WIDTH + lane.pair * 8;
    uint4 v[2];
#pragma unroll
    for (int h = 0; h < 2; ++h)
      v[h] = x[h] && k < inputs ? *reinterpret_cast<const uint4*>(x[h] + k) : uint4{0, 0, 0, 0};
    const __nv_bfloat16* at = a + (static_cast<int64_t>(p) * 8 + lane.row) * WIDTH + lane.pair * 8;
#pragma unroll
    for (int b = 0; b < BLOCKS; ++b) {
      if (b >= blocks) break;
      const uint4 w = __ldg(reinterpret_cast<const uint4*>(at + b * block));
      mma16(sum[b], v[0].x, v[1].x, v[0].y, v[1].y, w.x, w.y);
      mma16(sum[b], v[0].z, v[1].z, v[0].w, v[1].w, w.z, w.w);
    }
  }
}

// sum[q] += s B for one panel of 32 outputs and one part; s is (16, stride) in shared memory.
__device__ inline void expand_tile(const float* s, int stride, const __nv_bfloat16* b, int rank,
                                   int panel, float (&sum)[4][4]) {
  const Lane lane;
  const float *top = s + lane.row * stride + 2 * lane.pair, *bottom = top + 8 * stride;
  const auto* at = reinterpret_cast<const uint32_t*>(b) + static_cast<int64_t>(panel) * rank * 16 +
                   lane.pair * WIDTH + lane.row * 4;
  int r = 0;
  for (; r + 16 <= rank; r += 16, at += 8 * WIDTH) {
    const uint4 b0 = __ldg(reinterpret_cast<const uint4*>(at));
    const uint4 b1 = __ldg(reinterpret_cast<const uint4*>(at + 4 * WIDTH));
    const Split a0(top + r), a1(bottom + r), a2(top + r + 8), a3(bottom + r + 8);
    const uint32_t w0[4] = {b0.x, b0.y, b0.z, b0.w}, w1[4] = {b1.x, b1.y, b1.z, b1.w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      mma16(sum[q], a0.high, a1.high, a2.high, a3.high, w0[q], w1[q]);
      mma16(sum[q], a0.low, a1.low, a2.low, a3.low, w0[q], w1[q]);
    }
  }
  if (r == rank) return;
  const uint4 b0 = __ldg(reinterpret_cast<const uint4*>(at));
  const Split a0(top + r), a1(bottom + r);
  const uint32_t w0[4] = {b0.x, b0.y, b0.z, b0.w};
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    mma8(sum[q], a0.high, a1.high, w0[q]);
    mma8(sum[q], a0.low, a1.low, w0[q]);
  }
}

// y[column .. column + 8) += the lane's eight outputs of one row, as far as the slice reaches.
__device__ inline void add_outputs(__nv_bfloat16* y, int column, int columns,
                                   const float (&sum)[4][4], int half) {
  float out[8];
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    out[q] = sum[q][2 * half];
    out[q + 4] = sum[q][2 * half + 1];
  }
  if (column + 8 <= columns && reinterpret_cast<uintptr_t>(y) % 16 == 0) {
    uint4 words = *reinterpret_cast<const uint4*>(y);
    auto* pairs = reinterpret_cast<half2*>(&words);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 old = __bfloat1622float2(pairs[i]);
      pairs[i] = __floats2bfloat162_rn(old.x + out[2 * i], old.y + out[2 * i + 1]);
    }
    *reinterpret_cast<uint4*>(y) = words;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (column + i < columns) y[i] = __float2bfloat16(__bfloat162float(y[i]) + out[i]);
}

}  // namespace multilora
