package idemhttp

import (
	"cmp"
	"context"
	"math/rand/v2"
	"time"

	"github.com/cenkalti/backoff/v5"
)

const (
	defaultAttempts = 6
	defaultElapsed  = 30 * time.Second
	firstPause      = 200 * time.Millisecond
	lastPause       = 10 * time.Second
)

// A schedule says when the next attempt may start, and when there is none.
type schedule struct {
	left    int       // attempts; negative: no limit
	end     time.Time // no attempt starts later; zero: no limit
	backoff backoff.ExponentialBackOff
}

// newSchedule is made when the first attempt starts. The end of ctx is one of
// its bounds: a pause that would outlast it is not begun, so that the caller
// gets the last answer and not a timeout.
func (t *Transport) newSchedule(ctx context.Context) *schedule {
	s := &schedule{left: cmp.Or(t.MaxAttempts, defaultAttempts)}
	if elapsed := cmp.Or(t.MaxElapsed, defaultElapsed); elapsed > 0 {
		s.end = time.Now().Add(elapsed)
	}
	if deadline, ok := ctx.Deadline(); ok && (s.end.IsZero() || deadline.Before(s.end)) {
		s.end = deadline
	}
	s.backoff = backoff.ExponentialBackOff{
		InitialInterval:     firstPause,
		RandomizationFactor: 0.5,
		Multiplier:          2,
		MaxInterval:         lastPause,
	}
	return s
}

// next returns the pause after an attempt, and false when it was the last one.
// The pause is never shorter than asked, by which the server wants to be left
// alone; what is added at random keeps clients that were turned away together
// from coming back together.
func (s *schedule) next(asked time.Duration) (pause time.Duration, ok bool) {
	s.left--
	if s.left == 0 {
		return 0, false
	}
	pause = s.backoff.NextBackOff()
	if asked > 0 {
		pause = max(pause, asked+rand.N(firstPause))
	}
	if !s.end.IsZero() && pause > time.Until(s.end) {
		return 0, false
	}
	return pause, true
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}
