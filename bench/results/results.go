// Package results is what a run has measured, as it is kept in its JSON file.
// All times are in nanoseconds.
package results

import (
	"encoding/json"
	"os"
	"time"
)

// A Run is one run of "bench run".
type Run struct {
	Started    time.Time
	Took       time.Duration
	Command    string
	Conditions Conditions
	Peers      []Peer
	Timed      []Timed
	Storms     []Storm
	Counts     []Counts
	Plain      Plain
	Faults     []Fault
}

// Conditions are what the figures depend on.
type Conditions struct {
	PostgreSQL string            // its version
	Settings   map[string]string // of the server
	Go, PGX    string            // versions
	System     string            // operating system and architecture
	CPU        string
	Cores      int
	LoadBefore string        // of the machine, when the run began: others at work make figures worthless
	Socket     string        // what the "socket" link is
	Delay      time.Duration // of the "delay" link, each way
	Pool       int32         // connections of each peer
	Slice      time.Duration // of one peer in one round
	Rounds     int
	Window     time.Duration     // of a storm, at least, and of the calm before it
	Work       time.Duration     // that the function of a storm's key takes
	Tools      map[string]string // versions of what peers need besides
}

// A Peer is one that took part.
type Peer struct{ Name, About string }

// The sections that are timed.
const (
	First  = "first call"
	Replay = "replay"
	Mix    = "95/5 mix"
)

// Unknown is added to the name of a peer that replays keys which its process does not
// know, where it does so in another way than with those that it knows.
const Unknown = ", key unknown to the process"

// The links between client and server.
const (
	Socket = "socket"
	Delay  = "delay"
)

// Timed is one peer in one section.
type Timed struct {
	Section, Link string
	Callers       int
	Peer          string
	Calls         int
	Ratio         float64   // median of Ratios
	Ratios        []float64 // of the mean time to that of the bare transaction, round by round
	Mean          time.Duration
	P50, P99      time.Duration
	PerSecond     float64 // calls, of all callers together
	Errors        int
	Error         string // the first
}

// Standing is the name of a storm of goroutines that wait for a channel, and for
// nothing else.
const Standing = "goroutines that wait for a channel"

// A Storm is many duplicates of one key beside workers on distinct keys.
type Storm struct {
	Link       string
	Peer       string
	Duplicates int
	Executions int           // of the storm's keys, each of which should have one
	Storms     int           // that were made, one after another, a key each
	Took       time.Duration // until the last duplicate had its answer: the median
	Unanswered int           // duplicates without an answer at the bound
	Failed     int           // calls of distinct keys beside it
	Error      string        // one of all these
	Calm, Wild Load          // distinct keys without and beside the storm
	P99Ratio   float64       // medians of paired windows
	RateRatio  float64
}

// Load is what callers with distinct keys got.
type Load struct {
	P50, P99  time.Duration
	Longest   time.Duration
	PerSecond float64
}

// Counts are per operation.
type Counts struct {
	Peer          string
	First, Replay Cost
	Held          float64 // connections held by 64 duplicates in one process that wait for one call: the median of samples
	HeldMost      int
	Executed      int // of those 64; 0: there were none
}

// Plain is what pgx alone allocates for the statements of this package.
type Plain struct{ First, Replay float64 }

// Cost is what one call costs. Counts are means over many calls, the least of
// several tries.
type Cost struct {
	Trips       float64 // on the wire
	Waited      int     // of these, that the caller waits for
	WAL         float64 // bytes
	XIDs        float64
	Fsyncs      float64
	Allocations float64 // of the client process
	AllocBytes  float64
}

// A Fault is what remains of calls that met one.
type Fault struct {
	Peer    string
	Kind    string
	Keys    int
	Effects []int // of each key, after the retries: business rows

	// At the provider, of each key, if there is one.
	Charges, Requests []int

	Answers int           // keys that a retry got an answer for
	Wrong   int           // answers that were changed by a later retry
	Took    time.Duration // until the answer: the median
	Error   string        // the first, of a retry that got none
}

// The kinds of faults.
const (
	Killed       = "SIGKILL between the business write and the record"
	LostResponse = "response to the business transaction's COMMIT lost"

	// Of operations that ask a provider, too.
	KilledInCall = "SIGKILL in the call, when the provider has charged"
	LostAnswer   = "the provider's answer lost"
)

// Save writes a run to a file.
func Save(path string, v any) error {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// Read reads it again.
func Read(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}
