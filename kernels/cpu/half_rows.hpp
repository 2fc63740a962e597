// Rows of float16 to rows of float32 and back; part of the tiles, compiled once per instruction set.
#pragma once

#include <cstddef>

#include "unblemish/half.hpp"

#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace unblemish::cpu::UNBLEMISH_ISA {
namespace {

inline void widen(const unsigned short* UNBLEMISH_RESTRICT half, float* UNBLEMISH_RESTRICT wide, std::size_t count) {
  std::size_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(wide + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm256_storeu_ps(wide + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
#endif
#pragma omp simd
  for (std::size_t k = i; k < count; ++k) wide[k] = float_of_half(half[k]);
}

inline void narrow(const float* UNBLEMISH_RESTRICT wide, unsigned short* UNBLEMISH_RESTRICT half, std::size_t count) {
  std::size_t i = 0;
#if defined(__AVX512F__)
  for (; i + 16 <= count; i += 16)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(half + i),
                        _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  for (; i + 8 <= count; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(half + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(wide + i), _MM_FROUND_TO_NEAREST_INT));
#endif
#pragma omp simd
  for (std::size_t k = i; k < count; ++k) half[k] = half_of_float(wide[k]);
}

}  // namespace
}  // namespace unblemish::cpu::UNBLEMISH_ISA
