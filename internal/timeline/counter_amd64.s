// SPDX-License-Identifier: MIT

#include "textflag.h"

// LFENCE, so that RDTSC isn't executed before what comes before it (Intel SDM, volume 2, RDTSC).
// func counter() uint64
TEXT ·counter(SB), NOSPLIT, $0-8
	LFENCE
	RDTSC
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ AX, ret+0(FP)
	RET
