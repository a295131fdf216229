// The instructions that the CUDA kernels are built from. Under nvcc each is one line of PTX. The
// tests compile the same kernels with a C++ compiler against tests/host/device_on_host.hpp, which
// implements every function below on a CPU, exact to the lane.
#pragma once

#if defined(CURVEDIT_ON_HOST)
#include "device_on_host.hpp"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#define CURVEDIT_DEVICE __device__ __forceinline__
#define CURVEDIT_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define CURVEDIT_UNROLL _Pragma("unroll")
#define CURVEDIT_UNROLL_4 _Pragma("unroll 4")

namespace curvedit {

using Shared = std::uint32_t;  // an address in shared memory

extern __shared__ __align__(128) unsigned char dynamic_shared[];

CURVEDIT_DEVICE unsigned char* shared_memory() { return dynamic_shared; }
CURVEDIT_DEVICE Shared to_shared(const void* p) {
  return static_cast<Shared>(__cvta_generic_to_shared(p));
}
CURVEDIT_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
CURVEDIT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
CURVEDIT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
CURVEDIT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
CURVEDIT_DEVICE void block_barrier() { __syncthreads(); }

// Copies 16 bytes to shared memory in the background, or zeros where the source must not be read.
CURVEDIT_DEVICE void copy_async(Shared to, const void* from, bool is_read) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(is_read ? 16 : 0)
               : "memory");
}
CURVEDIT_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending groups of this thread's copies are in flight.
template <int kPending>
CURVEDIT_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Loads four 8 x 8 matrices of 16-bit numbers, transposed. Lane l passes the address of row l % 8
// of matrix l / 8.
CURVEDIT_DEVICE void load_transposed(std::uint32_t (&r)[4], Shared row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}

struct Bfloat16Words {
  using Word = std::uint16_t;
  static CURVEDIT_DEVICE float to_float(std::uint16_t bits) {
    return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
  }
  static CURVEDIT_DEVICE std::uint16_t from_float(float value) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(value));
  }
  static CURVEDIT_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                       std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Float16Words {
  using Word = std::uint16_t;
  static CURVEDIT_DEVICE float to_float(std::uint16_t bits) {
    return __half2float(__ushort_as_half(bits));
  }
  static CURVEDIT_DEVICE std::uint16_t from_float(float value) {
    return __half_as_ushort(__float2half_rn(value));
  }
  static CURVEDIT_DEVICE void multiply(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                       std::uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

struct Float32Words {
  using Word = float;
  static CURVEDIT_DEVICE float to_float(float value) { return value; }
};

}  // namespace curvedit
#endif
