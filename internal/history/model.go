package history

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// A state is all there is to know about one key between two steps.
type state struct {
	phase       phase
	execution   string // whose result is recorded
	fingerprint byte
}

type phase int

const (
	absent   phase = iota // there is no row
	recorded              // there is a result, and it can be replayed
	expired               // its retention is over; the row may be there, or purged
)

// A step is something that happens to a key at one moment.
type step struct {
	action      action
	execution   string
	fingerprint byte
}

type action string

const (
	execute action = "execute" // a run's effect and its record become visible
	expire  action = "expire"  // the database's clock passes the end of a record's retention
	remove  action = "remove"  // Delete, done

	replay     action = "replay"      // Do and DoTx return a recorded result
	find       action = "find"        // Get returns it
	findNone   action = "find none"   // Get returns ErrNotFound
	removeNone action = "remove none" // Delete returns ErrNotFound
	refuse     action = "refuse"      // Do and DoTx return ErrKeyReused
)

// apply is the sequential specification of the package: whether s can take the
// step, and the state that it leads to.
func (s state) apply(t step) (bool, state) {
	switch t.action {
	case execute:
		return s.phase != recorded, state{recorded, t.execution, t.fingerprint}
	case expire:
		if s.phase == recorded && s.execution == t.execution {
			s.phase = expired
		}
		return true, s
	case remove: // it removes an expired row too
		return s.phase != absent, state{}
	case replay:
		return s.holds(t.execution) && s.fingerprint == t.fingerprint, s
	case find:
		return s.holds(t.execution), s
	case findNone:
		return s.phase != recorded, s
	case removeNone: // an expired row was purged
		return s.phase != recorded, state{}
	case refuse:
		return s.phase == recorded && s.fingerprint != t.fingerprint, s
	}
	panic("no such action: " + t.action)
}

func (s state) holds(execution string) bool {
	return s.phase == recorded && s.execution == execution
}

func (s state) String() string {
	switch s.phase {
	case recorded:
		return s.execution
	case expired:
		return s.execution + ", expired"
	}
	return "none"
}

func (t step) String() string {
	text := string(t.action)
	if t.execution != "" {
		text += " " + t.execution
	}
	if t.fingerprint != 0 {
		text += fmt.Sprintf(" (fingerprint %d)", t.fingerprint)
	}
	return text
}

// model is the specification as porcupine takes it. All of a step is input: what
// a call returned is part of it.
var model = porcupine.Model{
	Init: func() any { return state{} },
	Step: func(s, input, _ any) (bool, any) {
		return s.(state).apply(input.(step))
	},
	DescribeOperation: func(input, _ any) string { return input.(step).String() },
	DescribeState:     func(s any) string { return s.(state).String() },
}
