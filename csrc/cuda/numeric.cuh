// The three floating-point types of the operators as kernels see them; arithmetic is in float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace lazyllm::cuda {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr float kInfinity = __builtin_inff();
constexpr float kLog2E = 1.4426950408889634f;

/// Elements of T in the widest load there is, 16 bytes.
template <typename T>
constexpr int kPack = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// Two neighbouring elements in one register, the lower one in the lower half.
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t pack_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __half) {
  return __half22float2(*reinterpret_cast<const __half2*>(&pair));
}
__device__ __forceinline__ float2 unpack_pair(uint32_t pair, __nv_bfloat16) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&pair));
}

/// 16 bytes of shared or global memory, as float32.
template <typename T>
__device__ __forceinline__ void widen_pack(const T* source, float (&out)[kPack<T>]) {
  const uint4 packed = *reinterpret_cast<const uint4*>(source);
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack_pair(words[i], T());
    out[2 * i] = pair.x;
    out[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ void widen_pack(const float* source, float (&out)[kPack<float>]) {
  const float4 packed = *reinterpret_cast<const float4*>(source);
  out[0] = packed.x;
  out[1] = packed.y;
  out[2] = packed.z;
  out[3] = packed.w;
}

/// kStep neighbouring elements as float32: one load of 16 bytes, or a single element.
template <typename T, int kStep>
__device__ __forceinline__ void widen_step(const T* source, float (&out)[kStep]) {
  if constexpr (kStep == 1) {
    out[0] = to_float(*source);
  } else {
    widen_pack(source, out);
  }
}

/// The same in the other direction, each element rounded to nearest even.
template <typename T, int kStep>
__device__ __forceinline__ void narrow_step(const float (&values)[kStep], T* out) {
  if constexpr (kStep == 1) {
    *out = from_float<T>(values[0]);
  } else if constexpr (sizeof(T) == sizeof(float)) {
    *reinterpret_cast<float4*>(out) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    *reinterpret_cast<uint4*>(out) =
        make_uint4(pack_pair(values[0], values[1], T()), pack_pair(values[2], values[3], T()),
                   pack_pair(values[4], values[5], T()), pack_pair(values[6], values[7], T()));
  }
}

/// softcap · tanh(logit / softcap), or the logit itself. The logit carries the scale already.
__device__ __forceinline__ float cap_logit(float logit, float softcap) {
  return softcap > 0.0f ? softcap * tanhf(logit / softcap) : logit;
}

}  // namespace lazyllm::cuda
