// AVX2 and FMA: eight floats at a time.
#include <immintrin.h>

#include "micro.h"

namespace multilora {
namespace {

struct Avx2 {
  using Float = __m256;
  template <class T>
  using Input = __m256;
  static constexpr int lanes = 8, ranks = 4, rows = 3;
  template <class T>
  static constexpr int64_t inputs = 8;

  static Float zero() { return _mm256_setzero_ps(); }
  static Float broadcast(float f) { return _mm256_set1_ps(f); }
  static Float plus(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load(const bf16* p) {
    const auto bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
  template <class T>
  static Float input(const T* p) {
    return load(p);
  }
  static void store(float* p, Float f) { _mm256_storeu_ps(p, f); }
  static void store(bf16* p, Float f) {  // rounds to nearest, ties to even
    const auto bits = _mm256_castps_si256(f);
    const auto odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const auto up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
    const auto high = _mm256_srli_epi32(up, 16);
    const auto packed =
        _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  static float total(Float f) {
    auto sum = _mm_add_ps(_mm256_castps256_ps128(f), _mm256_extractf128_ps(f, 1));
    sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
    return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
  }
};

}  // namespace

const Kernels avx2 = kernels<Avx2>();

}  // namespace multilora
