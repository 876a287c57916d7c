/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* What the program that tests a file of types and its reader share. */
#pragma once

/* The program's own counters, counted from `btf_counters`. */
enum btf_counter {
	/* Tasks that were read as they are. */
	BTF_COUNTER_RIGHT,
	BTF_COUNTER_WRONG,
	BTF_COUNTERS,
};
