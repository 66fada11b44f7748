// SPDX-License-Identifier: MIT

package holdfast

import (
	"fmt"

	"github.com/holdfast-project/holdfast/internal/peer"
)

// checkMemory makes sure that this process's cgroup, and those above it, can take need bytes more. Whoever retrieves
// a file is charged for its pages (mm/memfd_luo.c, Linux 7.2: shmem_add_to_page_cache after mem_cgroup_charge), and a
// retrieval that fails for want of memory has failed for good. What the orchestrator said, which sees the limits above a
// container too, counts as well; told may be nil.
func checkMemory(need int64, told *memoryReply) error {
	tightest, err := peer.OwnMemory()
	if err != nil {
		return fmt.Errorf("holdfast: which memory limit applies: %w", err)
	}
	if told != nil && (tightest == nil || told.Available < tightest.Available) {
		tightest = &peer.Memory{Cgroup: "this cgroup or one above it, as the host sees it,", Limit: told.Limit, Available: told.Available}
	}
	// The kernel's own bookkeeping for the pages is charged too: tree nodes of 576 bytes for each 64 pages.
	need += need/64 + 1<<20
	if tightest != nil && tightest.Available < need {
		return &MemoryLimitError{Cgroup: tightest.Cgroup, Need: need, Available: tightest.Available, Limit: tightest.Limit}
	}
	return nil
}
