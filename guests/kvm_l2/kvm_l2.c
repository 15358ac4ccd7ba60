/* Uses /dev/kvm directly: runs small guests in real and in 64-bit mode and says
 * what came back.
 *
 *   kvm_l2 all               a real-mode and a 64-bit guest: text by port output,
 *                            a device register by MMIO, 10,000 CPUIDs, HLT
 *   kvm_l2 loop NAME N       N times one cause of exit:
 *                            cpuid port mmio msr hlt ept
 *   kvm_l2 loops N           all of them
 */
#include <linux/kvm.h>

#include "l2.h"
#include "linux.h"
#include "processor.h"

#define LOW_MEMORY   0xa0000ul      /* guest memory from 0; the device lies above it */
#define FRESH_MEMORY (16ul << 20)
#define PML4         0x2000
#define PDPT         0x3000
#define PAGE_DIRECTORY 0x4000
#define CPUID_ITERATIONS 10000

#define O_RDWR       2
#define PROT_READ_WRITE 3
#define MAP_SHARED   1
#define MAP_PRIVATE_ANONYMOUS 0x22
#define MADV_NOHUGEPAGE 15

struct vm {
	int vm, vcpu;
	uint8_t *memory;
	struct kvm_run *run;
	size_t run_size;
	uint64_t exits[KVM_EXIT_INTERNAL_ERROR + 32];
	uint32_t device;
	uint32_t results[4];
	unsigned result_count;
	char text[64];
	size_t text_length;
};

static int kvm;

static long control(int fd, unsigned long request, long argument, const char *what)
{
	long result = call3(__NR_ioctl, fd, (long)request, argument);

	if (result < 0)
		fail(what, result);
	return result;
}

static void *map(size_t size, int flags, int fd)
{
	long address = system_call(__NR_mmap, 0, (long)size, PROT_READ_WRITE, flags, fd, 0);

	if (address < 0 && address > -4096)
		fail("mmap", address);
	return (void *)address;
}

static void add_memory(struct vm *vm, unsigned slot, uint64_t where, void *memory, size_t size)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = where,
		.memory_size = size,
		.userspace_addr = (uint64_t)memory,
	};

	control(vm->vm, KVM_SET_USER_MEMORY_REGION, (long)&region, "KVM_SET_USER_MEMORY_REGION");
}

/* What KVM can offer, and one leaf of our own, so that the guest's sum is known. */
static void set_cpuid(struct vm *vm)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[128];
	} table;
	bool found = false;

	table.head.nent = 128;
	control(kvm, KVM_GET_SUPPORTED_CPUID, (long)&table, "KVM_GET_SUPPORTED_CPUID");
	for (unsigned i = 0; i < table.head.nent; i++) {
		if (table.entries[i].function == LEAF) {
			table.entries[i].eax = LEAF_EAX;
			found = true;
		}
	}
	if (!found && table.head.nent < 128)
		table.entries[table.head.nent++] = (struct kvm_cpuid_entry2){ .function = LEAF, .eax = LEAF_EAX };
	control(vm->vcpu, KVM_SET_CPUID2, (long)&table, "KVM_SET_CPUID2");
}

