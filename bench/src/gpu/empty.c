/*
 * Attaches a program that does nothing to functions of a library:
 *
 *	empty MEANS LIBRARY FUNCTION[:return]...
 *
 * MEANS is what the agent calls the hook: uprobe_multi, uprobe_cookie or uprobe. A function is
 * attached to as the agent does, past an endbr64; with `:return` at its return as well. Says how
 * many nanoseconds that took, and lets go at the end of its input.
 */
#include <dlfcn.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Linux 6.6; older headers lack them. */
#define TRACE_UPROBE_MULTI 48
#define MULTI_RETURN 1

#define FUNCTIONS 256
#define UPROBES "/sys/bus/event_source/devices/uprobe/"

/* The start of union bpf_attr for BPF_LINK_CREATE. */
struct link {
	uint32_t program, target, attach_type, flags;
	union {
		uint64_t cookie;
		struct {
			uint64_t path, offsets, reference_counters, cookies;
			uint32_t count, flags, pid;
		} multi;
	};
};

static bool multi, cookies;
static char *library;
static int program;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int bpf(int command, void *attr, size_t size)
{
	int fd = (int)syscall(SYS_bpf, command, attr, size);

	if (fd < 0)
		fail(command == BPF_PROG_LOAD ? "the empty program" : "a link");
	return fd;
}

static int load(void)
{
	static const struct bpf_insn empty[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr;

	memset(&attr, 0, sizeof(attr));
	attr.prog_type = BPF_PROG_TYPE_KPROBE;
	attr.expected_attach_type = multi ? TRACE_UPROBE_MULTI : 0;
	attr.insns = (uintptr_t)empty;
	attr.insn_cnt = 2;
	attr.license = (uintptr_t) "GPL";
	memcpy(attr.prog_name, "empty_uprobe", sizeof("empty_uprobe"));
	return bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
}

/* A number in a file, behind this prefix. */
static uint64_t number_in(const char *path, const char *format)
{
	unsigned long number;
	FILE *file = fopen(path, "r");

	if (!file || fscanf(file, format, &number) != 1)
		fail(path);
	fclose(file);
	return number;
}

/* Where in its file something of this process lies. */
static uint64_t offset_of(uintptr_t address)
{
	unsigned long start, end, offset;
	char line[4096];
	FILE *maps = fopen("/proc/self/maps", "r");

	while (maps && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 &&
		    address >= start && address < end) {
			fclose(maps);
			return address - start + offset;
		}
	}
	fail("/proc/self/maps");
	return 0;
}

static void attach_multi(const uint64_t *offsets, uint32_t count, bool at_return)
{
	struct link link = { .program = (uint32_t)program, .attach_type = TRACE_UPROBE_MULTI };

	if (!count)
		return;
	link.multi.path = (uintptr_t)library;
	link.multi.offsets = (uintptr_t)offsets;
	link.multi.count = count;
	link.multi.flags = at_return ? MULTI_RETURN : 0;
	bpf(BPF_LINK_CREATE, &link, sizeof(link));
}

static void attach_event(uint64_t offset, bool at_return)
{
	struct link link = { .program = (uint32_t)program, .attach_type = BPF_PERF_EVENT };
	struct perf_event_attr attr = { .size = sizeof(attr) };
	int event;

	attr.type = (uint32_t)number_in(UPROBES "type", "%lu");
	if (at_return)
		attr.config = 1ULL << number_in(UPROBES "format/retprobe", "config:%lu");
	attr.config1 = (uintptr_t)library;
	attr.config2 = offset;
	event = (int)syscall(SYS_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC);
	if (event < 0)
		fail("a uprobe");
	link.target = (uint32_t)event;
	link.cookie = 1;
	if (cookies)
		bpf(BPF_LINK_CREATE, &link, sizeof(link));
	else if (ioctl(event, PERF_EVENT_IOC_SET_BPF, program) ||
		 ioctl(event, PERF_EVENT_IOC_ENABLE, 0))
		fail("the program of a uprobe");
}

static void attach(const uint64_t *offsets, uint32_t count, bool at_return)
{
	uint32_t i;

	if (multi)
		attach_multi(offsets, count, at_return);
	else
		for (i = 0; i < count; i++)
			attach_event(offsets[i], at_return);
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int main(int count, char **arguments)
{
	static const unsigned char endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
	uint64_t entries[FUNCTIONS], returns[FUNCTIONS], offset;
	uint32_t entry_count = 0, return_count = 0;
	int64_t start_ns;
	void *handle;
	int i;

	if (count < 4 || count > FUNCTIONS)
		return 2;
	multi = !strcmp(arguments[1], "uprobe_multi");
	cookies = !strcmp(arguments[1], "uprobe_cookie");
	library = arguments[2];
	handle = dlopen(library, RTLD_NOW);
	if (!handle) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	for (i = 3; i < count; i++) {
		char *at_return = strchr(arguments[i], ':');
		unsigned char *code;

		if (at_return)
			*at_return = 0;
		code = dlsym(handle, arguments[i]);
		if (!code) {
			fprintf(stderr, "%s has no %s\n", library, arguments[i]);
			return 1;
		}
		offset = offset_of((uintptr_t)code);
		if (!memcmp(code, endbr64, sizeof(endbr64)))
			offset += sizeof(endbr64);
		entries[entry_count++] = offset;
		if (at_return)
			returns[return_count++] = offset;
	}
	/* Not one of those that the agent follows. */
	dlclose(handle);
	program = load();
	start_ns = now_ns();
	attach(returns, return_count, true);
	attach(entries, entry_count, false);
	printf("%ld\n", now_ns() - start_ns);
	fflush(stdout);
	while (getchar() != EOF)
		;
	return 0;
}
