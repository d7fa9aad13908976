// Included before each C++ file of llama.cpp where the CPU has AVX512-FP16 (_env.sh).
//
// llama.cpp's ggml_vec_mad_f16 and ggml_vec_scale_f16 then take blocks of 128 numbers and compute
// what is no whole block number by number, so flash attention takes four times as long for a token
// with heads of 64 as with heads of 128. With one register for a block (32 numbers) few are left.
#if defined(__AVX512FP16__) && defined(__has_include)
#if __has_include("simd-mappings.h")
#include "simd-mappings.h"
#if defined(GGML_F16_STEP) && defined(GGML_F16_EPR)
#undef GGML_F16_STEP
#define GGML_F16_STEP GGML_F16_EPR
#endif
#endif
#endif
