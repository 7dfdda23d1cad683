// AVX-512 with bfloat16 instructions: 32 products of bfloat16 at a time, summed in float32.
#include "avx512.h"

namespace multilora {
namespace {

struct Avx512Bf16 : Avx512 {
  template <class T>
  struct Kind {
    using Input = __m512;
    static constexpr int64_t inputs = 16;
  };
  template <class T>
  using Input = typename Kind<T>::Input;
  template <class T>
  static constexpr int64_t inputs = Kind<T>::inputs;

  using Avx512::multiply_add;
  static Float multiply_add(__m512bh a, __m512bh b, Float c) { return _mm512_dpbf16_ps(c, a, b); }
  static Float input(const float* p) { return load(p); }
  static __m512bh input(const bf16* p) { return (__m512bh)_mm512_loadu_si512(p); }
};

template <>
struct Avx512Bf16::Kind<bf16> {
  using Input = __m512bh;
  static constexpr int64_t inputs = 32;
};

}  // namespace

const Kernels avx512_bf16 = kernels<Avx512Bf16>();

}  // namespace multilora
