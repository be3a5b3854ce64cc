/* Noisy leaky integrate-and-fire neurons over a sequence, forward and backward, in one pass each.

   models/functional.py states the dynamics, eager.py is the oracle. A thread takes a block of neurons
   through all time steps, so the potential and the noise stay in its first-level cache.

   Noise is counter-based. Neuron n at step t owns the first two words (a, b) of Philox 4x32-10 (Salmon,
   Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011) under the key seeds[t] and
   the counter (n, 0, 0, 0), n being its row-major index in [B, ...]. So noise depends neither on threads
   nor on blocks nor on the memory layout, and a stream cut in two draws what the whole one draws.
   Standard draws of (a, b), the first for the membrane, the second for the threshold:
     Gaussian         Box-Muller: radius sqrt(-2 log((a + 1/2) / 2^32)), angle in b: the top bit is the sign of
                      both, the next one swaps cosine and sine, the rest is an angle in [-pi/4, pi/4)
     the other laws   one word each: its lowest bit is the sign, q = (word / 2 + 1/2) / 2^32 the tail:
                      magnitude = quantile(1 - q), with q in (0, 1/2]
   Noise is float32 throughout, also for float64 potentials.

   INPUT_BITS chooses the type of currents and spikes: 64 double, 32 float, 16 bfloat16. Arithmetic is float,
   for 64 double. Loops are written for the compiler to vectorise; nothing here allocates. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 512 /* neurons; about ten arrays of this length are live */
#define MAX_RANK 8
#define PI 3.14159265358979323846

#if INPUT_BITS == 64
typedef double input;
typedef double real;
#elif INPUT_BITS == 32
typedef float input;
typedef float real;
#elif INPUT_BITS == 16
typedef uint16_t input; /* the bits of a bfloat16: the upper half of a float */
typedef float real;
#endif

enum { GAUSSIAN, LOGISTIC, TRIANGULAR, UNIFORM, CAUCHY };
enum { RESET_ZERO, RESET_SUBTRACT, RESET_NONE };

/* One layer; cpu.py fills it in. Sequences [T, B, ...] have their neurons in the same dense order of memory at
   each step: dimension d of `rank`, outermost first, has size[d] neurons, a row-major index index_stride[d] apart. */
typedef struct {
    int64_t timesteps, neurons; /* neurons: B * ..., at most 2^32 */
    int64_t x_stride;           /* between the steps of x, in elements; 0 where all steps are one image */
    int64_t rank, size[MAX_RANK], index_stride[MAX_RANK];
    double threshold, decay, scale, loc;
    int64_t law, reset, detach_reset, decay_input, membrane_noise, threshold_noise, mean_field;
    int64_t learns_decay, learns_scale;
    int64_t threads;
    const int64_t *seeds; /* [T] */
} Layer;

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

#if INPUT_BITS == 16
static inline real load(input x) { return float_of((uint32_t)x << 16); }
static inline input store(real y)
{
    uint32_t bits = bits_of(y);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; /* to the nearest, ties to even */
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded;   /* NaN stays NaN */
}
#else
static inline real load(input x) { return x; }
static inline input store(real y) { return y; }
#endif

/* Natural logarithm of a positive normal float; relative error below 2e-7 (polynomial: Moshier, Cephes, logf). */
static inline float fast_log(float x)
{
    uint32_t from_sqrt_half = bits_of(x) - 0x3f3504f3u;
    float exponent = (float)((int32_t)from_sqrt_half >> 23);
    float m = float_of((from_sqrt_half & 0x007fffffu) + 0x3f3504f3u) - 1.0f; /* in [sqrt(1/2), sqrt(2)) - 1 */
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    return (m - 0.5f * m * m + p * m * m * m) + 0.693147181f * exponent;
}

/* exp(x) for x <= 0; relative error below 2e-7 down to -87, and 0 below (polynomial: Cephes, expf). */
static inline float fast_exp(float x)
{
    float limited = x < -87.0f ? -87.0f : x;
    float n = floorf(limited * 1.44269504f + 0.5f);
    float r = limited - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    float scaled = (p * r * r + r + 1.0f) * float_of((uint32_t)((int32_t)n + 127) << 23);
    return x < -87.0f ? 0.0f : scaled;
}

/* sin and cos for |x| <= pi / 4; absolute error below 1e-7 (polynomials: Cephes, sinf and cosf). */
static inline float fast_sin(float x)
{
    float s = x * x;
    return x + x * s * ((-1.9515295891e-4f * s + 8.3321608736e-3f) * s - 1.6666654611e-1f);
}

static inline float fast_cos(float x)
{
    float s = x * x;
    return 1.0f - 0.5f * s + s * s * ((2.443315711809948e-5f * s - 1.388731625493765e-3f) * s + 4.166664568298827e-2f);
}

