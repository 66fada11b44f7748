// SPDX-License-Identifier: MIT

#include "textflag.h"

// ISB, so that the counter isn't read before what comes before it (arch_timer.h, Linux). Linux lets userspace read it
// (arch_counter_set_user_access).
// func counter() uint64
TEXT ·counter(SB), NOSPLIT, $0-8
	ISB  $15
	MRS  CNTVCT_EL0, R0
	MOVD R0, ret+0(FP)
	RET
