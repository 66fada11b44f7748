// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
)

// fetchReport asks holdfast-updated.
func fetchReport(ctx context.Context) (json.RawMessage, error) {
	conn, err := dialUpdated(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var out struct {
		Report json.RawMessage `json:"report"`
	}
	err = callUpdated(ctx, conn, "Report", nil, nil, &out)
	return out.Report, err
}
