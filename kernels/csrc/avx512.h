// AVX-512: sixteen floats at a time.
#pragma once

#include <immintrin.h>

#include "micro.h"

namespace multilora {
namespace {

struct Avx512 {
  using Float = __m512;
  template <class T>
  using Input = __m512;
  static constexpr int lanes = 16, ranks = 8, rows = 8;
  template <class T>
  static constexpr int64_t inputs = 16;

  static Float zero() { return _mm512_setzero_ps(); }
  static Float broadcast(float f) { return _mm512_set1_ps(f); }
  static Float plus(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load(const bf16* p) {
    const auto bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  template <class T>
  static Float input(const T* p) {
    return load(p);
  }
  static void store(float* p, Float f) { _mm512_storeu_ps(p, f); }
  static void store(bf16* p, Float f) {  // rounds to nearest, ties to even
    const auto bits = _mm512_castps_si512(f);
    const auto odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const auto up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
    const auto high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), high);
  }
  static float total(Float f) { return _mm512_reduce_add_ps(f); }
};

}  // namespace
}  // namespace multilora
