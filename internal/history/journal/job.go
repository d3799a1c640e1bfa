package journal

import "time"

// A Job is what the driver gives a worker to do: its first argument, as JSON.
type Job struct {
	Process string // names the process, and begins the name of its calls
	Journal string // the file to write
	URL     string // of the database
	Port    uint16 // of the proxy to connect through, on 127.0.0.1
	Keys    []string
	Callers int

	Statements int // of a hundred calls, how many are of QueryRow; at most 75

	// Retention, MaxIdle and Wait are those of idempotency.Config.
	Retention, MaxIdle, Wait time.Duration
}
