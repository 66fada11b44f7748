// SPDX-License-Identifier: MIT

package holdfast

// RenewStep is what [Renew] has just done.
type RenewStep string

// The steps of Renew, in order. Memory that wasn't in a session of the previous kernel any more skips some, and what is
// renewed [WithoutStore] skips FilesStored and Stored.
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

type renewOptions struct {
	progress     func(RenewStep)
	withoutStore bool
	parking      bool
}

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

// WithParking has the orchestrator keep the memory, and not the fd store of one's own unit. It is for what has come by
// [Client.Reclaim]; what came from an fd store is refused.
func WithParking() RenewOption {
	return func(o *renewOptions) { o.parking = true }
}

// WithoutStore is for programs that have no fd store, as where there is no systemd: this process alone holds what it
// has of [Client.Reclaim] until the kexec. It must be running when the kernel is switched. Its death loses the memory, in
// Renew as at any other time: between Finished and Preserved its descriptors are all that holds it, and later the
// session ends with them. What came from an fd store is refused.
func WithoutStore() RenewOption {
	return func(o *renewOptions) { o.withoutStore = true }
}
