// SPDX-License-Identifier: MIT

package holdfast_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/holdfast-project/holdfast"
)

// A service that has its memory back after a crash, a restart or a live update, or makes it at its first start.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	restored, err := holdfast.Restored(ctx, client)
	if err != nil {
		log.Fatal(err)
	}
	var session *holdfast.Session
	if len(restored) > 0 {
		files, err := restored[0].Retrieve()
		if err != nil {
			log.Fatal(err) // a MemoryLimitError, say: nothing is lost
		}
		use(files["data"])
		session, err = holdfast.Renew(ctx, client, restored[0])
		if err != nil {
			log.Fatal(err)
		}
	} else {
		memory := newMemory() // a memfd
		if session, err = client.Acquire(ctx, "cache"); err != nil {
			log.Fatal(err)
		}
		if err := session.Preserve("data", memory); err != nil {
			log.Fatal(err)
		}
		if err := session.Store(ctx); err != nil {
			log.Fatal(err)
		}
		use(memory)
	}
	defer session.Close()
}

func ExampleClient_Acquire() {
	client, err := holdfast.Dial(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	session, err := client.Acquire(ctx, "ram")
	switch {
	case errors.Is(err, holdfast.ErrNameTaken):
		log.Fatal("another process of this unit has it: ", err)
	case errors.Is(err, holdfast.ErrNotPermitted), errors.Is(err, holdfast.ErrNoOwner):
		log.Fatal("this isn't a system service: ", err)
	case err != nil:
		log.Fatal(err)
	}
	defer session.Close()
	fmt.Println(session.KernelName())
}

func ExampleClient_Identify() {
	client, err := holdfast.Dial(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	received := os.NewFile(3, "a session from elsewhere")
	defer received.Close()
	id, err := client.Identify(context.Background(), received)
	if err != nil {
		log.Fatal(err)
	}
	if !id.Yours {
		log.Fatalf("%s is not ours", id.KernelName)
	}
}

func ExampleRenew() {
	ctx := context.Background()
	client, err := holdfast.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	restored, err := holdfast.Restored(ctx, client)
	if err != nil {
		log.Fatal(err)
	}
	for _, committed := range restored {
		session, err := holdfast.Renew(ctx, client, committed, holdfast.WithProgress(func(step holdfast.RenewStep) {
			log.Printf("%s: %s", committed.Name(), step)
		}))
		if err != nil {
			log.Fatal(err)
		}
		defer session.Close()
	}
}

func use(*os.File) {}

func newMemory() *os.File { return nil }
