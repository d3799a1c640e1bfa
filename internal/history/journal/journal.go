// Package journal is what the driver and a worker process tell each other: the
// job, and the calls that the worker made.
//
// A journal is a file of JSON lines. A call has one line that is written before
// it begins and one that is written after it has ended, each with a single
// write(2), so that SIGKILL loses nothing that was written: a call without an end
// is one that the process did not survive.
package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// An Operation is a function of the package under test.
type Operation string

const (
	Do       Operation = "Do"
	DoTx     Operation = "DoTx"
	QueryRow Operation = "QueryRow"
	Get      Operation = "Get"
	Delete   Operation = "Delete"
)

// An Outcome is how a call ended.
type Outcome string

const (
	Executed Outcome = "executed" // the value is of this call's own COMMIT; Delete: done
	Replayed Outcome = "replayed" // the value was recorded before; Get: found
	Refused  Outcome = "refused"  // ErrKeyReused
	Missed   Outcome = "missed"   // ErrNotFound
	Failed   Outcome = "failed"   // any other error: nothing may have taken effect
	Unknown  Outcome = "unknown"  // ErrOutcomeUnknown, or a lost COMMIT of the caller's own
)

// A Begin is written before a call is made.
type Begin struct {
	Call        string // PROCESS/NUMBER
	Operation   Operation
	Key         string
	Fingerprint byte
	At          int64 // by Now
}

// An End is written after the call has returned.
type End struct {
	Call     string
	Outcome  Outcome
	Value    string // Executed, Replayed: the execution that the answer names
	Replayed bool   // as returned
	Runs     int    // of the function
	InDoubt  bool   // idempotency.Event.InDoubt
	Err      string
	At       int64 // by Now
}

// A Call is one call of one process.
type Call struct {
	Begin
	End *End // nil: the process did not survive it
}

// Process is the name of the process that made the call.
func (b Begin) Process() string {
	process, _, _ := strings.Cut(b.Call, "/")
	return process
}

// ExecutionOf names the n-th run of a call's function. What QueryRow runs is named by the
// number of its transaction.
func ExecutionOf(call string, n int) string { return call + "#" + strconv.Itoa(n) }

// CallOf is the call that an execution was a run of.
func CallOf(execution string) string {
	call, _, _ := strings.Cut(execution, "#")
	return call
}

// A Writer appends to a journal. It is safe for concurrent use.
type Writer struct {
	mu   sync.Mutex
	file *os.File
}

type line struct {
	Begin *Begin `json:",omitempty"`
	End   *End   `json:",omitempty"`
}

// Create makes a new journal.
func Create(name string) (*Writer, error) {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	return &Writer{file: file}, nil
}

// Begin writes that a call is about to be made. A history without one of its
// calls shows nothing, so what cannot be written ends the process.
func (w *Writer) Begin(b Begin) { w.write(line{Begin: &b}) }

// End writes that a call has returned.
func (w *Writer) End(e End) { w.write(line{End: &e}) }

func (w *Writer) write(l line) {
	text, err := json.Marshal(l)
	if err != nil {
		panic(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.file.Write(append(text, '\n')); err != nil {
		panic(err)
	}
}

// Read returns the calls of a journal, in the order in which they began.
func Read(name string) ([]Call, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var calls []Call
	place := make(map[string]int)
	for {
		first, rest, whole := bytes.Cut(text, []byte{'\n'})
		if !whole {
			return calls, nil // what SIGKILL left of the last line
		}
		text = rest
		var l line
		if err := json.Unmarshal(first, &l); err != nil {
			return nil, fmt.Errorf("%s: %q: %w", name, first, err)
		}
		switch {
		case l.Begin != nil:
			place[l.Begin.Call] = len(calls)
			calls = append(calls, Call{Begin: *l.Begin})
		case l.End != nil:
			calls[place[l.End.Call]].End = l.End
		}
	}
}