static inline real exp_of(real x) { return INPUT_BITS == 64 ? (real)exp(x) : (real)fast_exp((float)x); }

/* The two random words of each neuron at a step. */
static void random_block(int64_t seed, const uint32_t *restrict index, int n, uint32_t *restrict a, uint32_t *restrict b)
{
    const uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)((uint64_t)seed >> 32);
    for (int i = 0; i < n; i++) {
        uint32_t c0 = index[i], c1 = 0, c2 = 0, c3 = 0, k0 = key0, k1 = key1;
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
            uint32_t next0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, next2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
            c0 = next0, c1 = (uint32_t)p1, c2 = next2, c3 = (uint32_t)p0;
            k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
        }
        a[i] = c0, b[i] = c1;
    }
}

static inline float tail_of(uint32_t word) { return (float)(int32_t)(word >> 1) * 0x1p-32f + 0x1p-33f; }

static inline float signed_by(uint32_t word, float magnitude) { return float_of(bits_of(magnitude) ^ (word << 31)); }

static inline float triangular_draw(uint32_t w) { return signed_by(w, 1.0f - sqrtf(2.0f * tail_of(w))); }

static inline float uniform_draw(uint32_t w) { return signed_by(w, 1.0f - 2.0f * tail_of(w)); }

static inline float logistic_draw(uint32_t w)
{
    float q = tail_of(w);
    return signed_by(w, fast_log((1.0f - q) / q));
}

static inline float cauchy_draw(uint32_t w)
{
    float q = tail_of(w), octant = q < 0.25f ? q : 0.5f - q; /* 1 / tan(pi q) by the octant of the angle */
    float s = fast_sin((float)PI * octant), c = fast_cos((float)PI * octant);
    return signed_by(w, q < 0.25f ? c / s : s / c);
}

static void gaussian_draws(const uint32_t *restrict a, const uint32_t *restrict b, int n, float scale, float loc,
                           float *restrict membrane, float *restrict threshold)
{
    for (int i = 0; i < n; i++) {
        float radius = sqrtf(-2.0f * fast_log((float)a[i] * 0x1p-32f + 0x1p-33f));
        float angle = (float)(int32_t)(b[i] << 2) * (float)(PI * 0x1p-33);
        float sine = fast_sin(angle), cosine = fast_cos(angle);
        int swap = b[i] >> 30 & 1;
        radius = float_of(bits_of(radius) ^ (b[i] & 0x80000000u)) * scale;
        membrane[i] = loc + radius * (swap ? sine : cosine);
        threshold[i] = loc + radius * (swap ? cosine : sine);
    }
}

#define DRAW(draw)                                                                             \
    do {                                                                                       \
        if (l->membrane_noise)                                                                 \
            for (int i = 0; i < n; i++) membrane[i] = loc + scale * draw(a[i]);                \
        if (l->threshold_noise)                                                                \
            for (int i = 0; i < n; i++) threshold[i] = loc + scale * draw(b[i]);               \
    } while (0)

/* The noise of a block at step t; the arrays of a place without noise hold 0 and are left alone. */
static void draw_noise(const Layer *l, int64_t t, const uint32_t *index, int n, float *restrict membrane,
                       float *restrict threshold)
{
    uint32_t a[BLOCK], b[BLOCK];
    const float scale = (float)l->scale, loc = (float)l->loc;
    if (!l->membrane_noise && !l->threshold_noise) return;
    random_block(l->seeds[t], index, n, a, b);
    switch (l->law) {
    case GAUSSIAN: {
        float unused[BLOCK];
        gaussian_draws(a, b, n, scale, loc, l->membrane_noise ? membrane : unused,
                       l->threshold_noise ? threshold : unused);
        break;
    }
    case LOGISTIC: DRAW(logistic_draw); break;
    case TRIANGULAR: DRAW(triangular_draw); break;
    case UNIFORM: DRAW(uniform_draw); break;
    case CAUCHY: DRAW(cauchy_draw); break;
    }
}

/* Row-major indices of the neurons at `start`, `start` + 1, ... in memory. */
static void index_block(const Layer *l, int64_t start, int n, uint32_t *restrict index)
{
    const int64_t inner = l->size[l->rank - 1], step = l->index_stride[l->rank - 1];
    for (int done = 0; done < n;) {
        int64_t outer = (start + done) / inner, first = (start + done) % inner;
        int64_t base = first * step;
        for (int64_t d = l->rank - 2; d >= 0; d--) {
            base += outer % l->size[d] * l->index_stride[d];
            outer /= l->size[d];
        }
        int row = inner - first < n - done ? (int)(inner - first) : n - done;
        for (int i = 0; i < row; i++) index[done + i] = (uint32_t)base + (uint32_t)i * (uint32_t)step;
        done += row;
    }
}

