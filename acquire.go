// SPDX-License-Identifier: MIT

package holdfast

import "time"

// AcquireOption changes what [Client.Acquire] does.
type AcquireOption func(*acquireOptions)

type acquireOptions struct {
	fresh   bool
	replace bool
	wait    time.Duration
}

// WithFresh acquires a session even if one of that name came from the previous kernel and waits to be reclaimed. That
// one stays where it is.
func WithFresh() AcquireOption {
	return func(o *acquireOptions) { o.fresh = true }
}

// WithReplace has a parked session of this kernel dropped first that has the name, with all that is in it.
func WithReplace() AcquireOption {
	return func(o *acquireOptions) { o.replace = true }
}

// WithDeviceTimeout is how long the orchestrator waits for the device while others use it: from 10 ms to a minute. The
// context's deadline should be later, since the answer takes time too.
func WithDeviceTimeout(d time.Duration) AcquireOption {
	return func(o *acquireOptions) { o.wait = d }
}
