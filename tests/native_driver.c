/* native.c as a program of its own: calls come by standard input, results go by standard output (tests/native_driver.py).

   So it can be compiled for another processor and run by qemu, or with sanitizers, which a Python process would have to be started
   with. Every array lies in a block of memory of exactly its size. */
#include "../fast/cpu/native.c"
#include <stdio.h>
#include <unistd.h>

static int receive(void *to, size_t size) {
    for (char *at = to; size;) {
        ssize_t got = read(0, at, size);
        if (got <= 0) return 0;
        at += got; size -= (size_t)got;
    }
    return 1;
}

static void send(const void *from, size_t size) {
    for (const char *at = from; size;) {
        ssize_t put = write(1, at, size);
        if (put <= 0) exit(3);
        at += put; size -= (size_t)put;
    }
}

enum { ADDRESSES = 13, FIRST_RESULT = 7, LAST_RESULT = 11, EXPERTS = 4 };

int main(void) {
    int (*functions[])(const Call *) = {llm_int8_linear, llm_int8_quantize, llm_int8_outlier_columns, llm_int8_matmul};
    struct { char name[32]; int64_t size; } greeting = {INSTRUCTIONS, sizeof(Call)};
    if (llm_int8_prepare()) return 4;
    send(&greeting, sizeof greeting);
    for (int64_t function, sizes[ADDRESSES + 1]; receive(&function, sizeof function);) {
        Call call;
        void *blocks[ADDRESSES];
        if (!receive(sizes, sizeof sizes) || !receive(&call, sizeof call)) return 2;
        int64_t *ends = malloc((size_t)sizes[ADDRESSES]); /* of the rows of experts, for their function */
        if (!receive(ends, (size_t)sizes[ADDRESSES])) return 2;
        for (int i = 0; i < ADDRESSES; i++) {
            blocks[i] = sizes[i] < 0 ? NULL : malloc((size_t)sizes[i]);
            if (i < FIRST_RESULT && sizes[i] > 0 && !receive(blocks[i], (size_t)sizes[i])) return 2;
            if (i >= FIRST_RESULT && sizes[i] > 0) memset(blocks[i], 0x5a, (size_t)sizes[i]);
        }
        memcpy(&call, blocks, sizeof blocks); /* the addresses are the first fields */
        call.pool = NULL;
        const Experts experts = {call, ends, sizes[ADDRESSES] / 8};
        int64_t result = function == EXPERTS ? llm_int8_experts(&experts) : functions[function](&call);
        send(&result, sizeof result);
        for (int i = FIRST_RESULT; i <= LAST_RESULT; i++) if (sizes[i] > 0) send(blocks[i], (size_t)sizes[i]);
        for (int i = 0; i < ADDRESSES; i++) free(blocks[i]);
        free(ends);
    }
    return 0;
}
