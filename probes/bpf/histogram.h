/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The latency histogram: its layout, shared with Rust, and the choice of bucket.
 *
 * Edges lie at 2^(i/4) seconds, four to the octave, from 2^-18 s (3.8 us) to
 * 2^4 s (16 s): Prometheus' native-histogram schema 2. An edge belongs to the
 * bucket below it, as `le` wants. Bucket 0 takes all up to 2^-18 s, bucket 89
 * all above 16 s.
 *
 * The file also compiles for the host, where a test compares it with exact
 * arithmetic.
 */
#pragma once

#include <linux/types.h>

#define HISTOGRAM_BUCKETS 90
#define HISTOGRAM_MIN_EXPONENT (-18)
#define HISTOGRAM_EDGES_PER_OCTAVE 4

/* One cell of the pool: 368 bytes. The count is the sum of the buckets, so that
 * it can never disagree with them. Buckets wrap; the reader takes deltas. */
struct histogram {
	/* Of the durations in ns; of an I/O's first histogram its bytes: see DISK_KIND_IO. */
	__u64 sum;
	__u32 buckets[HISTOGRAM_BUCKETS];
};

/* 1 if a < b, without a branch: for both below 2^63. The empty asm keeps the compiler
 * from making a branch of it again. Durations are random to a branch predictor,
 * and the verifier walks both sides of every branch. */
static inline __attribute__((always_inline)) __u64 histogram_less(__u64 a, __u64 b)
{
	__u64 difference = a - b;

	asm("" : "+r"(difference));
	return difference >> 63;
}

/* The bucket of a duration in nanoseconds: 0..=89.
 *
 * Edges are powers of two in seconds, so the time is first scaled to units of
 * 2^-30 s: 2^30 / 10^9 = 1 + 633437445 / 2^33, right within 1 ns at every edge.
 * No clz: clang 14 for BPF crashes on it or folds it to a constant.
 */
static inline __attribute__((always_inline)) __u32 histogram_bucket_of(__u64 ns)
{
	__u64 t, x, y, e, s;

	/* Tested first: above 16 s the product below would soon wrap. */
	if (ns > 16000000000ULL)
		return HISTOGRAM_BUCKETS - 1;
	t = ns + (ns * 633437445ULL >> 33);
	if (t <= 1ULL << 12)
		return 0;
	/* 2^e < t <= 2^(e+1), hence the exponent of t - 1; 2^12 is the lowest. */
	x = (t - 1) >> 12;
	e = histogram_less(0xffff, x) << 4;
	x >>= e;
	s = histogram_less(0xff, x) << 3;
	x >>= s;
	e += s;
	s = histogram_less(0xf, x) << 2;
	x >>= s;
	e += s;
	s = histogram_less(0x3, x) << 1;
	x >>= s;
	e += s;
	e += x >> 1;
	/* The mantissa against 2^(34 + q/4): which quarter of the octave. */
	y = t << (22 - e);
	return 1 + 4 * e + histogram_less(20430422668ULL, y) + histogram_less(24296003999ULL, y) +
	       histogram_less(28892980822ULL, y);
}
