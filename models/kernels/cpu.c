/* Noisy leaky integrate-and-fire neurons over a sequence, forward and backward, in one pass each; batch normalisation
   before them, which has the statistics to find first, and another pass over its gradient; and spikes as bits.

   models/functional.py states the dynamics, eager.py is the oracle. A thread takes a block of neurons through all time
   steps, so the potential and the noise stay in its first-level cache. With `scratch`, the backward pass does so again,
   by the same code, instead of reading potentials and spikes that the forward pass would have had to keep.

   Noise is counter-based: Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
   1, 2, 3", SC 2011), with a key of its own, seeds[t], for each step. Neuron n, its row-major index in [B, ...]
   of N neurons, owns two of the four words of the counter (n mod H, 0, 0, 0), H = ceil(N / 2): the first two if
   n < H, else the last two. So noise depends neither on threads nor on blocks nor on the memory layout, and a
   stream cut in two draws what the whole one draws.
   Standard draws of (a, b), the first for the membrane, the second for the threshold:
     Gaussian         Box-Muller: radius sqrt(-2 log((a + 1/2) / 2^32)), angle in b: the top bit is the sign of
                      both, the next one swaps cosine and sine, the rest is an angle in [-pi/4, pi/4)
     the other laws   one word each: its lowest bit is the sign, q = (word / 2 + 1/2) / 2^32 the tail:
                      magnitude = quantile(1 - q), with q in (0, 1/2]
   Noise is float32 throughout, also for float64 potentials.

   INPUT_BITS chooses the type of currents and spikes: 64 double, 32 float, 16 bfloat16. Arithmetic is float,
   for 64 double. Loops are written for the compiler to vectorise; nothing here allocates.

   CHANNELS is 1 where threshold, decay, scale and the reset's value may differ between channels: each is then a row of a
   number for each neuron of a block; otherwise it is one number, which stays in a register. VALUE and AT hide which. */

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#define BLOCK 1024 /* neurons at most; about ten arrays of this length are live */
#define INLINE static inline __attribute__((always_inline))
#define MAX_RANK 3
#define GROUPS 128 /* of blocks; a thread sums each in order, so that results do not depend on the number of threads */
#define MIN_BYTES_FOR_LARGE_PAGES (8 << 20)
#define VERY_FAR 1e30 /* for a potential; as in common.py */
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

/* The laws that this kernel knows. Every choice below is between all of them, and ends in a trap. */
enum { GAUSSIAN, LOGISTIC, TRIANGULAR, UNIFORM, CAUCHY, LAW_COUNT };
static const char *const law_names[] = {
    [GAUSSIAN] = "Gaussian", [LOGISTIC] = "Logistic", [TRIANGULAR] = "Triangular", [UNIFORM] = "Uniform",
    [CAUCHY] = "Cauchy",
};
_Static_assert(sizeof law_names / sizeof *law_names == LAW_COUNT, "each law has a name");
_Static_assert(LAW_COUNT == 5, "give a new law its draw, probability, density and case of BY_LAW, then count it here");
enum { RESET_ZERO, RESET_SUBTRACT, RESET_NONE };
enum { THRESHOLD, DECAY, SCALE, RESET_VALUE, VALUE_COUNT }; /* what can be learnt */
#ifndef CHANNELS
#define CHANNELS 0
#endif
/* Sums for batch norm: of the gradient, of it times x - mean, and of it times residual - its mean. */
enum { OF_CURRENT, ALONG_X, ALONG_RESIDUAL, NORM_SUMS };

/* One layer; cpu.py fills it in. Sequences [T, B, ...] have their neurons in the same dense order of memory at
   each step: dimension d of `rank`, outermost first, has size[d] neurons, a row-major index index_stride[d] apart. */
typedef struct {
    int64_t timesteps, neurons; /* neurons: B * ..., at most 2^32 */
    int64_t x_stride;           /* between the steps of x, in elements; 0 where all steps are one image */
    int64_t rank, size[MAX_RANK], index_stride[MAX_RANK];
    int64_t channels, channel_stride; /* the neuron at a place of memory is of channel (place / stride) % channels */
    int64_t threads, block;           /* block: at most BLOCK; shorter where many steps of it are to fit into a cache */
    double number[VALUE_COUNT], loc; /* a value that differs between channels is in Tensors instead */
    int64_t law, reset, detach_reset, decay_input, membrane_noise, threshold_noise, mean_field;
    int64_t learns[VALUE_COUNT];
} Layer;

/* Sequences [T, ...], single steps [...] (state, last and their gradients) and seeds [T]; u: before the reset. NULL: the
   state is rest, gradients that come in are zeros, and results that go out are not wanted. cpu.py fills it in. */
typedef struct {
    const input *x;
    const real *state;
    const int64_t *seeds;
    input *spikes;
    real *u;
    const input *grad_spikes;
    const real *grad_last;
    input *grad_x;
    real *grad_state;
    real *last;
    uint8_t *bits; /* of the spikes, in the order of memory; only where all rows of neurons fill whole bytes */
    const real *by_channel[VALUE_COUNT]; /* [channels], or NULL for a number */
    double *grad_values[VALUE_COUNT];    /* [number_of_groups][channels, or 1 for a number], zeros at first */
    /* The current is x or, with a factor, factor * x + shift (+ residual, which may have such a factor itself); all but
       the residual are [channels]. */
    const real *factor, *shift, *mean;
    const input *residual;
    const real *residual_factor, *residual_shift, *residual_mean, *slope; /* slope: for norm_backward */
    uint8_t *scratch;  /* bytes_of_scratch for each thread: the backward pass computes u again, and spikes unless given */
    double *norm_sums; /* [number_of_groups][NORM_SUMS][channels], zeros at first */
} Tensors;

typedef union {
    float value;
    uint32_t bits;
} Float;
INLINE float float_of(uint32_t bits) { return (Float){.bits = bits}.value; }
INLINE uint32_t bits_of(float value) { return (Float){.value = value}.bits; }

#if INPUT_BITS == 16
INLINE real load(input x) { return float_of((uint32_t)x << 16); }
INLINE input store(real y)
{
    uint32_t bits = bits_of(y);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16; /* to the nearest, ties to even */
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded;   /* NaN stays NaN */
}
#else
INLINE real load(input x) { return x; }
INLINE input store(real y) { return y; }
#endif

/* a * b + c, rounded once where the machine can. The compiler is not left to fuse operations as it likes: it would do
   so one way in the vectors of a loop and another way in its remainder, and results would depend on memory layout. */
#if defined(FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
INLINE float fused_f(float a, float b, float c) { return fmaf(a, b, c); }
INLINE real fused(real a, real b, real c) { return INPUT_BITS == 64 ? (real)fma(a, b, c) : (real)fmaf(a, b, c); }
#else
INLINE float fused_f(float a, float b, float c) { return a * b + c; }
INLINE real fused(real a, real b, real c) { return a * b + c; }
#endif

