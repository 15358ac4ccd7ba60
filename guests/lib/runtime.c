/* Start-up after boot.S: command line, IDT, and the two ways to stop. */
#include "runtime.h"

#define MULTIBOOT_LOADER_MAGIC 0x2badb002
#define INFO_HAS_MEMORY        (1u << 0)
#define INFO_HAS_COMMAND_LINE  (1u << 2)
#define DEBUG_EXIT_PORT        0xf4
#define STUB_SIZE              16

struct multiboot_info {
	uint32_t flags;
	uint32_t mem_lower, mem_upper;
	uint32_t boot_device;
	uint32_t cmdline;
};

struct __attribute__((packed)) table_pointer {
	uint16_t limit;
	uint64_t base;
};

extern const char trap_stubs[];
void trap_dispatch(struct trap_frame *frame);
_Noreturn void runtime_start(uint32_t magic, uint32_t info);

uint32_t memory_kib_above_1m;
const char *command_line = "";
static struct gate idt[256];
static trap_handler handlers[256];

void *memset(void *to, int value, size_t n)
{
	void *start = to;

	asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return start;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *start = to;

	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	return start;
}

/* The rest of the command line after NAME, if NAME begins a word. */
static const char *after_word(const char *name)
{
	const char *at = command_line;

	while (*at) {
		const char *n = name;

		while (*n && *at == *n) {
			at++;
			n++;
		}
		if (!*n)
			return at;
		while (*at && *at != ' ')
			at++;
		while (*at == ' ')
			at++;
	}
	return NULL;
}

bool option(const char *name)
{
	const char *rest = after_word(name);

	return rest && (*rest == ' ' || *rest == '\0');
}

const char *option_text(const char *name)
{
	const char *rest = after_word(name);

	return rest && *rest == '=' ? rest + 1 : NULL;
}

uint64_t option_value(const char *name, uint64_t otherwise)
{
	const char *text = option_text(name);
	unsigned base = 10;
	uint64_t value = 0;

	if (!text)
		return otherwise;
	if (text[0] == '0' && text[1] == 'x') {
		base = 16;
		text += 2;
	}
	for (; *text && *text != ' '; text++) {
		unsigned digit = *text <= '9' ? (unsigned)(*text - '0') : (unsigned)((*text | 0x20) - 'a' + 10);

		if (digit >= base) {
			print("%s: not a number\n", name);
			leave(2);
		}
		value = value * base + digit;
	}
	return value;
}

/* Does TEXT up to a blank or comma equal WORD? */
static bool word_is(const char *text, const char *word)
{
	while (*word && *text == *word) {
		text++;
		word++;
	}
	return !*word && (*text == '\0' || *text == ' ' || *text == ',');
}

bool list_has(const char *list, const char *word)
{
	while (list && *list && *list != ' ') {
		if (word_is(list, word))
			return true;
		while (*list && *list != ' ' && *list != ',')
			list++;
		if (*list == ',')
			list++;
	}
	return false;
}

_Noreturn void leave(uint8_t value)
{
	outb(DEBUG_EXIT_PORT, value);
	/* No such device: stay quiet for ever. */
	for (;;)
		asm volatile("cli; hlt");
}

_Noreturn void panic(const char *what)
{
	print("panic: %s\n", what);
	leave(0x7f);
}

void set_trap_handler(unsigned vector, trap_handler handler)
{
	handlers[vector] = handler;
}

void trap_dispatch(struct trap_frame *frame)
{
	if (handlers[frame->vector]) {
		handlers[frame->vector](frame);
		return;
	}
	print("unexpected vector %lu, error code 0x%lx, rip 0x%lx, cr2 0x%lx\n",
	      frame->vector, frame->error_code, frame->rip, read_cr2());
	panic("unhandled trap");
}

struct gate interrupt_gate(const char *handler)
{
	uint64_t offset = (uint64_t)handler;

	return (struct gate){
		.offset_low = (uint16_t)offset,
		.selector = SEL_CODE64,
		.type = 0x8e,   /* present, DPL 0, interrupt gate */
		.offset_mid = (uint16_t)(offset >> 16),
		.offset_high = (uint32_t)(offset >> 32),
	};
}

static void load_idt(void)
{
	struct table_pointer pointer = { sizeof idt - 1, (uint64_t)idt };

	for (unsigned vector = 0; vector < 256; vector++)
		idt[vector] = interrupt_gate(trap_stubs + vector * STUB_SIZE);
	asm volatile("lidt %0" : : "m"(pointer));
}

_Noreturn void runtime_start(uint32_t magic, uint32_t info)
{
	const struct multiboot_info *multiboot = (const void *)(uint64_t)info;

	console_init();
	load_idt();
	if (magic != MULTIBOOT_LOADER_MAGIC)
		panic("not started by a multiboot loader");
	if (multiboot->flags & INFO_HAS_MEMORY)
		memory_kib_above_1m = multiboot->mem_upper;
	if (multiboot->flags & INFO_HAS_COMMAND_LINE)
		command_line = (const char *)(uint64_t)multiboot->cmdline;
	leave((uint8_t)guest_main());
}
