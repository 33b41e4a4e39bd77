// Log-probability of the target, entropy and log-sum-exp per row of a logits chunk [rows, vocab], and the gradient written
// over the logits. One block per row, one read of the row forward, one read and one write backward. Logits are float,
// bf16 or fp16; all statistics are float32. common/logprob.py has the same formulas in PyTorch.
#include "types.h"

// Running (m, s, w) of a set of logits: m = max x, s = sum exp(x - m), w = sum exp(x - m) (x - m).
struct Stats {
    float m, s, w;
};

__device__ inline Stats merge(Stats a, Stats b) {
    if (b.s == 0.f) return a;
    if (a.s == 0.f) return b;
    Stats out;
    out.m = fmaxf(a.m, b.m);
    float da = a.m - out.m, db = b.m - out.m, ea = expf(da), eb = expf(db);
    out.s = ea * a.s + eb * b.s;
    out.w = ea * (a.w + a.s * da) + eb * (b.w + b.s * db);
    return out;
}

// Statistics of n logits at x, at most one pack long.
template <typename T> __device__ inline Stats stats_of(const T* x, int n, float inverse_temperature) {
    Stats out = {0.f, 0.f, 0.f};
    bool any = false;
    for (int i = 0; i < n; i++) {
        float v = (float)x[i];
        if (v < Banned<T>::below) continue;
        v *= inverse_temperature;
        out.m = any ? fmaxf(out.m, v) : v;
        any = true;
    }
    for (int i = 0; any && i < n; i++) {
        float v = (float)x[i];
        if (v < Banned<T>::below) continue;
        float d = v * inverse_temperature - out.m, e = expf(d);
        out.s += e;
        out.w += e * d;
    }
    return out;
}

template <typename T>
__global__ void logps_forward(const T* logits, const int64_t* targets, float inverse_temperature, int vocab, float* logps,
                              float* entropy, float* lse) {
    __shared__ float m[BLOCK], s[BLOCK], w[BLOCK];
    const int t = threadIdx.x;
    const int64_t row = blockIdx.x;
    const T* x = logits + row * vocab;
    Stats mine = {0.f, 0.f, 0.f};
    const int N = Pack<T>::N;
    const bool aligned = ((uintptr_t)x % 16) == 0;  // rows of an odd vocabulary are not: their elements go one by one
    const int packs = aligned ? vocab / N : 0;
    for (int p = t; p < packs; p += BLOCK) {
        Pack<T> pack = ((const Pack<T>*)x)[p];
        mine = merge(mine, stats_of(pack.x, N, inverse_temperature));
    }
    for (int i = packs * N + t; i < vocab; i += BLOCK) mine = merge(mine, stats_of(x + i, 1, inverse_temperature));
    m[t] = mine.m, s[t] = mine.s, w[t] = mine.w;
    __syncthreads();
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        if (t < half) {
            Stats both = merge({m[t], s[t], w[t]}, {m[t + half], s[t + half], w[t + half]});
            m[t] = both.m, s[t] = both.s, w[t] = both.w;
        }
        __syncthreads();
    }
    if (t == 0) {
        float log_s = logf(s[0]), target = (float)x[targets[row]];
        lse[row] = m[0] + log_s;
        logps[row] = (target < Banned<T>::below ? target : target * inverse_temperature) - lse[row];
        entropy[row] = log_s - w[0] / s[0];  // H = lse - sum p x
    }
}

// logits <- d loss / d logits = (g (onehot - p) - h p (log p + H)) / temperature; g, h: gradients of log-prob and entropy.
template <typename T>
__global__ void logps_backward(T* logits, const int64_t* targets, float inverse_temperature, int vocab, const float* lse,
                               const float* entropy, const float* grad_logps, const float* grad_entropy) {
    const int64_t row = blockIdx.x, target = targets[row];
    T* x = logits + row * vocab;
    const float norm = lse[row], H = entropy[row], g = grad_logps[row], h = grad_entropy ? grad_entropy[row] : 0.f;
    auto gradient = [&](float v, int64_t i) {
        float out = 0.f;
        if (!(v < Banned<T>::below)) {
            float logp = v * inverse_temperature - norm, p = expf(logp);
            out = -p * g;
            if (h != 0.f && p > 0.f) out -= h * p * (logp + H);
        }
        if (i == target) out += g;
        return (T)(out * inverse_temperature);
    };
    const int N = Pack<T>::N;
    const bool aligned = ((uintptr_t)x % 16) == 0;
    const int packs = aligned ? vocab / N : 0;
    for (int p = threadIdx.x; p < packs; p += BLOCK) {
        Pack<T> pack = ((Pack<T>*)x)[p];
        for (int i = 0; i < N; i++) pack.x[i] = gradient((float)pack.x[i], (int64_t)p * N + i);
        ((Pack<T>*)x)[p] = pack;
    }
    for (int i = packs * N + threadIdx.x; i < vocab; i += BLOCK) x[i] = gradient((float)x[i], i);
}

// dtype: 0 float, 1 bf16, 2 fp16. Returns a CUDA error code, or -1 for an unknown dtype.
extern "C" int sightrl_logps_forward(int dtype, const void* logits, const int64_t* targets, float temperature, int rows,
                                     int vocab, float* logps, float* entropy, float* lse, void* stream) {
    const float scale = 1.f / temperature;
    if (rows == 0) return 0;
    if (dtype == 0)
        LAUNCH(logps_forward<float>, rows, stream, (const float*)logits, targets, scale, vocab, logps, entropy, lse);
    else if (dtype == 1)
        LAUNCH(logps_forward<bf16>, rows, stream, (const bf16*)logits, targets, scale, vocab, logps, entropy, lse);
    else if (dtype == 2)
        LAUNCH(logps_forward<half_t>, rows, stream, (const half_t*)logits, targets, scale, vocab, logps, entropy, lse);
    else
        return -1;
    return LAUNCH_STATUS();
}

extern "C" int sightrl_logps_backward(int dtype, void* logits, const int64_t* targets, float temperature, int rows,
                                      int vocab, const float* lse, const float* entropy, const float* grad_logps,
                                      const float* grad_entropy, void* stream) {
    const float scale = 1.f / temperature;
    if (rows == 0) return 0;
    if (dtype == 0)
        LAUNCH(logps_backward<float>, rows, stream, (float*)logits, targets, scale, vocab, lse, entropy, grad_logps,
               grad_entropy);
    else if (dtype == 1)
        LAUNCH(logps_backward<bf16>, rows, stream, (bf16*)logits, targets, scale, vocab, lse, entropy, grad_logps,
               grad_entropy);
    else if (dtype == 2)
        LAUNCH(logps_backward<half_t>, rows, stream, (half_t*)logits, targets, scale, vocab, lse, entropy, grad_logps,
               grad_entropy);
    else
        return -1;
    return LAUNCH_STATUS();
}
