/* What one core can do at most: with the instruction of the int8 layers on registers, and reading memory in order. */
#include "../fast/cpu/native_registers.h"

enum { SUMS = 12 }; /* more than an instruction's latency times how many start in a cycle */

#if MATRIX
/* Four products a round, none of which waits for another. */
int32_t ceiling_products(long rounds) {
    matrices_begin();
    for (long round = 0; round < rounds; round++) {
        MATRIX_PRODUCT(0, 4, 6); MATRIX_PRODUCT(1, 4, 7); MATRIX_PRODUCT(2, 5, 6); MATRIX_PRODUCT(3, 5, 7);
    }
    matrices_end();
    return 0;
}
long ceiling_operations(void) { return 4 * 2 * LINES * LINES * LINE; }
#else
/* 2 * 4 * LANES operations SUMS times a round. The result has to be used, or nothing would be computed. */
int32_t ceiling_products(long rounds) {
    vi s[SUMS], total = {0};
    const operand x = operand_of(broadcast((int32_t)rounds)), w = weight_of(broadcast((int32_t)rounds));
    UNROLL for (int i = 0; i < SUMS; i++) s[i] = broadcast(i);
    for (long round = 0; round < rounds; round++) UNROLL for (int i = 0; i < SUMS; i++) s[i] = dot(s[i], x, w);
    UNROLL for (int i = 0; i < SUMS; i++) total ^= s[i];
    return total[0];
}
long ceiling_operations(void) { return 2 * 4 * LANES * SUMS; }
#endif

/* The largest multiple of 4 * WIDTH bytes that `size` has room for. */
int32_t ceiling_read(const char *from, long size) {
    vi s[4] = {{0}, {0}, {0}, {0}};
    for (long i = 0; i + 4 * WIDTH <= size; i += 4 * WIDTH)
        UNROLL for (int d = 0; d < 4; d++) s[d] ^= load(from + i + d * WIDTH);
    return (s[0] ^ s[1] ^ s[2] ^ s[3])[0];
}