/* Natural logarithm of a positive normal float; relative error below 2e-7 (polynomial: Moshier, Cephes, logf). */
INLINE float fast_log(float x)
{
    uint32_t from_sqrt_half = bits_of(x) - 0x3f3504f3u;
    float exponent = (float)((int32_t)from_sqrt_half >> 23);
    float m = float_of((from_sqrt_half & 0x007fffffu) + 0x3f3504f3u) - 1.0f; /* in [sqrt(1/2), sqrt(2)) - 1 */
    float p = fused_f(7.0376836292e-2f, m, -1.1514610310e-1f);
    p = fused_f(p, m, 1.1676998740e-1f);
    p = fused_f(p, m, -1.2420140846e-1f);
    p = fused_f(p, m, 1.4249322787e-1f);
    p = fused_f(p, m, -1.6668057665e-1f);
    p = fused_f(p, m, 2.0000714765e-1f);
    p = fused_f(p, m, -2.4999993993e-1f);
    p = fused_f(p, m, 3.3333331174e-1f);
    p = fused_f(p, m, -0.5f);
    return fused_f(0.693147181f, exponent, fused_f(p, m * m, m));
}

/* exp(x) for x <= 0; relative error below 2e-7 down to -87, and 0 below (polynomial: Cephes, expf). */
INLINE float fast_exp(float x)
{
    float limited = x < -87.0f ? -87.0f : x;
    float n = floorf(fused_f(limited, 1.44269504f, 0.5f));
    float r = fused_f(n, 2.12194440e-4f, fused_f(n, -0.693359375f, limited));
    float p = fused_f(1.9875691500e-4f, r, 1.3981999507e-3f);
    p = fused_f(p, r, 8.3334519073e-3f);
    p = fused_f(p, r, 4.1665795894e-2f);
    p = fused_f(p, r, 1.6666665459e-1f);
    p = fused_f(p, r, 5.0000001201e-1f);
    float scaled = fused_f(p, r * r, r + 1.0f) * float_of((uint32_t)((int32_t)n + 127) << 23);
    return x < -87.0f ? 0.0f : scaled;
}

/* sin and cos for |x| <= pi / 4; absolute error below 1e-7 (polynomials: Cephes, sinf and cosf). */
INLINE float fast_sin(float x)
{
    float s = x * x;
    float p = fused_f(fused_f(-1.9515295891e-4f, s, 8.3321608736e-3f), s, -1.6666654611e-1f);
    return fused_f(p * s, x, x);
}

INLINE float fast_cos(float x)
{
    float s = x * x;
    float p = fused_f(fused_f(2.443315711809948e-5f, s, -1.388731625493765e-3f), s, 4.166664568298827e-2f);
    return fused_f(fused_f(p, s, -0.5f), s, 1.0f);
}

INLINE real exp_of(real x) { return INPUT_BITS == 64 ? (real)exp(x) : (real)fast_exp((float)x); }

/* Vectors of 64-bit lanes, whose lower halves hold the 32-bit numbers of Philox; upper halves are ignored.
   The product of lower halves is the one operation that compilers do not find by themselves. */
#if defined(__AVX512F__)
#define LANES 8
#elif defined(__AVX2__)
#define LANES 4
#else
#define LANES 2
#endif
typedef uint64_t Lanes __attribute__((vector_size(8 * LANES)));
INLINE Lanes product(Lanes a, Lanes b)
{
#if LANES > 2 /* not by <immintrin.h>, which takes the compiler longer than all of this file */
    Lanes both;
    __asm__("vpmuludq %2, %1, %0" : "=v"(both) : "v"(a), "v"(b));
    return both;
#else
    return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}
#if defined(_OPENMP)
extern int omp_get_thread_num(void); /* not every compiler has its header at hand */
static int this_thread(void) { return omp_get_thread_num(); }
#else
static int this_thread(void) { return 0; }
#endif

#define TOGETHER 2 /* vectors in flight: while one waits for a product, the other goes on */
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));

/* The four words of each counter, under a key. Arrays are as long as BLOCK: whole vectors are filled, beyond n too. */
static void philox(int64_t key, const uint32_t *counter, int n, uint32_t words[4][BLOCK])
{
    const Lanes none = {0}, factor0 = none + 0xD2511F53u, factor2 = none + 0xCD9E8D57u;
    Lanes key0[10], key1[10];
    for (uint32_t round = 0; round < 10; round++) {
        key0[round] = none + (uint32_t)((uint64_t)key + round * 0x9E3779B9u);
        key1[round] = none + (uint32_t)(((uint64_t)key >> 32) + round * 0xBB67AE85u);
    }
    for (int i = 0; i < n; i += TOGETHER * LANES) {
        Lanes c[TOGETHER][4];
        for (int m = 0; m < TOGETHER; m++) {
            Words word;
            memcpy(&word, counter + i + m * LANES, sizeof word);
            c[m][0] = __builtin_convertvector(word, Lanes), c[m][1] = c[m][2] = c[m][3] = none;
        }
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++)
#pragma GCC unroll 4
            for (int m = 0; m < TOGETHER; m++) {
                Lanes product0 = product(c[m][0], factor0), product2 = product(c[m][2], factor2);
                c[m][0] = (product2 >> 32) ^ c[m][1] ^ key0[round], c[m][1] = product2;
                c[m][2] = (product0 >> 32) ^ c[m][3] ^ key1[round], c[m][3] = product0;
            }
        for (int m = 0; m < TOGETHER; m++)
            for (int k = 0; k < 4; k++) {
                Words word = __builtin_convertvector(c[m][k], Words);
                memcpy(words[k] + i + m * LANES, &word, sizeof word);
            }
    }
}

/* A standard draw from one word, of any law but the Gaussian. */
INLINE float draw(int law, uint32_t word)
{
    float q = fused_f((float)(int32_t)(word >> 1), 0x1p-32f, 0x1p-33f), magnitude;
    if (law == LOGISTIC)
        magnitude = fast_log((1.0f - q) / q);
    else if (law == TRIANGULAR)
        magnitude = 1.0f - sqrtf(2.0f * q);
    else if (law == UNIFORM)
        magnitude = 1.0f - 2.0f * q;
    else if (law == CAUCHY) { /* 1 / tan(pi q), by the octant of the angle */
        float octant = (float)PI * (q < 0.25f ? q : 0.5f - q);
        float s = fast_sin(octant), c = fast_cos(octant);
        magnitude = q < 0.25f ? c / s : s / c;
    } else
        __builtin_trap();
    return float_of(bits_of(magnitude) ^ (word << 31));
}

/* The upper tail of the standard Gaussian from a >= 0 on: exactly 1/2 at 0, relative error below 1e-6 (below 1e-5 without
   fused operations), 0 from 13.2 on. The polynomial is a fit of exp(a^2 / 2) (1 + 0.3 a) times the tail, in
   1 - 1 / (1 + 0.3 a); the rounding of a^2 / 2 is made good. */
INLINE float fast_tail(float a)
{
    float limited = a > 14.0f ? 14.0f : a, half = 0.5f * limited, square = limited * half;
    float t = 1.0f / fused_f(0.3f, limited, 1.0f), s = 0.3f * limited * t;
    float p = fused_f(-3.575480697e-2f, s, 9.278677247e-2f);
    p = fused_f(p, s, -1.266658053e-2f);
    p = fused_f(p, s, -1.310895760e-1f);
    p = fused_f(p, s, -8.201779688e-2f);
    p = fused_f(p, s, 6.181767954e-1f);
    p = fused_f(p, s, -8.298058413e-1f);
    p = fused_f(p, s, 0.5f);
    return t * p * fast_exp(-square) * (1.0f - fused_f(limited, half, -square));
}

INLINE real tail_of(real a)
{
    return INPUT_BITS == 64 ? (real)(0.5 * erfc(a * 0.70710678118654752440)) : (real)fast_tail((float)a);
}

