package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// A lane is what was measured of one site.
type lane struct {
	*site
	took      []time.Duration // of each turn
	wal       []int64         // bytes per operation, of each turn
	cpus      []time.Duration // of the server per operation, of each turn
	ops       int
	conflicts int64 // 40001
}

// An operation is one call on a site.
type operation func(ctx context.Context, s *site) error

// turns lets every site do per operations in each round, one site after the
// other, by some callers at a time. The first round only warms up.
func (l *lab) turns(ctx context.Context, all []*site, rounds, per, callers int, op operation) ([]*lane, error) {
	if l.brief {
		rounds, per = 1, min(per, 20)
	}
	var lanes []*lane
	for _, s := range all {
		lanes = append(lanes, &lane{site: s})
		if _, err := s.turn(ctx, max(callers, min(per, 50)), callers, op); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	for round := range rounds {
		for i := range lanes {
			at := lanes[(i+round)%len(lanes)] // so that none always follows the same one
			if err := l.turn(ctx, at, per, callers, op); err != nil {
				return nil, fmt.Errorf("%s: %w", at.name, err)
			}
		}
	}
	return lanes, nil
}

func (l *lab) turn(ctx context.Context, at *lane, per, callers int, op operation) error {
	runtime.GC() // nobody pays for the garbage of the one before
	before, err := l.wal(ctx)
	if err != nil {
		return err
	}
	computed, known := at.cpu(ctx)
	start := time.Now()
	conflicts, err := at.turn(ctx, per, callers, op)
	if err != nil {
		return err
	}
	at.took = append(at.took, time.Since(start))
	if by, still := at.cpu(ctx); known && still {
		at.cpus = append(at.cpus, (by-computed)/time.Duration(per))
	}
	after, err := l.wal(ctx)
	at.wal = append(at.wal, (after-before)/int64(per))
	at.ops += per
	at.conflicts += conflicts
	return err
}

func (s *site) turn(ctx context.Context, per, callers int, op operation) (conflicts int64, err error) {
	var left, lost atomic.Int64
	left.Store(int64(per))
	errs := make([]error, callers)
	var wg sync.WaitGroup
	for w := range callers {
		wg.Go(func() {
			for errs[w] == nil && left.Add(-1) >= 0 {
				switch err := op(ctx, s); {
				case conflicted(err):
					lost.Add(1)
				default:
					errs[w] = err
				}
			}
		})
	}
	wg.Wait()
	return lost.Load(), errors.Join(errs...)
}

func conflicted(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	return ok && pgErr.Code == "40001"
}

// walPerOp is in bytes, of the middle turn: at times the server does something of
// its own.
func (l *lane) walPerOp() string {
	sorted := slices.Sorted(slices.Values(l.wal))
	return grouped(sorted[len(sorted)/2])
}

// walMean is for turns that differ, because each page is logged in whole once.
func (l *lane) walMean() string {
	var sum int64
	for _, n := range l.wal {
		sum += n
	}
	return grouped(sum / int64(len(l.wal)))
}

// perThousand is the conflicts.
func (l *lane) perThousand() string {
	return fmt.Sprintf("%.1f", 1000*float64(l.conflicts)/float64(l.ops))
}

// ratio is the median of the time against another lane's turn of the same round,
// with the quartiles: what lies between them is noise.
func (l *lane) ratio(base *lane) string {
	ratios := make([]float64, 0, len(l.took))
	for i := range l.took {
		ratios = append(ratios, float64(l.took[i])/float64(base.took[i]))
	}
	slices.Sort(ratios)
	at := func(q float64) float64 { return ratios[int(q*float64(len(ratios)-1)+0.5)] }
	if l == base {
		return "1"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", at(0.5), at(0.25), at(0.75))
}
