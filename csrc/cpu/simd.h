// Vectors of kWidth floats or 32-bit integers for one instruction set. Included by isa.h only, once
// in each of its namespaces, hence no include guard and no includes.
//
// VecF and VecI are GCC vectors: + - * / & | ^ ~ << >> and comparisons work on them lane by lane, a
// comparison gives a VecI of 0 and -1, and `mask ? a : b` selects. Loads and stores need no alignment.

#if LAZYLLM_ISA_AVX512
constexpr int kWidth = 16;
#elif LAZYLLM_ISA_AVX2
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;  // 16 bytes: SSE2, NEON, or what the compiler makes of it
#endif

typedef float VecF __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecI __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecU __attribute__((vector_size(kWidth * 4)));

// x - 0 is x, and compiles to a broadcast alone; 0 + x would not be -0 for -0, and costs an addition.
LAZYLLM_INLINE VecF set1(float x) { return x - VecF{}; }
LAZYLLM_INLINE VecI set1_int(int32_t x) { return VecI{} + x; }
LAZYLLM_INLINE VecI as_int(VecF x) { return (VecI)x; }
LAZYLLM_INLINE VecF as_float(VecI x) { return (VecF)x; }
LAZYLLM_INLINE VecF select(VecI mask, VecF a, VecF b) { return mask ? a : b; }

// 0, 1, 2 ... kWidth - 1
LAZYLLM_INLINE VecI iota() {
  VecI lanes;
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}