/* atan(x) / pi for 0 <= x <= 1; relative error below 3e-7 (the polynomial in x^2 is a fit, too). */
INLINE float fast_turns(float x)
{
    float s = x * x;
    float p = fused_f(-1.493909711e-3f, s, 7.719757177e-3f);
    p = fused_f(p, s, -1.893507621e-2f);
    p = fused_f(p, s, 3.155815329e-2f);
    p = fused_f(p, s, -4.462538644e-2f);
    p = fused_f(p, s, 6.356560420e-2f);
    p = fused_f(p, s, -1.060990217e-1f);
    return x * fused_f(p, s, 3.183098547e-1f);
}

INLINE real turns_of(real x) { return INPUT_BITS == 64 ? (real)(atan(x) / PI) : (real)fast_turns((float)x); }

/* Firing probability F(z), z = u - threshold. */
INLINE real probability(int law, real z, real loc, real scale)
{
    real y = (z - loc) / scale;
    if (law == GAUSSIAN) {
        real tail = tail_of(y < 0 ? -y : y);
        return y > 0 ? 1 - tail : tail;
    }
    if (law == LOGISTIC) {
        real e = exp_of(y < 0 ? y : -y);
        return (y > 0 ? 1 : e) / (1 + e);
    }
    if (law == CAUCHY) {
        real away = y < 0 ? -y : y, part = turns_of(away > 1 ? 1 / away : away);
        real tail = away > 1 ? part : (real)0.5 - part;
        return y > 0 ? 1 - tail : tail;
    }
    y = y < -1 ? -1 : y > 1 ? 1 : y;
    if (law == UNIFORM) return (real)0.5 * (1 + y);
    if (law == TRIANGULAR) {
        real above = 1 - (y < 0 ? -y : y), tail = (real)0.5 * above * above;
        return y > 0 ? 1 - tail : tail;
    }
    __builtin_trap();
}

/* Density F'(z), which stands for d spike / d u; `loc` and `inverse` = 1 / scale come in the type of z. */
INLINE real density(int law, real z, real loc, real inverse)
{
    real y = (z - loc) * inverse;
    y = y < 0 ? -y : y;
    if (law == GAUSSIAN) return inverse * (real)0.39894228040143267794 * exp_of((real)-0.5 * y * y);
    if (law == LOGISTIC) {
        real e = exp_of(-y);
        return inverse * e / ((1 + e) * (1 + e));
    }
    if (law == TRIANGULAR) return y >= 1 ? 0 : inverse * (1 - y); /* written so that NaN stays NaN */
    if (law == UNIFORM) return y > 1 ? 0 : (real)0.5 * inverse + 0 * y;
    if (law == CAUCHY) return inverse / ((real)PI * fused(y, y, 1));
    __builtin_trap();
}

/* Row-major indices of the neurons at `start`, `start` + 1, ... in memory. */
static void index_block(const Layer *l, int64_t start, int n, uint32_t *index)
{
    const int64_t innermost = l->rank - 1, step = l->index_stride[innermost];
    int64_t at[MAX_RANK], rest = start, base = 0;
    for (int64_t d = innermost; d >= 0; rest /= l->size[d--]) {
        at[d] = rest % l->size[d];
        base += at[d] * l->index_stride[d];
    }
    for (int done = 0; done < n;) {
        const int64_t row = l->size[innermost] - at[innermost] < n - done ? l->size[innermost] - at[innermost] : n - done;
        for (int i = 0; i < row; i++) index[done + i] = (uint32_t)base + (uint32_t)i * (uint32_t)step;
        done += (int)row, at[innermost] += row, base += row * step;
        for (int64_t d = innermost; d > 0 && at[d] == l->size[d]; d--) { /* carry, as an odometer does */
            base += l->index_stride[d - 1] - l->size[d] * l->index_stride[d];
            at[d] = 0, at[d - 1]++;
        }
    }
}

/* Neurons are visited in blocks of one or two rows of memory. The second row, H neurons behind the first in memory
   and in index alike, takes the words that the first leaves over. */
typedef struct {
    int rows, length[2];
    int64_t start[2];         /* of the rows, in memory */
    real *u[2];               /* of the first step of a row, and how far the next one is; NULL: not wanted */
    input *spikes[2];
    int64_t step;
    uint32_t counter[BLOCK];
    uint8_t upper[BLOCK];     /* in a block of one row: whether a neuron has the last two words */
    uint32_t words[4][BLOCK]; /* of the current step */
    float membrane[2][BLOCK], threshold[2][BLOCK]; /* noise of the current step; 0 in a place without noise */
    real value[VALUE_COUNT][2][CHANNELS ? BLOCK : 1];       /* where they may differ between channels */
    real gain[2][CHANNELS ? BLOCK : 1];                     /* 1 - decay; of a number, without first rounding it */
    real inverse[2][CHANNELS ? BLOCK : 1];                  /* 1 / scale, for the backward pass; likewise */
    real factor[2][BLOCK], shift[2][BLOCK], mean[2][BLOCK]; /* of batch norm */
    real residual_factor[2][BLOCK], residual_shift[2][BLOCK], residual_mean[2][BLOCK];
} Block;

/* Where a layer, a block and its row are at hand, AT(name, i) is a value of neuron i of the row. */
#define VALUE_OF(type, name, number, row)      \
    const type name##_number = (type)(number); \
    const real *restrict const name##_row = (row)
#define VALUE(type, name, which) VALUE_OF(type, name, l->number[which], b->value[which][row])
#define AT(name, i) (CHANNELS ? name##_row[i] : name##_number)

static int64_t half_of(const Layer *l) { return (l->neurons + 1) / 2; }

/* Whether memory, cut in half, is cut between the indices below H and the others. */
static int has_halves(const Layer *l)
{
    if (l->rank == 1) return l->index_stride[0] == 1;
    return l->size[0] % 2 == 0 && l->size[0] * l->index_stride[0] == l->neurons;
}

static int64_t blocks_of(const Layer *l)
{
    return ((has_halves(l) ? half_of(l) : l->neurons) + l->block - 1) / l->block;
}

int64_t number_of_groups(const Layer *l) { return blocks_of(l) < GROUPS ? blocks_of(l) : GROUPS; }

static int row_length(const Layer *l, int64_t length)
{
    return length < 0 ? 0 : length > l->block ? (int)l->block : (int)length;
}

/* Walks through memory in runs of neurons that are of one channel or, where channels lie side by side, of the channels
   from one on. */
typedef struct {
    int64_t channel, left; /* left: neurons until another channel or, side by side, until the first one again */
} Walk;

static Walk walk_from(const Layer *l, int64_t place)
{
    const int64_t stride = l->channel_stride, channel = place / stride % l->channels;
    return (Walk){channel, stride == 1 ? l->channels - channel : stride - place % stride};
}

/* The length of the next run, at most `most`, and its (first) channel. */
static int next_run(const Layer *l, Walk *walk, int64_t most, int64_t *channel)
{
    const int64_t run = walk->left < most ? walk->left : most, are_side_by_side = l->channel_stride == 1;
    *channel = walk->channel;
    walk->left -= run;
    walk->channel += are_side_by_side ? run : !walk->left;
    if (walk->channel == l->channels) walk->channel = 0;
    if (!walk->left) walk->left = are_side_by_side ? l->channels : l->channel_stride;
    return (int)run;
}

