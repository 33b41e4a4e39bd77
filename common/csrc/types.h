// What the kernels are written in: 16-bit types, 16-byte loads, a launch, reductions over a block. Compiles with nvcc, and
// with g++ behind tests/cuda_on_cpu.h, which runs a block's threads as CPU threads so that the arithmetic can be tested
// where there is no GPU.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
typedef __nv_bfloat16 bf16;
typedef __half half_t;
#define LAUNCH(kernel, blocks, stream, ...) kernel<<<(blocks), BLOCK, 0, (cudaStream_t)(stream)>>>(__VA_ARGS__)
#define LAUNCH_STATUS() ((int)cudaGetLastError())
#ifndef BLOCK
#define BLOCK 512
#endif
#endif

// Logits below this have probability 0: banned ids are written as -1e30, in fp16 as the lowest number.
template <typename T> struct Banned { static constexpr float below = -1e29f; };
template <> struct Banned<half_t> { static constexpr float below = -65503.f; };

template <typename T> struct alignas(16) Pack {  // one 16-byte load
    static constexpr int N = 16 / sizeof(T);
    T x[N];
};

// Sum over the block of every thread's value; all threads get it. `shared` holds BLOCK floats. BLOCK is a power of two.
__device__ inline float block_sum(float value, float* shared) {
    shared[threadIdx.x] = value;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    float total = shared[0];
    __syncthreads();
    return total;
}
