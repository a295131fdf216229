// Instructions of Hopper GPUs (sm_90a), in addition to those of device_functions.hpp: bulk tensor
// copies, barriers that count bytes, and warpgroup products. tests/host/hopper_on_host.hpp
// implements them on a CPU.
#pragma once
#include "device_functions.hpp"

#if defined(CURVEDIT_ON_HOST)
#include "hopper_on_host.hpp"
#else

#include <cuda.h>

namespace curvedit {

using TensorMap = CUtensorMap;
#define CURVEDIT_MAP const __grid_constant__ TensorMap

CURVEDIT_DEVICE void init_barrier(Shared barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
CURVEDIT_DEVICE void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}
CURVEDIT_DEVICE void arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives, and makes the barrier's phase wait for this many bytes as well.
CURVEDIT_DEVICE void arrive_expecting(Shared barrier, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
// Waits until the phase of this parity is over.
CURVEDIT_DEVICE void wait(Shared barrier, unsigned parity) {
  asm volatile(
      "{\n.reg .pred p;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
      "@!p bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
// Copies the map's box at (column, token) to shared memory, swizzled by 128 bytes. The barrier
// counts its bytes.
CURVEDIT_DEVICE void load_box(Shared to, const TensorMap* map, int column, int token,
                              Shared barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, "
      "{%2, %3}], [%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(token), "r"(barrier)
      : "memory");
}
// The same into both blocks of the cluster, at the same place of their shared memory. Each block's
// barrier counts the bytes.
CURVEDIT_DEVICE void load_box_for_both(Shared to, const TensorMap* map, int column, int token,
                                       Shared barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(token), "r"(barrier), "h"(static_cast<std::uint16_t>(3))
      : "memory");
}
// Which block of its cluster this is.
CURVEDIT_DEVICE int rank_in_cluster() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}
// Arrives at the barrier in the same place of another block of the cluster.
CURVEDIT_DEVICE void arrive_at(Shared barrier, int rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
CURVEDIT_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
// Reads device memory into the second-level cache, without waiting. `bytes`: a multiple of 16.
CURVEDIT_DEVICE void prefetch(const float* from, unsigned bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
// Lets the next kernel of the stream start as soon as there is room for it …
CURVEDIT_DEVICE void allow_second_kernel() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
// … where it waits, with this, until the first one and its writes are done.
CURVEDIT_DEVICE void wait_for_first_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Registers of each thread of this warpgroup, taken from and given to the block's pool.
template <int kRegisters>
CURVEDIT_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
CURVEDIT_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
// Adds two neighbours in device memory, without waiting.
CURVEDIT_DEVICE void add_pair(float* at, float left, float right) {
  asm volatile("red.relaxed.gpu.global.add.v2.f32 [%0], {%1, %2};" ::"l"(at), "f"(left), "f"(right)
               : "memory");
}
CURVEDIT_DEVICE void store_pair(float* at, float left, float right) {
  *reinterpret_cast<float2*>(at) = make_float2(left, right);
}
// Makes earlier ordinary writes to shared memory visible to products and copies that come after the
// next barrier.
CURVEDIT_DEVICE void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
CURVEDIT_DEVICE void partial_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

CURVEDIT_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CURVEDIT_DEVICE void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most kPending groups of products are in flight.
template <int kPending>
CURVEDIT_DEVICE void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Describes a matrix in shared memory whose columns run along swizzled rows of 128 bytes. The next
// 64 columns lie `next_columns` bytes on, the next 8 rows `next_rows` bytes on.
CURVEDIT_DEVICE std::uint64_t matrix_at(Shared at, unsigned next_columns, unsigned next_rows) {
  const std::uint64_t place = (at & 0x3ffff) >> 4;
  const std::uint64_t columns = next_columns >> 4, rows = next_rows >> 4;
  return place | columns << 16 | rows << 32 | 1ull << 62;
}

// The 128 registers of a sum, as the operands %0 … %127 and as asm constraints.
#define CURVEDIT_SUM                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define CURVEDIT_EIGHT(d, n)                                                                  \
  "+f"(d[n]), "+f"(d[n + 1]), "+f"(d[n + 2]), "+f"(d[n + 3]), "+f"(d[n + 4]), "+f"(d[n + 5]), \
      "+f"(d[n + 6]), "+f"(d[n + 7])
#define CURVEDIT_THIRTY_TWO(d, n)                                            \
  CURVEDIT_EIGHT(d, n), CURVEDIT_EIGHT(d, n + 8), CURVEDIT_EIGHT(d, n + 16), \
      CURVEDIT_EIGHT(d, n + 24)
#define CURVEDIT_REGISTERS(d)                                                        \
  CURVEDIT_THIRTY_TWO(d, 0), CURVEDIT_THIRTY_TWO(d, 32), CURVEDIT_THIRTY_TWO(d, 64), \
      CURVEDIT_THIRTY_TWO(d, 96)

// d (64 x 256, spread over 128 threads) += a^T b over 16 rows of each.
struct Bfloat16Warpgroup {
  static CURVEDIT_DEVICE void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {" CURVEDIT_SUM
        "}, %128, %129, p, 1, 1, 1, 1;\n}\n"
        : CURVEDIT_REGISTERS(d)
        : "l"(a), "l"(b));
  }
};
struct Float16Warpgroup {
  static CURVEDIT_DEVICE void multiply(float (&d)[128], std::uint64_t a, std::uint64_t b) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 {" CURVEDIT_SUM
        "}, %128, %129, p, 1, 1, 1, 1;\n}\n"
        : CURVEDIT_REGISTERS(d)
        : "l"(a), "l"(b));
  }
};

}  // namespace curvedit
#endif