/* A value of the `n` neurons from `start` on, in the order of memory; without `by_channel`, one number. */
static void fill(const Layer *l, const real *by_channel, double number, int64_t start, int n, real *restrict values)
{
    if (!by_channel) {
        for (int i = 0; i < n; i++) values[i] = (real)number;
        return;
    }
    const int64_t period = l->channel_stride * l->channels;
    const int first = period < n ? (int)period : n; /* neurons before the values repeat */
    Walk walk = walk_from(l, start);
    int64_t channel;
    int done = 0;
    for (int run; done < first; done += run) {
        run = next_run(l, &walk, first - done, &channel);
        if (l->channel_stride == 1)
            memcpy(values + done, by_channel + channel, run * sizeof(real));
        else
            for (int i = 0; i < run; i++) values[done + i] = by_channel[channel];
    }
    for (int run; done < n; done += run) {
        run = done < n - done ? done : n - done;
        memcpy(values + done, values, run * sizeof(real));
    }
}

static void start_block(const Layer *l, const Tensors *m, int64_t number, Block *b)
{
    const int64_t half = half_of(l), start = number * l->block;
    if (!l->membrane_noise) memset(b->membrane, 0, sizeof b->membrane);
    if (!l->threshold_noise) memset(b->threshold, 0, sizeof b->threshold);
    b->rows = has_halves(l) ? 2 : 1;
    b->start[0] = start, b->start[1] = half + start;
    b->length[0] = row_length(l, (b->rows == 2 ? half : l->neurons) - start);
    b->length[1] = row_length(l, l->neurons - half - start);
    b->step = l->neurons;
    for (int row = 0; row < b->rows; row++) {
        b->u[row] = m->u ? m->u + b->start[row] : NULL;
        b->spikes[row] = m->spikes + b->start[row];
    }
    index_block(l, start, b->length[0], b->counter);
    memset(b->counter + b->length[0], 0, (BLOCK - b->length[0]) * sizeof b->counter[0]);
    if (b->rows == 1)
        for (int i = 0; i < b->length[0]; i++) {
            b->upper[i] = b->counter[i] >= half;
            b->counter[i] -= b->upper[i] ? (uint32_t)half : 0;
        }
    for (int which = 0; which < VALUE_COUNT; which++)
        for (int row = 0; CHANNELS && row < b->rows; row++)
            fill(l, m->by_channel[which], l->number[which], b->start[row], b->length[row], b->value[which][row]);
    /* A number has the same gain in both variants: the backward pass, which computes u again, may be of another one. */
    for (int row = 0; CHANNELS && row < b->rows; row++)
        for (int i = 0; i < b->length[row]; i++)
            b->gain[row][i] = m->by_channel[DECAY] ? 1 - b->value[DECAY][row][i] : (real)(1 - l->number[DECAY]);
    for (int row = 0; m->factor && row < b->rows; row++) {
        fill(l, m->factor, 0, b->start[row], b->length[row], b->factor[row]);
        fill(l, m->shift, 0, b->start[row], b->length[row], b->shift[row]);
    }
    for (int row = 0; m->residual_factor && row < b->rows; row++) {
        fill(l, m->residual_factor, 0, b->start[row], b->length[row], b->residual_factor[row]);
        fill(l, m->residual_shift, 0, b->start[row], b->length[row], b->residual_shift[row]);
    }
}

static void draw_words(int64_t seed, Block *b)
{
    philox(seed, b->counter, b->length[0], b->words);
    if (b->rows == 1)
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < b->length[0]; i++) b->words[k][i] = b->words[b->upper[i] ? k + 2 : k][i];
}

#define BY_LAW(function, ...)                                             \
    switch (l->law) {                                                     \
    case GAUSSIAN: function(GAUSSIAN, __VA_ARGS__); break;                \
    case LOGISTIC: function(LOGISTIC, __VA_ARGS__); break;                \
    case TRIANGULAR: function(TRIANGULAR, __VA_ARGS__); break;            \
    case UNIFORM: function(UNIFORM, __VA_ARGS__); break;                  \
    case CAUCHY: function(CAUCHY, __VA_ARGS__); break;                    \
    default: __builtin_trap();                                            \
    }

INLINE void draw_row(int law, const Layer *l, Block *b, int row)
{
    VALUE(float, scale, SCALE);
    const float loc = (float)l->loc;
    const uint32_t *restrict first = b->words[2 * row], *restrict second = b->words[2 * row + 1];
    float *restrict membrane = b->membrane[row], *restrict threshold = b->threshold[row];
    const int n = b->length[row];
    if (law == GAUSSIAN) {
        float unused[BLOCK];
        if (!l->membrane_noise) membrane = unused;
        if (!l->threshold_noise) threshold = unused;
        for (int i = 0; i < n; i++) {
            float radius = (float)AT(scale, i) * sqrtf(-2.0f * fast_log(fused_f((float)first[i], 0x1p-32f, 0x1p-33f)));
            float angle = (float)(int32_t)(second[i] << 2) * (float)(PI * 0x1p-33);
            float sine = fast_sin(angle), cosine = fast_cos(angle);
            radius = float_of(bits_of(radius) ^ (second[i] & 0x80000000u));
            membrane[i] = fused_f(radius, second[i] >> 30 & 1 ? sine : cosine, loc);
            threshold[i] = fused_f(radius, second[i] >> 30 & 1 ? cosine : sine, loc);
        }
        return;
    }
    if (l->membrane_noise)
        for (int i = 0; i < n; i++) membrane[i] = fused_f((float)AT(scale, i), draw(law, first[i]), loc);
    if (l->threshold_noise)
        for (int i = 0; i < n; i++) threshold[i] = fused_f((float)AT(scale, i), draw(law, second[i]), loc);
}

static void draw_noise(const Layer *l, Block *b, int row) { BY_LAW(draw_row, l, b, row) }

INLINE void probability_row(int law, const Layer *l, const Block *b, int row, const real *restrict u, real *restrict p)
{
    VALUE(real, threshold, THRESHOLD);
    VALUE(real, scale, SCALE);
    const real loc = (real)l->loc;
    for (int i = 0; i < b->length[row]; i++) p[i] = probability(law, u[i] - AT(threshold, i), loc, AT(scale, i));
}

static void probabilities(const Layer *l, const Block *b, int row, const real *u, real *p)
{
    BY_LAW(probability_row, l, b, row, u, p)
}

/* What the reset takes from a neuron that fires, v = u - fired * removed: a "hard" reset puts the potential at the value
   of the reset, the others take that value off. Choices by a factor, not a branch, which the compiler can vectorise. */
INLINE int is_hard(const Layer *l) { return l->reset == RESET_ZERO; }

INLINE real removed(int hard, real u, real value) { return hard ? u - value : value; }

/* The potential after the leak and the input. An input that is scaled by `gain` = 1 - decay comes in as other libraries
   let it, who would otherwise differ at ties: rounded after each operation. */
INLINE real charged(int scaled, real decay, real gain, real v, real x)
{
    return scaled ? v + (x - v) * gain : fused(decay, v, x);
}

static const real *converted(const input *restrict values, int n, real *restrict space)
{
    if (sizeof(input) == sizeof(real)) return (const real *)values;
    for (int i = 0; i < n; i++) space[i] = load(values[i]);
    return space;
}

