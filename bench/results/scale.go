package results

import "time"

// A Scale is one run of "bench scale".
type Scale struct {
	Started    time.Time
	Took       time.Duration
	Command    string
	Conditions Conditions
	Points     []Point
	Purges     []Purge
}

// A Point compares a full table with an empty one.
type Point struct {
	Shape      string // of the ids and scopes
	Rows       int64
	HeapBytes  int64
	IndexBytes int64 // of all indexes
	Section    string
	Callers    int
	Ratio      float64   // median of Ratios
	Ratios     []float64 // of the mean time on the full table to that on the empty one, round by round
	Full       Load
	Empty      Load
	FullWAL    float64 // bytes of each call
	EmptyWAL   float64
}

// A Purge compares calls beside a purge with calls without one.
type Purge struct {
	Shape      string
	Rows       int64
	Target     float64 // rows that are to be deleted in a second
	Deleted    int64
	PerSecond  float64 // that were deleted
	Callers    int
	Calm, Busy Load
	P99Ratio   float64 // medians of paired windows
	RateRatio  float64
}

// The sections of a full table besides First and Replay.
const (
	ReplayUnvacuumed = "replay, not yet vacuumed"
	FirstVacuumed    = "first call, just vacuumed"
)