static void create(struct vm *vm)
{
	memset(vm, 0, sizeof *vm);
	vm->vm = (int)control(kvm, KVM_CREATE_VM, 0, "KVM_CREATE_VM");
	/* Intel's real mode needs three pages of ours where it does not disturb the guest. */
	control(vm->vm, KVM_SET_TSS_ADDR, 0xfffbd000, "KVM_SET_TSS_ADDR");
	vm->memory = map(LOW_MEMORY, MAP_PRIVATE_ANONYMOUS, -1);
	add_memory(vm, 0, 0, vm->memory, LOW_MEMORY);
	vm->vcpu = (int)control(vm->vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
	vm->run_size = (size_t)control(kvm, KVM_GET_VCPU_MMAP_SIZE, 0, "KVM_GET_VCPU_MMAP_SIZE");
	vm->run = map(vm->run_size, MAP_SHARED, vm->vcpu);
	set_cpuid(vm);
}

static void destroy(struct vm *vm)
{
	call3(__NR_munmap, (long)vm->run, (long)vm->run_size, 0);
	call3(__NR_close, vm->vcpu, 0, 0);
	call3(__NR_close, vm->vm, 0, 0);
	call3(__NR_munmap, (long)vm->memory, LOW_MEMORY, 0);
}

static void load(struct vm *vm, const char *code, const char *end, uint64_t iterations)
{
	struct kvm_regs registers = { .rip = CODE, .rsp = STACK, .rdi = iterations, .rflags = 2 };

	memcpy(vm->memory + CODE, code, (size_t)(end - code));
	control(vm->vcpu, KVM_SET_REGS, (long)&registers, "KVM_SET_REGS");
}

static void set_real_mode(struct vm *vm)
{
	struct kvm_sregs special;

	control(vm->vcpu, KVM_GET_SREGS, (long)&special, "KVM_GET_SREGS");
	special.cs.base = 0;        /* at reset it is the BIOS's */
	special.cs.selector = 0;
	control(vm->vcpu, KVM_SET_SREGS, (long)&special, "KVM_SET_SREGS");
}

static void set_long_mode(struct vm *vm)
{
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 0x10, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 0x08, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_sregs special;
	uint64_t *directory = (uint64_t *)(vm->memory + PAGE_DIRECTORY);

	*(uint64_t *)(vm->memory + PML4) = PDPT | 3;
	*(uint64_t *)(vm->memory + PDPT) = PAGE_DIRECTORY | 3;
	for (uint64_t i = 0; i < 512; i++)
		directory[i] = i << 21 | 0x83;   /* 2 MiB, writable, present */

	control(vm->vcpu, KVM_GET_SREGS, (long)&special, "KVM_GET_SREGS");
	special.cs = code;
	special.ds = special.es = special.fs = special.gs = special.ss = data;
	special.cr3 = PML4;
	special.cr4 = 0x20;             /* PAE */
	special.cr0 = 0x80050033;       /* PG AM WP NE ET MP PE */
	special.efer = 0x500;           /* LMA LME */
	control(vm->vcpu, KVM_SET_SREGS, (long)&special, "KVM_SET_SREGS");
}

static void port_exit(struct vm *vm)
{
	const uint8_t *data = (const uint8_t *)vm->run + vm->run->io.data_offset;

	if (vm->run->io.direction != KVM_EXIT_IO_OUT)
		fail("the guest read a port", vm->run->io.port);
	if (vm->run->io.port == PORT_TEXT && vm->text_length < sizeof vm->text - 1) {
		vm->text[vm->text_length++] = (char)*data;
	} else if (vm->run->io.port == PORT_RESULT && vm->result_count < 4) {
		memcpy(&vm->results[vm->result_count++], data, 4);
	}
}

static void mmio_exit(struct vm *vm)
{
	uint32_t answer = vm->device + 1;

	if (vm->run->mmio.phys_addr != DEVICE)
		fail("the guest touched memory it does not have", (long)vm->run->mmio.phys_addr);
	if (vm->run->mmio.is_write)
		memcpy(&vm->device, vm->run->mmio.data, 4);
	else
		memcpy(vm->run->mmio.data, &answer, 4);
}

/* Until the guest has halted HALTS times. */
static void run(struct vm *vm, uint64_t halts)
{
	while (vm->exits[KVM_EXIT_HLT] < halts) {
		uint32_t reason;

		control(vm->vcpu, KVM_RUN, 0, "KVM_RUN");
		reason = vm->run->exit_reason;
		if (reason >= sizeof vm->exits / sizeof vm->exits[0])
			fail("unknown exit reason", reason);
		vm->exits[reason]++;
		switch (reason) {
		case KVM_EXIT_IO:
			port_exit(vm);
			break;
		case KVM_EXIT_MMIO:
			mmio_exit(vm);
			break;
		case KVM_EXIT_HLT:
			break;
		case KVM_EXIT_INTERNAL_ERROR:
			fail("KVM internal error", vm->run->internal.suberror);
		case KVM_EXIT_FAIL_ENTRY:
			fail("VM entry failed", (long)vm->run->fail_entry.hardware_entry_failure_reason);
		default:
			fail("unexpected exit reason", reason);
		}
	}
}

extern const char real_mode[], real_mode_end[], long_mode[], long_mode_end[];
extern const char loop_cpuid[], loop_cpuid_end[], loop_port[], loop_port_end[], loop_mmio[], loop_mmio_end[];
extern const char loop_msr[], loop_msr_end[], loop_hlt[], loop_hlt_end[], loop_ept[], loop_ept_end[];

static void show(const char *mode, void (*set_mode)(struct vm *), const char *code, const char *end)
{
	static struct vm vm;

	create(&vm);
	set_mode(&vm);
	load(&vm, code, end, CPUID_ITERATIONS);
	run(&vm, 1);
	print("kvm %s: port output \"%s\"\n", mode, vm.text);
	print("kvm %s: mmio wrote 0x%x, read 0x%x\n", mode, vm.device, vm.results[0]);
	print("kvm %s: %u cpuid, sum %u\n", mode, CPUID_ITERATIONS, vm.results[1]);
	print("kvm %s: halted after %lu port, %lu mmio exits\n", mode, vm.exits[KVM_EXIT_IO], vm.exits[KVM_EXIT_MMIO]);
	if (vm.results[0] != vm.device + 1 || vm.results[1] != LEAF_EAX * CPUID_ITERATIONS)
		fail("a result is wrong", 0);
	destroy(&vm);
}

static const struct loop {
	const char *name, *code, *end;
} loops[] = {
	{ "cpuid", loop_cpuid, loop_cpuid_end }, { "port", loop_port, loop_port_end },
	{ "mmio", loop_mmio, loop_mmio_end },    { "msr", loop_msr, loop_msr_end },
	{ "hlt", loop_hlt, loop_hlt_end },       { "ept", loop_ept, loop_ept_end },
};

static void run_loop(const struct loop *loop, uint64_t count)
{
	static struct vm vm;
	uint8_t *fresh = map(FRESH_MEMORY, MAP_PRIVATE_ANONYMOUS, -1);
	uint64_t tsc;

	if (count == 0 || (same(loop->name, "ept") && count > FRESH_MEMORY / 4096))
		fail("the count must be at least 1, for ept at most 4096", 0);
	/* Small pages, or one exit would map 512 of them. */
	call3(__NR_madvise, (long)fresh, FRESH_MEMORY, MADV_NOHUGEPAGE);
	create(&vm);
	add_memory(&vm, 1, FRESH, fresh, FRESH_MEMORY);
	set_long_mode(&vm);
	load(&vm, loop->code, loop->end, count);
	tsc = rdtsc();
	run(&vm, same(loop->name, "hlt") ? count + 1 : 1);
	print("kvm loop %s: iterations=%lu tsc=%lu\n", loop->name, count, rdtsc() - tsc);
	destroy(&vm);
	call3(__NR_munmap, (long)fresh, FRESH_MEMORY, 0);
}

int main(int count, char **arguments)
{
	kvm = (int)call3(__NR_open, (long)"/dev/kvm", O_RDWR, 0);
	if (kvm < 0)
		fail("open /dev/kvm", kvm);
	if (control(kvm, KVM_GET_API_VERSION, 0, "KVM_GET_API_VERSION") != KVM_API_VERSION)
		fail("KVM's API version is not 12", 0);
	if (count == 2 && same(arguments[1], "all")) {
		show("real mode", set_real_mode, real_mode, real_mode_end);
		show("64-bit", set_long_mode, long_mode, long_mode_end);
		print("kvm_l2: ok\n");
		return 0;
	}
	if ((count == 4 && same(arguments[1], "loop")) || (count == 3 && same(arguments[1], "loops"))) {
		bool every = count == 3, ran = false;

		for (unsigned i = 0; i < sizeof loops / sizeof loops[0]; i++) {
			if (every || same(arguments[2], loops[i].name)) {
				run_loop(&loops[i], number(arguments[count - 1]));
				ran = true;
			}
		}
		if (!ran)
			fail("no such loop", 0);
		print("kvm_l2: ok\n");
		return 0;
	}
	print("usage: kvm_l2 all | kvm_l2 loop cpuid|port|mmio|msr|hlt|ept N | kvm_l2 loops N\n");
	return 2;
}
