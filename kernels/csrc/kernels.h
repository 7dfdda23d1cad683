// What the micro-kernels of one instruction set offer to the driver in cpu.cpp.
//
// Packed layouts, written by multilora/pool.py (PANEL = 32, RANKS = 8, zeros where a size is not
// a multiple):
//   A (rank, inputs)   as [rank / 8][inputs / 32][8][32]
//   B (outputs, rank)  as [outputs / 32][rank][32]
#pragma once

#include <cstdint>

namespace multilora {

constexpr int64_t RANKS = 8;
constexpr int64_t PANEL = 32;

struct bf16 {
  uint16_t bits;
};

// One adapter's share of one slice: its B and its rank, a multiple of RANKS.
struct Part {
  const void* b;
  int64_t rank;
};

// A file per instruction set is compiled with its own flags, so nothing in it may be shared with
// the others by the linker: no templates of the standard library in there.
struct Kernels {
  // out[t][j] = weight * dot(x[t], A[j]) for RANKS rows j of one packed block of A.
  using Shrink = void (*)(const void* const* x, int64_t rows, const void* a, int64_t inputs,
                          float weight, float* out, int64_t stride);
  // y[t][offset + c] += sum over parts and ranks of s[t][r] * B[c][r], for the columns c < columns
  // of the panels [first, last) of a slice that starts at `offset` of each row of y.
  using Expand = void (*)(const float* s, int64_t stride, int64_t rows, const Part* parts,
                          int64_t num_parts, int64_t first, int64_t last, void* const* y,
                          int64_t offset, int64_t columns);
  Shrink shrink_float, shrink_bf16;
  Expand expand_float, expand_bf16;
};

extern const Kernels avx2, avx512, avx512_bf16;

}  // namespace multilora
