package main

import (
	"context"
	"fmt"
	"time"

	"github.com/pgidem/idempotency/bench/link"
)

func statementVariants() []variant {
	return []variant{
		ours("as it is"),
		ours("as it is, once more: what differs is noise"),
		{name: "settings: none (what they cost)", calls: noSettings},
		{name: "settings: a statement of its own", calls: noSettings, settings: settingsSQL},
		{name: "plans: enable_seqscan stays as it is (what that costs)", calls: anyPlan},
		{name: "claim: no try-lock, values; settings and plans in a statement of their own", calls: byValues, settings: settingsAndPlanSQL},
		{name: "read: without its condition", calls: readAlways},
		{name: "read: none (what it costs)", form: withoutRead},
		{name: "record: the upsert without checks", calls: unchecked},
		{name: "record: an update by the key, without checks", calls: updateByKey},
		{name: "record: an update by ctid, without checks", calls: updateByCTID, ctid: true},
	}
}

// withoutRead leaves enable_seqscan off until COMMIT, which no other statement of
// the call minds.
func withoutRead(sql statements) form {
	sql.read = statement{}
	return sql.form()
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