/* The currents of a row at a step. `space` holds n. */
static const real *currents(const Layer *l, const Tensors *m, const Block *b, int row, int64_t t, real *restrict space)
{
    const int n = b->length[row];
    const input *restrict x = m->x + t * l->x_stride + b->start[row];
    if (!m->factor) return converted(x, n, space);
    const real *restrict factor = b->factor[row], *restrict shift = b->shift[row];
    for (int i = 0; i < n; i++) space[i] = fused(factor[i], load(x[i]), shift[i]);
    if (m->residual) {
        const input *restrict residual = m->residual + t * l->neurons + b->start[row];
        const real *restrict factor_too = b->residual_factor[row], *restrict shift_too = b->residual_shift[row];
        if (m->residual_factor)
            for (int i = 0; i < n; i++) space[i] += fused(factor_too[i], load(residual[i]), shift_too[i]);
        else
            for (int i = 0; i < n; i++) space[i] += load(residual[i]);
    }
    return space;
}

#if INPUT_BITS == 64
typedef uint64_t bits_of_input;
#define ONE_BITS 0x3ff0000000000000u
#elif INPUT_BITS == 32
typedef uint32_t bits_of_input;
#define ONE_BITS 0x3f800000u
#else
typedef uint16_t bits_of_input;
#define ONE_BITS 0x3f80u
#endif

/* Eight numbers that are 0 or 1 as the bits of a byte, the first the lowest. */
INLINE uint8_t byte_of(const uint8_t *numbers)
{
    uint64_t together = 0;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(&together, numbers, 8);
#else
    for (int k = 0; k < 8; k++) together |= (uint64_t)numbers[k] << (8 * k);
#endif
    return (uint8_t)(together * 0x0102040810204080u >> 56); /* bit 8 k times 2^(56 - 7 k) is bit 56 + k; no two meet */
}

/* The bits of at most BLOCK spikes, the first the lowest of its byte; not 0 if there is something else than 0 and 1. */
static uint8_t pack_row(const input *restrict spikes, int n, uint8_t *restrict bits)
{
    uint8_t fired[BLOCK], wrong = 0;
    if (n % 8) memset(fired + n, 0, 8 - n % 8);
    for (int i = 0; i < n; i++) {
        bits_of_input x;
        memcpy(&x, spikes + i, sizeof x); /* -0 is something else */
        fired[i] = x != 0;
        wrong |= x != 0 && x != ONE_BITS;
    }
    for (int i = 0; i < n; i += 8) bits[i / 8] = byte_of(fired + i);
    return wrong;
}

/* Spikes of a row at a step, and the potentials after them. The compiler knows `hard` and `scaled`: without a choice for
   each neuron, the loop is a tenth faster. */
INLINE void fire_row(const int hard, const int scaled, const Layer *l, const Tensors *m, const Block *b, int row, int64_t t,
                     real *restrict v)
{
    const int n = b->length[row];
    VALUE(real, threshold, THRESHOLD);
    VALUE(real, decay, DECAY);
    VALUE_OF(real, gain, 1 - l->number[DECAY], b->gain[row]);
    VALUE(real, value, RESET_VALUE);
    real space[BLOCK], discarded[BLOCK], *restrict kept = b->u[row] ? b->u[row] + t * b->step : discarded;
    const real *restrict current = currents(l, m, b, row, t, space);
    input *restrict out = b->spikes[row] + t * b->step;
    const float *restrict eps_membrane = b->membrane[row], *restrict eps_threshold = b->threshold[row];
    for (int i = 0; i < n; i++) {
        real u = charged(scaled, AT(decay, i), AT(gain, i), v[i], current[i]) - eps_membrane[i];
        int fires = u - AT(threshold, i) > eps_threshold[i];
        kept[i] = u;
        out[i] = store(fires ? 1 : 0);
        v[i] = fires ? (hard ? AT(value, i) : u - AT(value, i)) : u;
    }
    if (m->bits) pack_row(out, n, m->bits + (t * l->neurons + b->start[row]) / 8);
}

/* The same for the mean field, whose spikes are probabilities. */
static void fire_mean_row(const Layer *l, const Tensors *m, const Block *b, int row, int64_t t, real *restrict v)
{
    const int n = b->length[row], hard = is_hard(l), scaled = l->decay_input != 0;
    VALUE(real, decay, DECAY);
    VALUE_OF(real, gain, 1 - l->number[DECAY], b->gain[row]);
    VALUE(real, value, RESET_VALUE);
    real space[BLOCK], discarded[BLOCK], p[BLOCK], *restrict kept = b->u[row] ? b->u[row] + t * b->step : discarded;
    const real *restrict current = currents(l, m, b, row, t, space);
    input *restrict out = b->spikes[row] + t * b->step;
    for (int i = 0; i < n; i++) kept[i] = charged(scaled, AT(decay, i), AT(gain, i), v[i], current[i]);
    probabilities(l, b, row, kept, p);
    for (int i = 0; i < n; i++) {
        out[i] = store(p[i]);
        v[i] = fused(-p[i], removed(hard, kept[i], AT(value, i)), kept[i]);
    }
}

/* Noise of the threshold with which neurons fire as they did. */
static void recall(const input *restrict spikes, int n, float *restrict threshold)
{
    for (int i = 0; i < n; i++) threshold[i] = load(spikes[i]) != 0 ? -INFINITY : INFINITY;
}

/* All steps of a block; v becomes the potential after the last one. `known`: spikes of a layer without noise of the
   membrane, which need not be drawn again; or NULL. */
static void run_block(const Layer *l, const Tensors *m, Block *b, const input *known, real v[2][BLOCK])
{
    const int draws = !known && (l->membrane_noise || l->threshold_noise);
    for (int row = 0; row < b->rows; row++)
        if (m->state)
            memcpy(v[row], m->state + b->start[row], b->length[row] * sizeof(real));
        else
            memset(v[row], 0, b->length[row] * sizeof(real));
    for (int64_t t = 0; t < l->timesteps; t++) {
        if (draws) draw_words(m->seeds[t], b);
        for (int row = 0; row < b->rows; row++) {
            if (draws) draw_noise(l, b, row);
            if (known) recall(known + t * l->neurons + b->start[row], b->length[row], b->threshold[row]);
            if (l->mean_field)
                fire_mean_row(l, m, b, row, t, v[row]);
            else if (l->decay_input)
                is_hard(l) ? fire_row(1, 1, l, m, b, row, t, v[row]) : fire_row(0, 1, l, m, b, row, t, v[row]);
            else
                is_hard(l) ? fire_row(1, 0, l, m, b, row, t, v[row]) : fire_row(0, 0, l, m, b, row, t, v[row]);
        }
    }
}

static void forward_block(const Layer *l, const Tensors *m, int64_t number)
{
    Block b;
    real v[2][BLOCK];
    start_block(l, m, number, &b);
    run_block(l, m, &b, NULL, v);
    for (int row = 0; m->last && row < b.rows; row++)
        memcpy(m->last + b.start[row], v[row], b.length[row] * sizeof(real));
}

static double sum(const real *values, int n)
{
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; i++) total += values[i];
    return total;
}

/* z = u - threshold, but not -infinity under an infinite threshold, where 0 * z is to be 0. NaN stays NaN. */
INLINE real not_too_far(real z) { return z < (real)-VERY_FAR ? (real)-VERY_FAR : z; }

/* Spikes of a row at a step, or probabilities; unrounded even if the returned ones were rounded. `space` holds n. */
static const real *fired_row(const Layer *l, const Block *b, int row, const real *u, const input *spikes, real *space)
{
    if (!l->mean_field) return converted(spikes, b->length[row], space);
    probabilities(l, b, row, u, space);
    return space;
}

