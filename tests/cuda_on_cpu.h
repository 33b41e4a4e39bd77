// Lets g++ compile common/csrc/*.cu and run a block's threads as CPU threads, one block after the other:
//     g++ -x c++ -std=c++20 -DBLOCK=8 -include tests/cuda_on_cpu.h -shared -fPIC -pthread ...
#pragma once
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __syncthreads() cpu_barrier->arrive_and_wait()

struct Index { int x; };
inline thread_local Index threadIdx, blockIdx;
inline thread_local std::barrier<>* cpu_barrier;
typedef _Float16 half_t;

struct bf16 {  // rounds to nearest even, as the GPU does
    uint16_t bits;
    bf16() = default;
    explicit bf16(float value) {
        uint32_t u;
        std::memcpy(&u, &value, 4);
        bits = std::isnan(value) ? 0x7fc0 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    }
    explicit operator float() const {
        uint32_t u = (uint32_t)bits << 16;
        float value;
        std::memcpy(&value, &u, 4);
        return value;
    }
};

#define LAUNCH(kernel, blocks, stream, ...) cpu_launch((blocks), [&] { kernel(__VA_ARGS__); })
#define LAUNCH_STATUS() 0

template <typename Call> void cpu_launch(int blocks, Call call) {
    for (int block = 0; block < blocks; block++) {
        std::barrier<> barrier(BLOCK);
        std::vector<std::thread> threads;
        for (int t = 0; t < BLOCK; t++)
            threads.emplace_back([&, t] { threadIdx.x = t, blockIdx.x = block, cpu_barrier = &barrier, call(); });
        for (auto& thread : threads) thread.join();
    }
}
