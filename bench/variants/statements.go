package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/pgidem/idempotency/bench/link"
)

// with changes the package's form.
func with(change func(*form)) func(statements) form {
	return func(sql statements) form {
		f := sql.form()
		change(&f)
		return f
	}
}

func claimedBy(sql string) func(*form) {
	return func(f *form) {
		f.claim = func(r *request) query { return ask(sql, r.id, r.scope, retention) }
	}
}

func statementVariants() []variant {
	return []variant{
		ours("as it is"),
		ours("as it is, once more: what differs is noise"),
		{name: "settings: none (what they cost)", form: with(func(f *form) { f.settings = nil })},
		{name: "settings: two SETs", form: with(func(f *form) {
			f.settings = []query{ask(idleTimeoutSQL), ask(checkIntervalSQL)}
		})},
		{name: "settings: in the claim's condition", form: with(func(f *form) {
			f.settings = nil
			f.claim = func(r *request) query {
				return ask(foldedClaimSQL, r.id, r.scope, r.lock(), retention, maxIdle)
			}
		})},
		{name: "claim: no try-lock, values", form: with(claimedBy(valuesClaimSQL))},
		{name: "claim: no try-lock, values, with a lock_timeout", form: with(func(f *form) {
			claimedBy(valuesClaimSQL)(f)
			f.settings = append(f.settings, ask("set local lock_timeout = 1000"))
		})},
		{name: "read: without its condition", calls: readAlways},
		{name: "read: none (what it costs)", form: with(func(f *form) { f.read = nil })},
		{name: "record: a plain update that raises nothing", calls: raisesNothing},
		{name: "record: a plain update by the key, no ctid", form: with(func(f *form) {
			f.record = func(r *request, _ pgtype.TID) query {
				return ask(updateByKeySQL, r.id, r.scope, r.fingerprint, r.result, retention)
			}
		})},
		{name: "record: raises, by the key, no ctid", calls: byKey},
		{name: "record: by ctid (as it is under SERIALIZABLE)", calls: byCTID},
		{name: "record: by a range of ctids, also under SERIALIZABLE", calls: byRange},
	}
}

// statements: what each of them, and each way to write it, costs.
func (l *lab) statements(ctx context.Context) error {
	return l.compare(ctx, "Statements of a first call, against those of the package", false, statementVariants())
}

// compare measures first calls with one business statement: time against the
// first variant, write-ahead log, and conflicts between distinct keys.
func (l *lab) compare(ctx context.Context, title string, delayed bool, variants []variant) error {
	one, eight, err := l.timed(ctx, variants)
	if err != nil {
		return err
	}
	counts, err := l.counted(ctx, variants)
	if err != nil {
		return fmt.Errorf("under SERIALIZABLE: %w", err)
	}
	head := []string{"first call", "1 caller", "8 callers", "server's CPU µs", "WAL B", "false 40001 per 1,000, SERIALIZABLE"}
	var late []*lane
	var trips []float64
	if delayed {
		head = append(head, "1 caller at 1 ms", "round trips")
		if late, trips, err = l.late(ctx, variants); err != nil {
			return fmt.Errorf("at 1 ms: %w", err)
		}
	}
	t := newTable(head...)
	for i, v := range variants {
		cells := []string{v.name, one[i].ratio(one[0]), eight[i].ratio(eight[0]), one[i].cpuPerOp(), one[i].walPerOp(), counts[i].perThousand()}
		if delayed {
			cells = append(cells, late[i].ratio(late[0]), fmt.Sprintf("%.0f", trips[i]))
		}
		t.add(cells...)
	}
	l.show(title, t)
	return nil
}

func firstOf(ctx context.Context, s *site) error {
	return s.first(ctx, s.request(1000, smallResult))
}

func (l *lab) timed(ctx context.Context, variants []variant) (one, eight []*lane, err error) {
	all, err := l.sites(ctx, way{}, variants...)
	if err != nil {
		return nil, nil, err
	}
	defer l.leave(all)
	if one, err = l.turns(ctx, all, l.rounds, 60, 1, firstOf); err != nil {
		return nil, nil, err
	}
	eight, err = l.turns(ctx, all, l.rounds, 160, 8, firstOf)
	return one, eight, err
}

// counted runs distinct keys under SERIALIZABLE, on tables of some thousand rows.
func (l *lab) counted(ctx context.Context, variants []variant) ([]*lane, error) {
	all, err := l.sites(ctx, way{async: true, strict: true}, variants...)
	if err != nil {
		return nil, err
	}
	defer l.leave(all)
	return l.turns(ctx, all, 5, 400, 8, func(ctx context.Context, s *site) error {
		// The business write of distinct keys does not conflict by itself, but its
		// table would be one more thing in common.
		return s.alone(ctx, s.request(1000, smallResult))
	})
}

// late measures behind a link that takes half a millisecond each way.
func (l *lab) late(ctx context.Context, variants []variant) ([]*lane, []float64, error) {
	var proxies []*link.Proxy
	var all []*site
	defer func() {
		l.leave(all)
		for _, p := range proxies {
			p.Close()
		}
	}()
	for _, v := range variants {
		p, err := link.Listen(l.server.Network, l.server.Address, 500*time.Microsecond)
		if err != nil {
			return nil, nil, err
		}
		proxies = append(proxies, p)
		s, err := l.site(ctx, way{address: p.Address()}, v)
		if err != nil {
			return nil, nil, err
		}
		all = append(all, s)
	}
	lanes, err := l.turns(ctx, all, l.rounds, 20, 1, firstOf)
	if err != nil {
		return nil, nil, err
	}
	var trips []float64
	for i, s := range all {
		before := proxies[i].Trips()
		if _, err := s.turn(ctx, 20, 1, firstOf); err != nil {
			return nil, nil, err
		}
		trips = append(trips, float64(proxies[i].Trips()-before)/20)
	}
	return lanes, trips, nil
}