/* Firing probability F(z). Only the mean field needs it: libm is fast enough. */
static void probabilities(const Layer *l, const real *restrict z, int n, real *restrict p)
{
    const real loc = (real)l->loc, inverse = (real)(1 / l->scale);
#define FOR_Y(value)                       \
    for (int i = 0; i < n; i++) {          \
        real y = (z[i] - loc) * inverse;   \
        p[i] = (real)(value);              \
    }                                      \
    break
    switch (l->law) {
    case GAUSSIAN: FOR_Y(0.5 * erfc((double)y * -0.70710678118654752440));
    case LOGISTIC: FOR_Y(y > 0 ? 1 / (1 + exp(-(double)y)) : exp((double)y) / (1 + exp((double)y)));
    case TRIANGULAR: FOR_Y(y <= -1 ? 0 : y >= 1 ? 1 : (real)0.5 + y * (1 - (real)0.5 * (y < 0 ? -y : y)));
    case UNIFORM: FOR_Y(y <= -1 ? 0 : y >= 1 ? 1 : (real)0.5 * (1 + y));
    case CAUCHY: FOR_Y(atan2(1, -(double)y) / PI);
    }
#undef FOR_Y
}

/* Density F'(z), which stands for d spike / d u. */
static void densities(const Layer *l, const real *restrict z, int n, real *restrict slope)
{
    const real loc = (real)l->loc, inverse = (real)(1 / l->scale);
    const real gaussian = (real)(1 / (l->scale * sqrt(2 * PI))), cauchy = (real)(1 / (l->scale * PI));
#define FOR_Y(value)                       \
    for (int i = 0; i < n; i++) {          \
        real y = (z[i] - loc) * inverse;   \
        y = y < 0 ? -y : y;                \
        slope[i] = (value);                \
    }                                      \
    break
    switch (l->law) {
    case GAUSSIAN: FOR_Y(gaussian * exp_of((real)-0.5 * y * y));
    case LOGISTIC: FOR_Y(inverse * exp_of(-y) / ((1 + exp_of(-y)) * (1 + exp_of(-y))));
    case TRIANGULAR: FOR_Y(y < 1 ? inverse * (1 - y) : 0);
    case UNIFORM: FOR_Y(y <= 1 ? (real)0.5 * inverse : 0);
    case CAUCHY: FOR_Y(cauchy / (1 + y * y));
    }
#undef FOR_Y
}

static int64_t blocks_of(const Layer *l) { return (l->neurons + BLOCK - 1) / BLOCK; }

static int length_of(const Layer *l, int64_t start)
{
    return l->neurons - start < BLOCK ? (int)(l->neurons - start) : BLOCK;
}

/* x [T, ...], state [...] or NULL (rest) -> spikes [T, ...], z = u - threshold [T, ...] unless NULL, last state [...]. */
static void forward_block(const Layer *l, int64_t start, int n, const input *x, const real *state, input *spikes,
                          real *z, real *last)
{
    uint32_t index[BLOCK];
    float eps_membrane[BLOCK] = {0}, eps_threshold[BLOCK] = {0};
    real v[BLOCK], potential[BLOCK], fired[BLOCK];
    const real decay = (real)l->decay, gain = l->decay_input ? 1 - decay : 1, threshold = (real)l->threshold;
    const real soft = l->reset == RESET_SUBTRACT ? threshold : 0;
    const int hard = l->reset == RESET_ZERO;
    index_block(l, start, n, index);
    for (int i = 0; i < n; i++) v[i] = state ? state[start + i] : 0;
    for (int64_t t = 0; t < l->timesteps; t++) {
        const input *restrict current = x + t * l->x_stride + start;
        input *restrict out = spikes + t * l->neurons + start;
        real *restrict kept = z ? z + t * l->neurons + start : potential;
        draw_noise(l, t, index, n, eps_membrane, eps_threshold);
        for (int i = 0; i < n; i++) kept[i] = decay * v[i] + gain * load(current[i]) - eps_membrane[i] - threshold;
        if (l->mean_field)
            probabilities(l, kept, n, fired);
        else
            for (int i = 0; i < n; i++) fired[i] = kept[i] > eps_threshold[i] ? 1 : 0;
        for (int i = 0; i < n; i++) {
            real u = kept[i] + threshold;
            out[i] = store(fired[i]);
            v[i] = u - fired[i] * (hard ? u : soft);
        }
    }
    memcpy(last + start, v, n * sizeof(real));
}

static double sum(const real *values, int n)
{
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; i++) total += values[i];
    return total;
}

/* grad_spikes [T, ...] and grad_last [...], or NULL for zeros -> grad_x [T, ...], grad_state [...], and what
   the block adds to the gradients of decay and scale. */