/* Gradients of what is learnt, by neuron, summed over time; that of the scale lacks a factor of 1 / scale. */
typedef struct {
    real value[VALUE_COUNT][2][BLOCK], norm[NORM_SUMS][2][BLOCK];
} Sums;

/* Whether the gradient of the current is summed over time: for batch norm, and where all steps of x are one image. */
INLINE int sums_current(const Layer *l, const Tensors *m) { return m->factor || !l->x_stride; }

/* How many of the sums there are. */
INLINE int norm_sums(const Tensors *m) { return !m->factor ? 1 : m->residual_factor ? NORM_SUMS : ALONG_RESIDUAL; }

/* What one step of a row adds to the sums, from the gradients of the potential: by the spike alone, and whole. */
static void learn_row(const Layer *l, const Tensors *m, Block *b, int row, int64_t t, const real *restrict by_spike,
                      const real *restrict grad_u, real *restrict space, Sums *sums)
{
    const int n = b->length[row];
    VALUE(real, threshold, THRESHOLD);
    VALUE(real, value, RESET_VALUE);
    const real loc = (real)l->loc, *restrict u = b->u[row] + t * b->step;
    const int hard = is_hard(l);
    if (l->learns[THRESHOLD]) {
        real *restrict total = sums->value[THRESHOLD][row];
        for (int i = 0; i < n; i++) total[i] -= by_spike[i];
    }
    if (l->learns[SCALE]) {
        real *restrict total = sums->value[SCALE][row];
        if (l->threshold_noise || l->mean_field) /* P(fire) = F(z), and the scale stretches F */
            for (int i = 0; i < n; i++) total[i] -= by_spike[i] * not_too_far(u[i] - AT(threshold, i) - loc);
        if (l->membrane_noise) { /* u holds -(loc + scale * standard draw) */
            draw_noise(l, b, row);
            const float *restrict eps = b->membrane[row];
            for (int i = 0; i < n; i++) total[i] -= grad_u[i] * (eps[i] - loc);
        }
    }
    if (l->learns[DECAY]) { /* u holds decay * (potential before) and, with decay_input, (1 - decay) * x */
        real before[BLOCK] = {0}, *restrict total = sums->value[DECAY][row];
        if (t > 0) {
            const real *restrict u_before = u - b->step;
            const real *restrict fired = fired_row(l, b, row, u_before, b->spikes[row] + (t - 1) * b->step, space);
            for (int i = 0; i < n; i++)
                before[i] = fused(-fired[i], removed(hard, u_before[i], AT(value, i)), u_before[i]);
        } else if (m->state)
            memcpy(before, m->state + b->start[row], n * sizeof(real));
        if (l->decay_input) {
            const real *restrict current = currents(l, m, b, row, t, space);
            for (int i = 0; i < n; i++) before[i] -= current[i];
        }
        for (int i = 0; i < n; i++) total[i] += grad_u[i] * before[i];
    }
}

/* Add the gradient of the current of a step to what batch norm needs of it. */
static void sum_current(const Layer *l, const Tensors *m, const Block *b, int row, int64_t t, const real *restrict grad,
                        Sums *sums)
{
    const int n = b->length[row];
    const input *restrict x = m->x + t * l->x_stride + b->start[row];
    const real *restrict mean = b->mean[row];
    real *restrict whole = sums->norm[OF_CURRENT][row], *restrict along = sums->norm[ALONG_X][row];
    if (!m->factor)
        for (int i = 0; i < n; i++) whole[i] += grad[i];
    else
        for (int i = 0; i < n; i++) {
            whole[i] += grad[i];
            along[i] = fused(grad[i], load(x[i]) - mean[i], along[i]);
        }
    if (m->residual_factor) {
        const input *restrict residual = m->residual + t * l->neurons + b->start[row];
        const real *restrict mean_too = b->residual_mean[row];
        real *restrict along_too = sums->norm[ALONG_RESIDUAL][row];
        for (int i = 0; i < n; i++) along_too[i] = fused(grad[i], load(residual[i]) - mean_too[i], along_too[i]);
    }
}

/* One step of a row, backwards: grad_v, the gradient of the potential after the step, becomes that of the one before;
   if anything is learnt (`learning`), its gradient is added to the sums. */
INLINE void backward_row(int law, const int learning, const Layer *l, const Tensors *m, Block *b, int row, int64_t t,
                         real *restrict grad_v, Sums *sums)
{
    const int n = b->length[row];
    const int64_t at = t * l->neurons + b->start[row];
    VALUE(real, threshold, THRESHOLD);
    VALUE(real, decay, DECAY);
    VALUE_OF(real, gain, 1 - l->number[DECAY], b->gain[row]);
    VALUE(real, value, RESET_VALUE);
    VALUE_OF(real, inverse, 1 / l->number[SCALE], b->inverse[row]);
    const real loc = (real)l->loc;
    const int scaled = l->decay_input != 0;
    const real *restrict u = b->u[row] + t * b->step;
    const input *restrict fired_t = b->spikes[row] + t * b->step;
    const input *restrict given = m->grad_spikes ? m->grad_spikes + at : fired_t;
    const real given_counts = m->grad_spikes ? 1 : 0, flows = l->detach_reset ? 0 : 1;
    input discarded[BLOCK], *restrict out = l->x_stride ? m->grad_x + at : discarded;
    const int hard = is_hard(l);
    real by_spike[BLOCK], grad_u[BLOCK], space[BLOCK], unrounded[BLOCK];
    const int rounds = sizeof(input) != sizeof(real);
    const real *restrict fired = fired_row(l, b, row, u, fired_t, space);
    if (learning && l->learns[RESET_VALUE]) {
        const real sign = hard ? 1 : -1;
        real *restrict total = sums->value[RESET_VALUE][row];
        for (int i = 0; i < n; i++) total[i] += sign * fired[i] * grad_v[i];
    }
    for (int i = 0; i < n; i++) {
        real by_reset = flows * grad_v[i] * removed(hard, u[i], AT(value, i));
        real slope = density(law, u[i] - AT(threshold, i), loc, AT(inverse, i));
        real through_spike = slope * fused(given_counts, load(given[i]), -by_reset);
        real directly = hard ? grad_v[i] * (1 - fired[i]) : grad_v[i];
        real grad = directly + through_spike;
        real of_current = scaled ? AT(gain, i) * grad : grad;
        out[i] = store(of_current);
        if (rounds) unrounded[i] = of_current;
        grad_v[i] = AT(decay, i) * grad;
        if (learning) {
            by_spike[i] = through_spike;
            grad_u[i] = grad;
        }
    }
    if (learning) learn_row(l, m, b, row, t, by_spike, grad_u, space, sums);
    if (sums_current(l, m)) sum_current(l, m, b, row, t, rounds ? unrounded : (const real *)out, sums);
}

/* Add sums by neuron, of all neurons of a block, to those of its group: by channel, or to one. */
static void add_sums(const Layer *l, const Block *b, int64_t is_by_channel, real sums[2][BLOCK], double *restrict group)
{
    for (int row = 0; row < b->rows; row++) {
        const int n = b->length[row];
        const real *restrict values = sums[row];
        if (!is_by_channel) {
            group[0] += sum(values, n);
            continue;
        }
        Walk walk = walk_from(l, b->start[row]);
        int64_t channel;
        for (int done = 0, run; done < n; done += run) {
            run = next_run(l, &walk, n - done, &channel);
            if (l->channel_stride == 1)
                for (int i = 0; i < run; i++) group[channel + i] += values[done + i];
            else
                group[channel] += sum(values + done, run);
        }
    }
}

