// The micro-kernels, once for every instruction set `I` and element type `T`.
//
// Each (row, rank) and each (row, column) has one accumulator that runs over inputs or ranks in
// the same order whatever the tile around it, so a row's result does not depend on its neighbours.
#pragma once

#include "kernels.h"

namespace multilora {
namespace {  // private to each file that includes this

template <class I, class T, int ROWS, int COUNT>
inline void dot_tile(const T* const* x, const T* a, int64_t begin, int64_t end,
                     typename I::Float (&sum)[ROWS][COUNT]) {
  constexpr int64_t step = I::template inputs<T>;
  for (int64_t k = begin; k < end; k += PANEL, a += RANKS * PANEL) {
    for (int64_t i = 0; i < PANEL; i += step) {
      typename I::template Input<T> v[ROWS];
      for (int t = 0; t < ROWS; ++t) v[t] = I::input(x[t] + k - begin + i);
      for (int j = 0; j < COUNT; ++j) {
        const auto w = I::input(a + j * PANEL + i);
        for (int t = 0; t < ROWS; ++t) sum[t][j] = I::multiply_add(v[t], w, sum[t][j]);
      }
    }
  }
}

template <class I, class T, int ROWS>
void shrink_tile(const T* const* x, const T* a, int64_t inputs, float weight, float* out,
                 int64_t stride) {
  constexpr int COUNT = I::ranks;
  const int64_t whole = inputs / PANEL * PANEL;
  T tail[ROWS][PANEL] = {};
  const T* tails[ROWS];
  for (int t = 0; t < ROWS; ++t) {
    for (int64_t k = whole; k < inputs; ++k) tail[t][k - whole] = x[t][k];
    tails[t] = tail[t];
  }
  for (int j = 0; j < RANKS; j += COUNT) {
    typename I::Float sum[ROWS][COUNT];
    for (auto& row : sum)
      for (auto& s : row) s = I::zero();
    dot_tile<I, T, ROWS, COUNT>(x, a + j * PANEL, 0, whole, sum);
    if (whole < inputs)
      dot_tile<I, T, ROWS, COUNT>(tails, a + whole * RANKS + j * PANEL, whole, inputs, sum);
    for (int t = 0; t < ROWS; ++t)
      for (int i = 0; i < COUNT; ++i) out[t * stride + j + i] = weight * I::total(sum[t][i]);
  }
}

template <class I, class T>
void shrink(const void* const* rows, int64_t num_rows, const void* block, int64_t inputs,
            float weight, float* out, int64_t stride) {
  const auto* x = reinterpret_cast<const T* const*>(rows);
  const auto* a = static_cast<const T*>(block);
  int64_t t = 0;
  for (; t + 3 <= num_rows; t += 3)
    shrink_tile<I, T, 3>(x + t, a, inputs, weight, out + t * stride, stride);
  if (num_rows - t == 2) shrink_tile<I, T, 2>(x + t, a, inputs, weight, out + t * stride, stride);
  if (num_rows - t == 1) shrink_tile<I, T, 1>(x + t, a, inputs, weight, out + t * stride, stride);
}

template <class I, class T>
inline void add(T* y, int64_t columns, const typename I::Float* sum) {
  constexpr int64_t lanes = I::lanes;
  if (columns >= PANEL) {
    for (int64_t v = 0; v < PANEL / lanes; ++v)
      I::store(y + v * lanes, I::plus(I::load(y + v * lanes), sum[v]));
    return;
  }
  T edge[PANEL] = {};
  for (int64_t c = 0; c < columns; ++c) edge[c] = y[c];
  for (int64_t v = 0; v < PANEL / lanes; ++v)
    I::store(edge + v * lanes, I::plus(I::load(edge + v * lanes), sum[v]));
  for (int64_t c = 0; c < columns; ++c) y[c] = edge[c];
}

template <class I, class T, int ROWS>
inline void expand_tile(const float* s, int64_t stride, const Part* parts, int64_t num_parts,
                        int64_t panel, void* const* y, int64_t offset, int64_t columns) {
  constexpr int VECTORS = PANEL / I::lanes;
  typename I::Float sum[ROWS][VECTORS];
  for (auto& row : sum)
    for (auto& v : row) v = I::zero();
  for (int64_t p = 0; p < num_parts; ++p) {
    const T* b = static_cast<const T*>(parts[p].b) + panel * parts[p].rank * PANEL;
    for (int64_t r = 0; r < parts[p].rank; ++r, b += PANEL) {
      for (int v = 0; v < VECTORS; ++v) {
        const auto w = I::load(b + v * I::lanes);
        for (int t = 0; t < ROWS; ++t)
          sum[t][v] = I::multiply_add(I::broadcast(s[t * stride + r]), w, sum[t][v]);
      }
    }
    s += parts[p].rank;
  }
  for (int t = 0; t < ROWS; ++t)
    add<I, T>(static_cast<T*>(y[t]) + offset + panel * PANEL, columns - panel * PANEL, sum[t]);
}

template <class I, class T>
void expand(const float* s, int64_t stride, int64_t rows, const Part* parts, int64_t num_parts,
            int64_t first, int64_t last, void* const* y, int64_t offset, int64_t columns) {
  constexpr int TILE = I::rows;
  for (int64_t n = first; n < last; ++n) {
    int64_t t = 0;
    for (; t + TILE <= rows; t += TILE)
      expand_tile<I, T, TILE>(s + t * stride, stride, parts, num_parts, n, y + t, offset, columns);
    for (; t < rows; ++t)
      expand_tile<I, T, 1>(s + t * stride, stride, parts, num_parts, n, y + t, offset, columns);
  }
}

template <class I>
constexpr Kernels kernels() {
  return {shrink<I, float>, shrink<I, bf16>, expand<I, float>, expand<I, bf16>};
}

}  // namespace
}  // namespace multilora
