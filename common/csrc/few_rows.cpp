// y = x W^T for few rows of x, the matrix product of decoding: its time is the reading of W.
//
// W lies packed in panels of WIDTH outputs, [out / WIDTH][inner][WIDTH], so that every panel is read once, in order,
// while the sums of up to ROWS rows stay in registers; further rows find the panel in the cache.

#include <cstdint>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8;
#else
constexpr int LANES = 8, ROWS = 4;
#endif
constexpr int WIDTH = 2 * LANES;
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

template <int R> static inline void tile(const float* panel, const float* x, float* y, int64_t inner, int64_t out) {
  Vector sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = Vector{};
  for (int64_t k = 0; k < inner; ++k) {
    const Vector* w = reinterpret_cast<const Vector*>(panel + k * WIDTH);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const float value = x[r * inner + k];
      sum[r][0] += value * w[0];
      sum[r][1] += value * w[1];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vector* to = reinterpret_cast<Vector*>(y + r * out);
    to[0] = sum[r][0];
    to[1] = sum[r][1];
  }
}

extern "C" int sightrl_width() { return WIDTH; }

// packed: [out / WIDTH][inner][WIDTH], x: [rows][inner], y: [rows][out]; out is a multiple of WIDTH.
extern "C" void sightrl_few_rows(const float* packed, const float* x, float* y, int64_t rows, int64_t inner,
                                 int64_t out) {
#pragma omp parallel for schedule(static)
  for (int64_t p = 0; p < out / WIDTH; ++p) {
    const float* panel = packed + p * WIDTH * inner;
    float* to = y + p * WIDTH;
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS) tile<ROWS>(panel, x + r * inner, to + r * out, inner, out);
    for (; r + 2 <= rows; r += 2) tile<2>(panel, x + r * inner, to + r * out, inner, out);
    for (; r < rows; ++r) tile<1>(panel, x + r * inner, to + r * out, inner, out);
  }
}