static void add_gradient(const Layer *l, const Tensors *m, const Block *b, int which, Sums *sums, int64_t group)
{
    for (int row = 0; which == SCALE && row < b->rows; row++) {
        real *restrict values = sums->value[SCALE][row];
        VALUE(real, scale, SCALE);
        for (int i = 0; i < b->length[row]; i++) values[i] /= AT(scale, i);
    }
    const int64_t is_by_channel = m->by_channel[which] != NULL, width = is_by_channel ? l->channels : 1;
    add_sums(l, b, is_by_channel, sums->value[which], m->grad_values[which] + group * width);
}

int64_t bytes_of_scratch(const Layer *l)
{
    return l->timesteps * 2 * l->block * (int64_t)(sizeof(real) + sizeof(input));
}

/* Compute potentials and spikes of a block again, in the scratch memory of this thread; potentials alone where spikes
   were kept and suffice. */
static void run_again(const Layer *l, const Tensors *m, Block *b)
{
    real v[2][BLOCK], *u = (real *)(m->scratch + this_thread() * bytes_of_scratch(l));
    input *spikes = (input *)(u + l->timesteps * 2 * l->block);
    b->step = 2 * l->block;
    for (int row = 0; row < b->rows; row++) b->u[row] = u + row * l->block, b->spikes[row] = spikes + row * l->block;
    run_block(l, m, b, l->membrane_noise ? NULL : m->spikes, v);
}

static void backward_block(const Layer *l, const Tensors *m, int64_t number, int64_t group)
{
    Block b;
    real grad_v[2][BLOCK] = {{0}};
    Sums sums;
    int learning = 0;
    start_block(l, m, number, &b);
    if (m->scratch) run_again(l, m, &b);
    for (int which = 0; which < VALUE_COUNT; which++)
        if (l->learns[which]) {
            memset(sums.value[which], 0, sizeof sums.value[which]);
            learning = 1;
        }
    if (sums_current(l, m)) memset(sums.norm, 0, norm_sums(m) * sizeof *sums.norm);
    for (int row = 0; m->factor && row < b.rows; row++)
        fill(l, m->mean, 0, b.start[row], b.length[row], b.mean[row]);
    for (int row = 0; m->residual_factor && row < b.rows; row++)
        fill(l, m->residual_mean, 0, b.start[row], b.length[row], b.residual_mean[row]);
    for (int row = 0; CHANNELS && row < b.rows; row++)
        for (int i = 0; i < b.length[row]; i++)
            b.inverse[row][i] = m->by_channel[SCALE] ? 1 / b.value[SCALE][row][i] : (real)(1 / l->number[SCALE]);
    for (int row = 0; m->grad_last && row < b.rows; row++)
        memcpy(grad_v[row], m->grad_last + b.start[row], b.length[row] * sizeof(real));
    for (int64_t t = l->timesteps - 1; t >= 0; t--) {
        if (l->learns[SCALE] && l->membrane_noise) draw_words(m->seeds[t], &b);
        for (int row = 0; row < b.rows; row++)
            if (learning)
                BY_LAW(backward_row, 1, l, m, &b, row, t, grad_v[row], &sums)
            else
                BY_LAW(backward_row, 0, l, m, &b, row, t, grad_v[row], &sums)
    }
    for (int row = 0; m->grad_state && row < b.rows; row++)
        memcpy(m->grad_state + b.start[row], grad_v[row], b.length[row] * sizeof(real));
    for (int which = 0; which < VALUE_COUNT; which++)
        if (l->learns[which]) add_gradient(l, m, &b, which, &sums, group);
    for (int row = 0; !l->x_stride && row < b.rows; row++)
        for (int i = 0; i < b.length[row]; i++) m->grad_x[b.start[row] + i] = store(sums.norm[OF_CURRENT][row][i]);
    for (int which = 0; m->factor && which < norm_sums(m); which++)
        add_sums(l, &b, 1, sums.norm[which], m->norm_sums + (group * NORM_SUMS + which) * l->channels);
}

/* Ask for large pages for memory that is about to be written first: a fault for each 4 KiB of a fresh allocation
   would cost more than the neurons. */
static void want_large_pages(void *memory, int64_t bytes)
{
#if defined(__linux__)
    const uintptr_t page = 1 << 21, first = ((uintptr_t)memory + page - 1) & ~(page - 1);
    const uintptr_t end = ((uintptr_t)memory + bytes) & ~(page - 1);
    if (memory && bytes >= MIN_BYTES_FOR_LARGE_PAGES && end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

void lif_forward(const Layer *l, const Tensors *m)
{
    want_large_pages(m->spikes, l->timesteps * l->neurons * sizeof *m->spikes);
    want_large_pages(m->u, l->timesteps * l->neurons * sizeof *m->u);
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t block = 0; block < blocks_of(l); block++) forward_block(l, m, block);
}

void lif_backward(const Layer *l, const Tensors *m)
{
    const int64_t blocks = blocks_of(l), groups = number_of_groups(l);
    want_large_pages(m->grad_x, (l->x_stride ? l->timesteps : 1) * l->neurons * sizeof *m->grad_x);
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t group = 0; group < groups; group++)
        for (int64_t block = group * blocks / groups; block < (group + 1) * blocks / groups; block++)
            backward_block(l, m, block, group);
}

/* For each group, sums of x - pivot and of its square, by channel; the pivot is the first number of the channel. */
void norm_statistics(const Layer *l, const Tensors *m)
{
    const int64_t groups = number_of_groups(l), C = l->channels;
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t group = 0; group < groups; group++)
        for (int64_t t = 0; t < l->timesteps; t++) {
            const int64_t end = (group + 1) * l->neurons / groups;
            double *sums = m->norm_sums + group * NORM_SUMS * C;
            Walk walk = walk_from(l, group * l->neurons / groups);
            int64_t channel;
            for (int64_t place = group * l->neurons / groups, run; place < end; place += run) {
                run = next_run(l, &walk, end - place < BLOCK ? end - place : BLOCK, &channel);
                const input *restrict x = m->x + t * l->x_stride + place;
                if (l->channel_stride == 1) {
                    double *restrict first = sums + channel, *restrict second = sums + C + channel;
                    for (int64_t i = 0; i < run; i++) {
                        double d = load(x[i]) - load(m->x[channel + i]);
                        first[i] += d;
                        second[i] += d * d;
                    }
                } else {
                    const real pivot = load(m->x[channel * l->channel_stride]);
                    double first = 0, second = 0;
#pragma omp simd reduction(+ : first, second)
                    for (int64_t i = 0; i < run; i++) {
                        double d = load(x[i]) - pivot;
                        first += d;
                        second += d * d;
                    }
                    sums[channel] += first, sums[C + channel] += second;
                }
            }
        }
}

/* Mean and variance of each channel, from the sums of `norm_statistics` over `count` numbers of it. */
void norm_moments(const Layer *l, const Tensors *m, double count, double *moments)
{
    const int64_t groups = number_of_groups(l), C = l->channels;
    for (int64_t c = 0; c < C; c++) {
        double first = 0, second = 0;
        for (int64_t group = 0; group < groups; group++) {
            first += m->norm_sums[group * NORM_SUMS * C + c];
            second += m->norm_sums[(group * NORM_SUMS + 1) * C + c];
        }
        const double deviation = first / count, variance = second / count - deviation * deviation;
        moments[c] = load(m->x[c * l->channel_stride]) + deviation;
        moments[C + c] = variance < 0 ? 0 : variance; /* NaN stays NaN */
    }
}

