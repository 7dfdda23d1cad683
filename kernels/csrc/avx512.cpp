// AVX-512 without bfloat16 instructions.
#include "avx512.h"

namespace multilora {

const Kernels avx512 = kernels<Avx512>();

}  // namespace multilora
