// SPDX-License-Identifier: MIT

package holdfast

// RenewStep is what [Renew] has just done.
type RenewStep string

// The steps of Renew, in order. Memory that wasn't in a session of the previous kernel any more skips some.
const (
	Retrieved       RenewStep = "retrieved"
	FilesStored     RenewStep = "files-stored"
	Finished        RenewStep = "finished"
	Acquired        RenewStep = "acquired"
	Preserved       RenewStep = "preserved"
	ManifestWritten RenewStep = "manifest-written"
	Stored          RenewStep = "stored"
	Released        RenewStep = "released"
)

// RenewOption changes what [Renew] does.
type RenewOption func(*renewOptions)

type renewOptions struct{ progress func(RenewStep) }

func (o *renewOptions) done(step RenewStep) {
	if o.progress != nil {
		o.progress(step)
	}
}

// WithProgress has a function called after each step, on the goroutine that called Renew: to tell whoever waits for
// gigabytes to be pinned. Of what is being renewed it may only call Name and Manifest.
func WithProgress(progress func(RenewStep)) RenewOption {
	return func(o *renewOptions) { o.progress = progress }
}