/* What a layer of C channels normalises by, in rows of C: 1 / std, as the third row of `moments`; factor, shift, mean
   and the unbiased variance in `rows`. Running statistics, if they apply, fill the first two rows of `moments`. */
void norm_prepare(int64_t C, double *moments, const real *running_mean, const real *running_variance, double eps,
                  double correction, const real *weight, const real *bias, real *rows)
{
    for (int64_t c = 0; c < C; c++) {
        if (running_mean) moments[c] = running_mean[c], moments[C + c] = running_variance[c];
        const double inverse = 1 / sqrt(moments[C + c] + eps), factor = weight ? inverse * weight[c] : inverse;
        moments[2 * C + c] = inverse;
        rows[c] = (real)factor;
        rows[C + c] = (real)((bias ? bias[c] : 0) - moments[c] * factor);
        rows[2 * C + c] = (real)moments[c];
        rows[3 * C + c] = (real)(moments[C + c] * correction);
    }
}

/* From the sums of `groups`, in rows of C: the gradients of weight and bias, and what `norm_backward` takes off, as
   shift and slope; that is nothing unless the statistics are of the batch, of `count` numbers in each channel.
   `which` sums: ALONG_X or ALONG_RESIDUAL. */
void norm_gradients(int64_t C, int64_t groups, int64_t which, const double *sums, const double *moments, double count,
                    real *rows)
{
    for (int64_t c = 0; c < C; c++) {
        double whole = 0, along = 0;
        for (int64_t group = 0; group < groups; group++) {
            whole += sums[group * NORM_SUMS * C + c];
            along += sums[(group * NORM_SUMS + which) * C + c];
        }
        const double inverse = moments[2 * C + c];
        rows[c] = (real)(along * inverse);
        rows[C + c] = (real)whole;
        rows[2 * C + c] = count > 0 ? (real)(whole / count) : 0;
        rows[3 * C + c] = count > 0 ? (real)(along / count * inverse * inverse) : 0;
    }
}

/* The gradient of batch norm, grad_x = factor * (grad - shift - slope * (x - mean)), from that of the current, which
   comes as `residual`; they may be one tensor. */
void norm_backward(const Layer *l, const Tensors *m)
{
    want_large_pages(m->grad_x, l->timesteps * l->neurons * sizeof *m->grad_x);
#pragma omp parallel for schedule(static) num_threads((int)l->threads)
    for (int64_t start = 0; start < l->neurons; start += BLOCK) {
        const int n = (int)(l->neurons - start < BLOCK ? l->neurons - start : BLOCK);
        real factor[BLOCK], shift[BLOCK], mean[BLOCK], slope[BLOCK], result[BLOCK];
        fill(l, m->factor, 0, start, n, factor);
        fill(l, m->shift, 0, start, n, shift);
        fill(l, m->mean, 0, start, n, mean);
        fill(l, m->slope, 0, start, n, slope);
        for (int64_t t = 0; t < l->timesteps; t++) {
            const int64_t at = t * l->neurons + start;
            const input *x = m->x + t * l->x_stride + start, *grad = m->residual + at;
            for (int i = 0; i < n; i++)
                result[i] = factor[i] * fused(-slope[i], load(x[i]) - mean[i], load(grad[i]) - shift[i]);
            for (int i = 0; i < n; i++) m->grad_x[at + i] = store(result[i]);
        }
    }
}

/* One bit for each of n spikes, as `pack_row`. */
int64_t pack_spikes(const input *restrict spikes, int64_t n, uint8_t *restrict bits, int64_t threads)
{
    int64_t others = 0;
#pragma omp parallel for schedule(static) num_threads((int)threads) reduction(| : others)
    for (int64_t start = 0; start < n; start += BLOCK)
        if (!others) others |= pack_row(spikes + start, (int)(n - start < BLOCK ? n - start : BLOCK), bits + start / 8);
    return others;
}

void unpack_spikes(const uint8_t *restrict bits, int64_t n, input *restrict spikes, int64_t threads)
{
    want_large_pages(spikes, n * sizeof *spikes);
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int length = (int)(n - start < BLOCK ? n - start : BLOCK);
        uint8_t fired[BLOCK];
        for (int i = 0; i < length; i += 8)
#pragma GCC unroll 8
            for (int k = 0; k < 8; k++) fired[i + k] = bits[(start + i) / 8] >> k & 1;
        for (int i = 0; i < length; i++) spikes[start + i] = store(fired[i]);
    }
}

/* Four bits for each of n numbers that are 0, 1/4, ..., 15/4, as averages of four spikes and sums of a few are: the
   first in the lower half of its byte. Not 0 if there is something else. */
int64_t pack_quarters(const input *restrict numbers, int64_t n, uint8_t *restrict bits, int64_t threads)
{
    int64_t others = 0;
#pragma omp parallel for schedule(static) num_threads((int)threads) reduction(| : others)
    for (int64_t start = 0; start < n; start += BLOCK) {
        if (others) continue;
        const int length = (int)(n - start < BLOCK ? n - start : BLOCK);
        uint8_t quarters[BLOCK + 1], wrong = 0;
        quarters[length] = 0;
        for (int i = 0; i < length; i++) {
            bits_of_input x;
            memcpy(&x, numbers + start + i, sizeof x);
            const real quarter = 4 * load(numbers[start + i]);
            const int fits = quarter >= 0 && quarter <= 15 && !(x >> (INPUT_BITS - 1)); /* neither NaN nor -0 */
            quarters[i] = (uint8_t)(fits ? quarter : 0);
            wrong |= !fits || quarters[i] != quarter;
        }
        others |= wrong;
        for (int i = 0; i < length; i += 2) bits[(start + i) / 2] = quarters[i] | (uint8_t)(quarters[i + 1] << 4);
    }
    return others;
}

void unpack_quarters(const uint8_t *restrict bits, int64_t n, input *restrict numbers, int64_t threads)
{
    want_large_pages(numbers, n * sizeof *numbers);
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (int64_t i = 0; i < n; i++) numbers[i] = store((real)0.25 * (bits[i / 2] >> 4 * (i % 2) & 15));
}

/* The number in Layer of the law with this class name; -1 if this kernel does not know it. */
int64_t number_of_law(const char *name)
{
    for (int law = 0; law < LAW_COUNT; law++)
        if (!strcmp(name, law_names[law])) return law;
    return -1;
}

/* The words of every neuron and step, first [T, ...] and second [T, ...]; for tests. */
void random_words(const Layer *l, const int64_t *seeds, uint32_t *first, uint32_t *second)
{
    for (int64_t block = 0; block < blocks_of(l); block++) {
        Block b;
        start_block(l, &(Tensors){0}, block, &b);
        for (int64_t t = 0; t < l->timesteps; t++) {
            draw_words(seeds[t], &b);
            for (int row = 0; row < b.rows; row++) {
                int64_t at = t * l->neurons + b.start[row], bytes = b.length[row] * sizeof(uint32_t);
                memcpy(first + at, b.words[2 * row], bytes);
                memcpy(second + at, b.words[2 * row + 1], bytes);
            }
        }
    }
}
