/* What a program for an emulated board has: text out, an end, a clock that counts instructions. */
#ifndef MODELFLEET_BOARD_H
#define MODELFLEET_BOARD_H

#include <stdint.h>

int board_main(void);
void board_reset(void);
void board_print(const char *text);
void board_finish(uint32_t code);
uint64_t board_ticks(void);

#endif
