// Command worker is one of the processes whose history is checked: it calls Do,
// QueryRow, DoTx, Get and Delete on a few hot keys from many goroutines, purges beside
// them, and writes what it did to a journal. Its argument is a journal.Job as
// JSON. It ends when its standard input does, so that it never outlives the
// driver.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/pgidem/idempotency/internal/history/journal"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("usage: worker JOB")
	}
	var job journal.Job
	if err := json.Unmarshal([]byte(os.Args[1]), &job); err != nil {
		return err
	}
	w, err := newWorker(job)
	if err != nil {
		return err
	}
	defer w.close()
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	w.work(stop)
	return nil
}
