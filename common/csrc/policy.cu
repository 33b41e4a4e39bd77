// The token-level policy loss of a micro-batch and its gradient in one pass: ratio, clip, dual clip, KL, mask and weights.
// loss = sum_i weights[i] sum_t mask[i, t] L[i, t]. One block per response; sums are taken in a fixed order, so results
// repeat bit for bit. common/grpo.py has the same formulas in PyTorch (clipped_loss, kl_estimate, aggregate).
#include "types.h"

constexpr float LOG_RATIO_CLAMP = 20.f;  // no gradient beyond, as in token_log_ratio of common/grpo.py
constexpr float K3_CLAMP = 10.f;         // the same for the value of k3

// per response: loss, sum of KL, tokens cut from below, tokens cut from above
__global__ void policy_loss(const float* logps, const float* old_logps, const float* ref_logps, const float* advantages,
                            const uint8_t* mask, const float* weights, int width, float clip_low, float clip_high,
                            float dual_clip, float kl_coef, int kl_kind, float* grad, float* sums) {
    __shared__ float shared[BLOCK];
    const int64_t row = blockIdx.x;
    const float A = advantages[row], weight = weights[row];
    float loss = 0.f, kl_sum = 0.f, below = 0.f, above = 0.f;
    for (int t = threadIdx.x; t < width; t += BLOCK) {
        const int64_t at = row * width + t;
        grad[at] = 0.f;
        if (!mask[at]) continue;
        const float difference = logps[at] - old_logps[at];
        const float l = fminf(fmaxf(difference, -LOG_RATIO_CLAMP), LOG_RATIO_CLAMP), r = expf(l);
        const float clipped = fminf(fmaxf(r, 1.f - clip_low), 1.f + clip_high);
        float L = fmaxf(-A * r, -A * clipped);
        // Gradient of max(-A r, -A clipped) by r: the branch taken; inside the clip both are the same.
        bool flows = clipped == r || -A * r > -A * clipped;
        if (dual_clip > 0.f && A < 0.f && L > -dual_clip * A) L = -dual_clip * A, flows = false;
        float d = flows && fabsf(difference) <= LOG_RATIO_CLAMP ? -A * r : 0.f;
        below += A < 0.f && r < 1.f - clip_low;
        above += A > 0.f && r > 1.f + clip_high;
        if (ref_logps) {
            const float raw = ref_logps[at] - logps[at];
            float kl, slope;  // value and derivative by logp
            if (kl_kind == 1) {
                kl = -raw, slope = 1.f;
            } else if (kl_kind == 2) {
                kl = raw * raw / 2.f, slope = -raw;
            } else {
                const float x = fminf(fmaxf(raw, -LOG_RATIO_CLAMP), LOG_RATIO_CLAMP);
                const float k3 = expf(x) - x - 1.f;
                kl = fminf(k3, K3_CLAMP);
                slope = fabsf(raw) <= LOG_RATIO_CLAMP && k3 <= K3_CLAMP ? 1.f - expf(x) : 0.f;
            }
            L += kl_coef * kl;
            d += kl_coef * slope;
            kl_sum += kl;
        }
        loss += L;
        grad[at] = weight * d;
    }
    const float totals[4] = {weight * loss, kl_sum, below, above};
    for (int i = 0; i < 4; i++) {
        float total = block_sum(totals[i], shared);
        if (threadIdx.x == 0) sums[row * 4 + i] = total;
    }
}

// All float32 and contiguous: logps, old_logps, ref_logps (or null) [rows, width]; advantages, weights [rows]; mask uint8;
// out: grad [rows, width], sums [rows, 4]. kl_kind: 1, 2, 3. Returns a CUDA error code.
extern "C" int sightrl_policy_loss(const float* logps, const float* old_logps, const float* ref_logps,
                                   const float* advantages, const uint8_t* mask, const float* weights, int rows, int width,
                                   float clip_low, float clip_high, float dual_clip, float kl_coef, int kl_kind, float* grad,
                                   float* sums, void* stream) {
    if (rows == 0) return 0;
    LAUNCH(policy_loss, rows, stream, logps, old_logps, ref_logps, advantages, mask, weights, width, clip_low, clip_high,
           dual_clip, kl_coef, kl_kind, grad, sums);
    return LAUNCH_STATUS();
}