// a * b + c, rounded once where the instruction set has it.
LAZYLLM_INLINE VecF fma(VecF a, VecF b, VecF c) {
#if LAZYLLM_ISA_AVX512
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LAZYLLM_ISA_AVX2
  return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The larger one; b where either is NaN.
LAZYLLM_INLINE VecF max(VecF a, VecF b) {
#if LAZYLLM_ISA_AVX512
  return (VecF)_mm512_max_ps((__m512)a, (__m512)b);
#elif LAZYLLM_ISA_AVX2
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// The smaller one; b where either is NaN.
LAZYLLM_INLINE VecF min(VecF a, VecF b) {
#if LAZYLLM_ISA_AVX512
  return (VecF)_mm512_min_ps((__m512)a, (__m512)b);
#elif LAZYLLM_ISA_AVX2
  return (VecF)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// Lanes added pairwise, halves first: the same order on every call.
LAZYLLM_INLINE float sum_lanes(VecF x) {
  float lanes[kWidth];
  std::memcpy(lanes, &x, sizeof(x));
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

#if LAZYLLM_ISA_AVX512
LAZYLLM_INLINE __m256 fold(VecF x) {
  return _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
}
#elif LAZYLLM_ISA_AVX2
LAZYLLM_INLINE __m256 fold(VecF x) { return (__m256)x; }
#endif

// The sums of four vectors, each as sum_lanes would not: neighbours first.
LAZYLLM_INLINE void sum_lanes4(VecF a, VecF b, VecF c, VecF d, float* to) {
#if LAZYLLM_ISA_AVX512 || LAZYLLM_ISA_AVX2
  const __m256 pairs =
      _mm256_hadd_ps(_mm256_hadd_ps(fold(a), fold(b)), _mm256_hadd_ps(fold(c), fold(d)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
#else
  to[0] = sum_lanes(a), to[1] = sum_lanes(b), to[2] = sum_lanes(c), to[3] = sum_lanes(d);
#endif
}

// The largest lane; no lane may be NaN.
LAZYLLM_INLINE float max_lanes(VecF x) {
  float lanes[kWidth];
  std::memcpy(lanes, &x, sizeof(x));
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) {
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
    }
  }
  return lanes[0];
}

LAZYLLM_INLINE bool any(VecI mask) {
#if LAZYLLM_ISA_AVX512
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif LAZYLLM_ISA_AVX2
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int32_t lanes = 0;
  for (int i = 0; i < kWidth; ++i) lanes |= mask[i];
  return lanes != 0;
#endif
}

// --- float32, bfloat16, float16 in memory ---------------------------------------------------------

LAZYLLM_INLINE VecF load(const float* from) {
  VecF x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

LAZYLLM_INLINE void store(float* to, VecF x) { std::memcpy(to, &x, sizeof(x)); }

LAZYLLM_INLINE VecI load_int(const int32_t* from) {
  VecI x;
  std::memcpy(&x, from, sizeof(x));
  return x;
}

LAZYLLM_INLINE void store_int(int32_t* to, VecI x) { std::memcpy(to, &x, sizeof(x)); }

// A bfloat16 is the upper half of a float32.
LAZYLLM_INLINE VecF load(const BFloat16* from) {
#if LAZYLLM_ISA_AVX512
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return (VecF)_mm512_slli_epi32(wide, 16);
#elif LAZYLLM_ISA_AVX2
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
  return (VecF)_mm256_slli_epi32(wide, 16);
#else
  VecU wide;
  for (int i = 0; i < kWidth; ++i) wide[i] = from[i].x;
  return (VecF)(wide << 16);
#endif
}

// Rounds to nearest even; a NaN keeps its upper bits and becomes quiet.
LAZYLLM_INLINE VecU bfloat16_bits(VecF x) {
  const VecU bits = (VecU)x;
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU quiet_nan = (bits >> 16) | 0x40u;
  return (VecU)((x != x) ? (VecI)quiet_nan : (VecI)rounded);
}

LAZYLLM_INLINE void store(BFloat16* to, VecF x) {
  const VecU bits = bfloat16_bits(x);
#if LAZYLLM_ISA_AVX512
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtepi32_epi16((__m512i)bits));
#elif LAZYLLM_ISA_AVX2
  const __m256i packed = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#else
  for (int i = 0; i < kWidth; ++i) to[i].x = (uint16_t)bits[i];
#endif
}

LAZYLLM_INLINE VecF load(const Half* from) {
#if LAZYLLM_ISA_AVX512
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif LAZYLLM_ISA_AVX2
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
  VecF x;
  for (int i = 0; i < kWidth; ++i) x[i] = (float)from[i];
  return x;
#endif
}

LAZYLLM_INLINE void store(Half* to, VecF x) {
#if LAZYLLM_ISA_AVX512
  _mm256_storeu_si256((__m256i*)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif LAZYLLM_ISA_AVX2
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) to[i] = (Half)(float)x[i];
#endif
}

// The first `count` < kWidth elements, zeros behind; nothing beyond them is read.
template <class T>
LAZYLLM_INLINE VecF load_part(const T* from, int64_t count) {
  T lanes[kWidth] = {};
  std::memcpy((void*)lanes, (const void*)from, count * sizeof(T));
  return load(lanes);
}

// The first `count` < kWidth lanes; nothing beyond them is written.
template <class T>
LAZYLLM_INLINE void store_part(T* to, VecF x, int64_t count) {
  T lanes[kWidth];
  store(lanes, x);
  std::memcpy((void*)to, (const void*)lanes, count * sizeof(T));
}

// --- words ----------------------------------------------------------------------------------------
//
// What takes the place of a float in a dot product: a float, or, where an instruction multiplies pairs
// of bfloat16 and adds them up in float32, two elements side by side.

// Elements of a word.
template <class T>
constexpr int kPerWord = 1;
#if LAZYLLM_ISA_AVX512_BF16
template <>
constexpr int kPerWord<BFloat16> = 2;
#endif

// The words of kWidth * kPerWord<T> elements.
template <class T>
LAZYLLM_INLINE VecF load_words(const T* from) {
  if constexpr (kPerWord<T> == 1) return load(from);
  return load((const float*)from);
}

// The same of the first `count` elements, zeros behind; nothing beyond them is read.
template <class T>
LAZYLLM_INLINE VecF load_words_part(const T* from, int64_t count) {
  T lanes[kWidth * kPerWord<T>] = {};
  std::memcpy((void*)lanes, (const void*)from, count * sizeof(T));
  return load_words(lanes);
}

// A word in every lane.
LAZYLLM_INLINE VecF broadcast_word(const float* word) {
  int32_t bits;
  std::memcpy(&bits, word, sizeof(bits));
  return as_float(set1_int(bits));
}

// a * b + c, lane by lane: of floats, or of the pairs in a and b.
template <int kElements>
LAZYLLM_INLINE VecF multiply_words(VecF a, VecF b, VecF c) {
  if constexpr (kElements == 1) {
    return fma(a, b, c);
#if LAZYLLM_ISA_AVX512_BF16
  } else {
    return (VecF)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
  }
}

// The elements i % kElements of words, as float32.
template <int kElements>
LAZYLLM_INLINE VecF element(VecF words, int64_t i) {
  if constexpr (kElements == 1) return words;
  return as_float((VecI)(i % 2 == 0 ? (VecU)words << 16 : (VecU)words & 0xffff0000u));
}

// The words of two vectors of floats: pairs a[i], b[i], rounded to nearest even.
LAZYLLM_INLINE VecF pair_words(VecF a, VecF b) {
#if LAZYLLM_ISA_AVX512_BF16
  const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  // 0, 16, 1, 17 ...
  const VecI order = (iota() + 16) * 0x10000 + iota();
  return (VecF)_mm512_permutexvar_epi16((__m512i)order, halves);
#else
  return as_float((VecI)(bfloat16_bits(a) | bfloat16_bits(b) << 16));
#endif
}

// --- functions ------------------------------------------------------------------------------------

LAZYLLM_INLINE VecF round_to_even(VecF x) {
#if LAZYLLM_ISA_AVX512
  return (VecF)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif LAZYLLM_ISA_AVX2
  return (VecF)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  for (int i = 0; i < kWidth; ++i) x[i] = std::nearbyintf(x[i]);
  return x;
#endif
}

// exp(x) within 1 ulp or so: 0 below -87.3 (no subnormal results), inf above 88.7, NaN for NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial for exp(r) is Cephes' expf.
LAZYLLM_INLINE VecF exp(VecF x) {
  const VecF lowest = set1(-87.3365f), highest = set1(88.7228f);
  const VecF inside = min(highest, max(lowest, x));  // a NaN stays one
  const VecF n = round_to_even(inside * 1.44269504088896341f);
  VecF r = fma(n, set1(-0.693359375f), inside);
  r = fma(n, set1(2.12194440e-4f), r);
  VecF p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  // 2^n in two factors: n may be 128, for which there is no float.
  const VecI whole = __builtin_convertvector(n, VecI);
  const VecI half = whole >> 1;
  const VecF scale = as_float((half + 127) << 23);
  const VecF rest = as_float((whole - half + 127) << 23);
  VecF y = p * scale * rest;
  y = select(x < lowest, VecF{}, y);
  y = select(x > highest, set1(std::numeric_limits<float>::infinity()), y);
  return select(x != x, x, y);
}

// 2^x for x <= 0, as a softmax needs it, within 1 ulp: 0 below -126.5 (no subnormal results), NaN for
// NaN. x = n + r, |r| <= 1/2; the polynomial is the minimax one of degree 6 with p(0) = 1.
LAZYLLM_INLINE VecF exp2_nonpositive(VecF x) {
  // Added to a float, leaves n + 127 in the lowest bits of the sum: the exponent of 2^n.
  constexpr float kRound = 12582912.0f + 127.0f;  // 1.5 * 2^23
  const VecF inside = max(set1(-127.0f), x);      // a NaN stays one
  const VecF shifted = inside + kRound;
  const VecF r = inside - (shifted - kRound);
  VecF p = set1(1.5353361e-4f);
  p = fma(p, r, set1(1.3398874e-3f));
  p = fma(p, r, set1(9.6184369e-3f));
  p = fma(p, r, set1(5.5503324e-2f));
  p = fma(p, r, set1(2.4022648e-1f));
  p = fma(p, r, set1(6.9314718e-1f));
  p = fma(p, r, set1(1.0f));
  return p * as_float(as_int(shifted) << 23);
}

// 2^x for weights that are rounded to bfloat16 next, within a relative error of 9e-5, a twentieth of that
// rounding; 0 for -inf, NaN for NaN. With AVX-512 of any x, otherwise of x <= 0. x = floor(x) + r; the
// polynomial is the minimax one of degree 3 with p(0) = 1.
LAZYLLM_INLINE VecF exp2_for_bfloat16(VecF x) {
#if LAZYLLM_ISA_AVX512
  constexpr int kDown = 0x09;  // r = x - floor(x), and no exceptions
  const VecF r = (VecF)_mm512_reduce_ps((__m512)x, kDown);
  VecF p = set1(7.706664e-2f);
  p = fma(p, r, set1(2.2764543e-1f));
  p = fma(p, r, set1(6.9511669e-1f));
  p = fma(p, r, set1(1.0f));
  return (VecF)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  return exp2_nonpositive(x);
#endif
}

// exp(x) for what is rounded to bfloat16 next, within a relative error of 9e-5; inf above 88.7.
LAZYLLM_INLINE VecF exp_for_bfloat16(VecF x) {
#if LAZYLLM_ISA_AVX512
  return exp2_for_bfloat16(x * 1.44269504088896341f);
#else
  return exp(x);
#endif
}

// tanh(x) = 1 - 2 / (exp(2x) + 1), and its series near 0, where the difference would lose digits.
LAZYLLM_INLINE VecF tanh(VecF x) {
  const VecF large = 1.0f - 2.0f / (exp(x + x) + 1.0f);
  const VecF x2 = x * x;
  VecF p = set1(-5.70498872745e-3f);  // Cephes' tanhf, |x| < 0.625
  p = fma(p, x2, set1(2.06390887954e-2f));
  p = fma(p, x2, set1(-5.37397155531e-2f));
  p = fma(p, x2, set1(1.33314422036e-1f));
  p = fma(p, x2, set1(-3.33332819422e-1f));
  const VecF small = fma(p * x2, x, x);
  const VecF magnitude = as_float(as_int(x) & 0x7fffffff);
  return select(magnitude < 0.625f, small, large);
}
