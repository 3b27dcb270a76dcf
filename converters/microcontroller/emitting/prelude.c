#include <limits.h>
#include <stddef.h>
#include <stdint.h>

/* What this code relies on beyond C99. */
typedef char model_needs_bytes_of_8_bits[CHAR_BIT == 8 ? 1 : -1];
typedef char model_needs_int_of_32_bits[sizeof(int) == 4 ? 1 : -1];
typedef char model_needs_float_of_32_bits[sizeof(float) == 4 ? 1 : -1];
typedef char model_needs_arithmetic_shifts[(-5 >> 1) == -3 ? 1 : -1];
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "expected a little-endian target: the weights are stored so"
#endif

/* Loops must not become calls of memcpy or memset: there may be no libc. (clang: compile with -fno-builtin.) */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns")
#endif

/* Where a processor's own instructions take the place of portable code, a function that only that called is left out. */
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif

/* A place in the workspace serves one type after another: no access moves across a step. */
#if defined(__GNUC__)
#define MODEL_STEP() __asm__ volatile("" : : : "memory")
#else
#define MODEL_STEP() ((void)0)
#endif

/* An inner loop that needs all registers for itself. */
#if defined(__GNUC__)
#define MODEL_APART __attribute__((noinline))
#else
#define MODEL_APART
#endif

/* A portable kernel beside one that does all of its work where the processor has the instructions. */
#if defined(__GNUC__)
#define MODEL_MAY_BE_UNUSED __attribute__((unused))
#else
#define MODEL_MAY_BE_UNUSED
#endif
