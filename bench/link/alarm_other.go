//go:build !linux

package link

import "time"

// An alarm wakes one goroutine, as exactly as the system's timers are.
type alarm struct{}

func newAlarm() (*alarm, error) { return &alarm{}, nil }

// Wait returns at t, or at once if that has passed.
func (*alarm) Wait(t time.Time) error {
	time.Sleep(time.Until(t))
	return nil
}

func (*alarm) Close() error { return nil }