static void backward_block(const Layer *l, int64_t start, int n, const input *x, const real *state,
                           const input *spikes, const real *z, const input *grad_spikes, const real *grad_last,
                           input *grad_x, real *grad_state, double *grad_decay, double *grad_scale)
{
    uint32_t index[BLOCK];
    float eps_membrane[BLOCK] = {0}, eps_threshold[BLOCK] = {0};
    real grad_v[BLOCK], slope[BLOCK], fired[BLOCK], before[BLOCK], part[BLOCK];
    const real decay = (real)l->decay, gain = l->decay_input ? 1 - decay : 1, threshold = (real)l->threshold;
    const real soft = l->reset == RESET_SUBTRACT ? threshold : 0, loc = (real)l->loc;
    const int hard = l->reset == RESET_ZERO, redraws = l->learns_scale && l->membrane_noise;
    const int spreads = l->threshold_noise || l->mean_field; /* P(fire) = F(z), F stretched by the scale */
    double decay_sum = 0, scale_sum = 0;
    if (redraws) index_block(l, start, n, index);
    for (int i = 0; i < n; i++) grad_v[i] = grad_last ? grad_last[start + i] : 0;
    for (int64_t t = l->timesteps - 1; t >= 0; t--) {
        const int64_t at = t * l->neurons + start;
        const real *restrict z_t = z + at;
        const input *restrict given = grad_spikes ? grad_spikes + at : NULL;
        input *restrict out = grad_x + at;
        densities(l, z_t, n, slope);
        if (l->mean_field)
            probabilities(l, z_t, n, fired);
        else
            for (int i = 0; i < n; i++) fired[i] = load(spikes[at + i]);
        if (l->learns_scale && redraws) draw_noise(l, t, index, n, eps_membrane, eps_threshold);
        for (int i = 0; i < n; i++) {
            real removed = hard ? z_t[i] + threshold : soft; /* what the reset takes from a neuron that fires */
            real grad_fired = (given ? load(given[i]) : 0) - (l->detach_reset ? 0 : grad_v[i] * removed);
            real grad_u = grad_v[i] - (hard ? grad_v[i] * fired[i] : 0) + grad_fired * slope[i];
            part[i] = (spreads ? grad_fired * slope[i] * (z_t[i] - loc) : 0) + (redraws ? grad_u * (eps_membrane[i] - loc) : 0);
            out[i] = store(gain * grad_u);
            slope[i] = grad_u;
            grad_v[i] = decay * grad_u;
        }
        if (l->learns_scale) scale_sum -= sum(part, n);
        if (l->learns_decay) {
            if (t == 0)
                for (int i = 0; i < n; i++) before[i] = state ? state[start + i] : 0;
            else {
                const real *restrict z_before = z_t - l->neurons;
                if (l->mean_field)
                    probabilities(l, z_before, n, fired);
                else
                    for (int i = 0; i < n; i++) fired[i] = load(spikes[at - l->neurons + i]);
                for (int i = 0; i < n; i++) {
                    real u = z_before[i] + threshold;
                    before[i] = u - fired[i] * (hard ? u : soft);
                }
            }
            for (int i = 0; i < n; i++)
                part[i] = slope[i] * (before[i] - (l->decay_input ? load(x[t * l->x_stride + start + i]) : 0));
            decay_sum += sum(part, n);
        }
    }
    memcpy(grad_state + start, grad_v, n * sizeof(real));
    *grad_decay = decay_sum;
    *grad_scale = scale_sum / l->scale;
}

void lif_forward(const Layer *l, const input *x, const real *state, input *spikes, real *z, real *last)
{
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t block = 0; block < blocks_of(l); block++)
        forward_block(l, block * BLOCK, length_of(l, block * BLOCK), x, state, spikes, z, last);
}

/* parts [2][blocks]: what each block adds to the gradient of decay and of scale; summed by the caller in the
   order of blocks, so that the number of threads does not matter. */
void lif_backward(const Layer *l, const input *x, const real *state, const input *spikes, const real *z,
                  const input *grad_spikes, const real *grad_last, input *grad_x, real *grad_state, double *parts)
{
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t block = 0; block < blocks_of(l); block++)
        backward_block(l, block * BLOCK, length_of(l, block * BLOCK), x, state, spikes, z, grad_spikes, grad_last,
                       grad_x, grad_state, parts + block, parts + blocks_of(l) + block);
}

/* The words a [T, ...] and b [T, ...] of every neuron and step, for tests. */
void random_words(const Layer *l, uint32_t *a, uint32_t *b)
{
    for (int64_t t = 0; t < l->timesteps; t++)
        for (int64_t start = 0; start < l->neurons; start += BLOCK) {
            uint32_t index[BLOCK];
            index_block(l, start, length_of(l, start), index);
            random_block(l->seeds[t], index, length_of(l, start), a + t * l->neurons + start,
                         b + t * l->neurons + start);
        }
}

int64_t block_length(void) { return BLOCK; }
